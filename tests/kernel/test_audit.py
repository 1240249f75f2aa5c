"""Who did what: rows beside the changes they tell of."""

from __future__ import annotations

import pytest

from tests.kernel.harness import TRAIN, Harness, spec
from zenos.core import events as ev
from zenos.core.audit import AuditRow
from zenos.core.config import Config
from zenos.core.errors import ConflictError, NotFoundError, UnfittableError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Principal

YOU = Principal(user="you")


def rows(harness: Harness) -> list[tuple[str, str, str]]:
    return [(r.action, r.subject, r.reason) for r in all_rows(harness)]


def all_rows(harness: Harness) -> list[AuditRow]:
    return [row for step in harness.steps for row in step.changes.audit]


def test_a_row_is_among_the_changes_it_tells_of() -> None:
    harness = Harness()
    task = harness.submit(spec(), principal=YOU, key="k")
    changes = harness.steps[-1].changes
    assert task.id in changes.tasks
    (row,) = changes.audit
    assert (row.action, row.subject, row.principal, row.key) == ("submit", task.id, YOU, "k")
    assert row.number == 1
    assert changes.next_audit == 2


def test_what_is_repeated_has_one_row() -> None:
    harness = Harness()
    task = harness.submit(spec(), key="k")
    harness.submit(spec(), key="k")
    harness.cancel(task)
    harness.cancel(task)
    deploy = ev.Deploy(request=0, spec=DeploymentSpec(model="m"), key="d")
    harness.ask(deploy)
    harness.ask(deploy)
    harness.ask(ev.Deploy(request=0, spec=DeploymentSpec(model="m", priority=9)))
    harness.ask(ev.Undeploy(request=0, name="m"))
    assert rows(harness) == [
        ("submit", "t1", ""),
        ("cancel", "t1", ""),
        ("deploy", "m", ""),
        ("change", "m", ""),
        ("undeploy", "m", ""),
    ]


def test_a_refusal_has_its_reason() -> None:
    harness = Harness()
    harness.submit(spec(), key="k")
    with pytest.raises(UnfittableError):
        harness.submit(spec(cpu=99, name="big"))
    with pytest.raises(NotFoundError):
        harness.ask(ev.Cancel(request=0, task="t" * 10_000))
    with pytest.raises(ConflictError):
        harness.submit(spec(name="x"), key="k")
    found = all_rows(harness)[1:]
    assert [(r.action, r.accepted) for r in found] == [
        ("submit", False),
        ("cancel", False),
        ("submit", False),
    ]
    assert all(r.reason.startswith("cannot") for r in found)
    assert found[0].subject == "big"
    assert len(found[1].subject) == 500


def test_history_names_who_asked_and_nobody_where_the_kernel_decided() -> None:
    harness = Harness()
    task = harness.submit(spec(), principal=YOU)
    harness.ask(ev.Cancel(request=0, task=task.id, principal=YOU))
    events = [e for step in harness.steps for e in step.changes.events]
    assert [(e.type, e.principal) for e in events] == [
        ("submitted", YOU),
        ("starting", None),
        ("stopping", YOU),
    ]


def test_what_was_done_beside_the_kernel_has_one_row_for_each_key() -> None:
    harness = Harness()
    one = ev.Record(request=1, principal=YOU, action="copy", subject="a to b", key="k")
    other = ev.Record(request=2, principal=YOU, action="copy", subject="a to c", key="k")
    without = ev.Record(request=3, principal=YOU, action="purge", subject="t")
    harness.step(one, one, other, without, without)
    assert [r.subject for r in all_rows(harness)] == ["a to b", "a to c", "t", "t"]
    assert len(harness.steps[-1].actions) == 5


def test_a_reload_has_a_row_and_old_rows_are_forgotten() -> None:
    harness = Harness()
    harness.step(ev.Configured(config=Config(audit_kept=2)))
    (row,) = all_rows(harness)
    assert (row.action, row.via) == ("reload", "signal")
    for _ in range(3):
        harness.submit(spec())
    assert harness.steps[-1].changes.prune_audit_before == 3


def test_who_paused_suspended_resumed_and_changed_a_priority_is_told() -> None:
    harness = Harness()
    task = harness.submit(spec(TRAIN))
    harness.run(task)
    for event in (
        ev.Pause(request=0, task=task.id, principal=YOU),
        ev.Resume(request=0, task=task.id, principal=YOU),
        ev.Nice(request=0, task=task.id, priority=60, principal=YOU),
        ev.Suspend(request=0, task=task.id, principal=YOU),
    ):
        harness.ask(event)
    with pytest.raises(ConflictError):
        harness.ask(ev.Pause(request=0, task=task.id, principal=YOU))
    found = all_rows(harness)[1:]
    assert [(r.action, r.subject, r.principal.user, r.accepted) for r in found] == [
        ("pause", task.id, "you", True),
        ("resume", task.id, "you", True),
        ("nice", task.id, "you", True),
        ("suspend", task.id, "you", True),
        ("pause", task.id, "you", False),
    ]
