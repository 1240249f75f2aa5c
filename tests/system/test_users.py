"""Two people on one machine: tokens, a quota for one of them, and whose work is whose."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System, refused
from zenos.client import Client, connect
from zenos.core.errors import QuotaError, RefusedError, UnauthorizedError
from zenos.core.inside import Inside, bearer, secret
from zenos.core.task import State

SETTINGS = """
user_quotas:
  ann: {tasks: 3, cpu: 0.2}
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path, "zygote=lazy", "cpus=2")
    made.home.config.write_text(SETTINGS)
    made.start()
    yield made
    made.close()


def coming(system: System, token: str) -> Client:
    """Who knows the daemon's address, and has that token."""
    with connect(home=system.home.root) as operator:
        return connect(operator.address.url, token=token)


def grant(system: System, name: str, user: str, project: str | None = None) -> str:
    """A token, from the operator."""
    said = system.ask(lambda client: client.tokens.create(name, user=user, project=project)).token
    assert said is not None
    return said


def hold(client: Client, system: System, name: str) -> str:
    """A task that stays until `released` is there."""
    argv = ["/bin/sh", "-c", f"echo 1 >> {system.ran}; {system.hold}"]
    return client.submit(argv, name=name, cpu=0.2, memory="64MiB").id


def state(client: Client, task: str) -> State:
    return client.task(task).task.state


def test_two_people_with_a_quota_for_one_share_a_machine(system: System) -> None:
    anns, bobs = grant(system, "anns", "ann", "vision"), grant(system, "bobs", "bob")
    with coming(system, anns) as ann, coming(system, bobs) as bob:
        a1, a2, a3 = (hold(ann, system, f"a{number}") for number in range(3))
        # Her quota is of her alone: she waits beside free cores, and he doesn't.
        until(lambda: state(ann, a1) is State.RUNNING)
        with pytest.raises(QuotaError, match="ann has 3 of 3 tasks"):
            hold(ann, system, "a3")
        his = [hold(bob, system, f"b{number}") for number in range(4)]
        until(lambda: all(state(bob, task) is State.RUNNING for task in his))
        waits = ann.task(a2).view.waits
        assert waits == "ann holds 0.2 CPUs of at most 0.2 CPUs, and it wants 0.2 CPUs"
        held = {view.account: view.held.cpu for view in bob.status().accounts}
        assert (held["user/ann"], held["user/bob"]) == (200, 800)
        assert (held["project/vision"], held["project/bob"]) == (200, 800)
        # One may not cancel what is the other's, and the operator may all.
        with pytest.raises(RefusedError, match=f"cannot cancel {a1}: it belongs to ann"):
            bob.cancel(a1)
        with pytest.raises(RefusedError, match="for the operator alone"):
            bob.shut_down()
        assert state(ann, a1) is State.RUNNING
        ann.cancel(a3)
        system.ask(lambda client: client.cancel(a1))
        until(lambda: state(ann, a2) is State.RUNNING)
        rows = system.ask(lambda client: client.audit.rows(action="cancel"))
        assert [(row.principal.user, row.subject, row.accepted) for row in rows] == [
            ("local", a1, True),
            ("ann", a3, True),
            ("bob", a1, False),
        ]
        # What runs is of its user still when the token has gone.
        system.ask(lambda client: client.tokens.revoke("anns"))
        with pytest.raises(UnauthorizedError, match="a user's, which was revoked"):
            ann.status()
        assert state(bob, a2) is State.RUNNING
        system.released.touch()
        ended = {view.task.id: view.task for view in bob.tasks()}
        until(lambda: all(state(bob, task) is State.SUCCEEDED for task in (a2, *his)))
        assert ended[a2].principal.user == "ann"
        assert system.lines()[1] == 6


def test_a_model_belongs_to_the_project_of_who_made_it(system: System) -> None:
    anns, bobs = grant(system, "anns", "ann", "vision"), grant(system, "bobs", "bob")
    with coming(system, anns) as ann, coming(system, bobs) as bob:
        made = ann.create("reader", "bert-nano", cpu=0.1).wait(60)
        assert made.state is State.SUCCEEDED, made
        assert ann.model("reader").lineage.project == "vision"
        for change in (
            lambda: bob.create("reader", "bert-nano"),
            lambda: bob.remove("reader:1"),
            lambda: bob.alias("reader", "prod", 1),
        ):
            with pytest.raises(RefusedError, match="it belongs to the project vision"):
                change()
        assert bob.copy("reader", "his").lineage.project == "bob"
        bob.remove("his:1")
        assert [version.ref for version in bob.models()] == ["reader:1"]
        ann.remove("reader:1")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_who_is_let_in_survives_the_daemon(system: System, end: signal.Signals) -> None:
    anns, gone = grant(system, "anns", "ann", "vision"), grant(system, "gone", "eve")
    with coming(system, anns) as ann:
        task = hold(ann, system, "a")
        until(lambda: state(ann, task) is State.RUNNING)
    system.ask(lambda client: client.tokens.revoke("gone"))
    if end is signal.SIGKILL:
        system.kill()
    else:
        assert system.signal(end) == 0
    assert anns not in system.home.tokens.read_text()
    assert system.home.tokens.stat().st_mode & 0o777 == 0o600
    system.start()
    with coming(system, anns) as ann, coming(system, gone) as eve:
        assert (ann.status().user, ann.status().project) == ("ann", "vision")
        assert ann.task(task).task.principal.user == "ann"
        assert ann.cancel(task).stopping == "cancel"
        with pytest.raises(UnauthorizedError):
            eve.status()
    system.released.touch()
    assert system.finish()["a"].state is State.CANCELLED


def test_damaged_tokens_keep_the_daemon_down_and_nothing_is_lost(system: System) -> None:
    anns = grant(system, "anns", "ann")
    kept = system.home.tokens.read_bytes()
    assert system.signal(signal.SIGTERM) == 0
    system.home.tokens.write_bytes(kept[:-20])
    said = refused(system.home.root)
    assert f"cannot read the tokens in {system.home.tokens}: the file is damaged" in said
    system.home.tokens.write_bytes(kept)
    system.start()
    with coming(system, anns) as ann:
        assert ann.status().user == "ann"


def test_what_a_task_submits_belongs_to_its_user(system: System) -> None:
    """The command and the client act with the rights of the task in which they run."""
    with coming(system, grant(system, "anns", "ann", "vision")) as ann:
        asked = [sys.executable, "-m", "zenos", "submit", "--cpu", "0.1", "--", "true"]
        first = ann.submit(asked, name="first", cpu=0.1, memory="256MiB").wait(60)
        assert first.state is State.SUCCEEDED
        made = next(view.task for view in ann.tasks() if view.task.id != first.id)
        assert (made.principal.user, made.principal.project) == ("ann", "vision")
        down = [sys.executable, "-m", "zenos", "down"]
        told = ann.submit(down, name="down", cpu=0.1, memory="256MiB").wait(60)
        assert told.state is State.FAILED
        assert "for the operator alone" in "".join(ann.task(told.id).log())


def test_a_task_that_has_ended_lets_nobody_in(system: System) -> None:
    """Its token goes with it: what it has left behind acts for nobody."""
    with coming(system, grant(system, "anns", "ann")) as ann:
        task = hold(ann, system, "held")
        until(lambda: state(ann, task) is State.RUNNING)
        said = secret(system.home, task, 1)
        token = bearer(Inside(task, 1), said)
        with coming(system, token) as of_task:
            assert of_task.status().user == "ann"
            guess = bearer(Inside(task, 1), "x" * len(said))
            with coming(system, guess) as guessing, pytest.raises(UnauthorizedError):
                guessing.status()
            ann.cancel(task)
            ann.task(task).wait(60)
            with pytest.raises(UnauthorizedError, match=f"task {task} has ended there"):
                of_task.status()
