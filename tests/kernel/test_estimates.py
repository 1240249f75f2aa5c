"""Run times are learned, predicted and compared; what is known outlives tasks and daemons."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import limits
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.core.predictions import Estimate, Past
from zenos.core.specs import ProgramSpec
from zenos.core.task import Principal, Task
from zenos.kernel.estimates import Estimates, prediction, signature
from zenos.store.memory import MemoryStore


def ran(h: Harness, seconds: float, **more: object) -> Task:
    task = h.submit(spec(**more))  # type: ignore[arg-type]
    h.run(task)
    h.clock.advance(seconds)
    h.exit(task)
    return h.kernel.state.changes.tasks[task.id]


def test_what_was_predicted_at_the_start_is_kept_beside_what_it_took() -> None:
    h = Harness(node(cpu=1))
    first = ran(h, 8.0, name="job")
    assert (first.predicted_s, first.predicted_by) == (limits.EXPECTED_S_DEFAULT, "default")
    second = ran(h, 10.0, name="job")
    assert second.predicted_s == pytest.approx(8.0)
    assert second.predicted_by == "learned"
    third = ran(h, 5.0, name="job", expected_s=6.0)
    assert (third.predicted_s, third.predicted_by) == (6.0, "user")
    known = h.kernel.state.estimates.known
    assert [(p.source, round(p.took_s, 6)) for p in known[signature(third)].past] == [
        ("default", 8.0),
        ("learned", 10.0),
        ("user", 5.0),
    ]
    made = prediction(second, known)
    assert made is not None
    assert made.error == pytest.approx(0.2)
    assert made.took_s == pytest.approx(10.0)
    # What nobody predicted is not counted as a prediction: the median of 20 % and 20 %.
    assert (made.finished, made.compared) == (3, 2)
    assert made.median_error == pytest.approx(0.2)


def test_a_task_that_was_suspended_keeps_its_first_prediction() -> None:
    h = Harness(node(cpu=1))
    task = h.submit(spec(TRAIN, expected_s=100.0))
    h.run(task)
    h.clock.advance(30)
    h.suspend(task)
    h.exit(task, exit_code=75)
    h.resume(task)
    assert h.now(task).generation == 2
    assert h.now(task).predicted_s == 100.0
    h.run(task)
    h.clock.advance(50)
    h.exit(task)
    made = prediction(h.now(task), h.kernel.state.estimates.known)
    assert made is not None
    assert made.took_s == pytest.approx(80.0)
    assert made.error == pytest.approx(0.25)


async def test_what_was_learned_outlives_the_tasks_and_the_daemon() -> None:
    config = Config(ended_tasks_kept=0, ended_task_kept_s=0.0)
    h = Harness(node(cpu=1), config=config)
    store = MemoryStore()
    gone = ran(h, 8.0, name="job")
    h.wait(1)
    assert gone.id not in h.kernel.state.tasks
    for step in h.steps:
        await store.commit(step.changes)
    again = Harness(node(cpu=1), config=config, snapshot=await store.load())
    task = again.submit(spec(name="job"))
    assert again.now(task).predicted_by == "learned"
    assert again.now(task).predicted_s == pytest.approx(8.0)


def test_a_database_from_before_learns_from_its_finished_tasks_once() -> None:
    h = Harness(node(cpu=1))
    for seconds in (4.0, 16.0):
        task = ran(h, seconds, name="job")
    tasks = dict(h.kernel.state.tasks)
    before = Harness(snapshot=Snapshot(now=h.clock.now(), next_task=9, tasks=tasks))
    assert before.kernel.state.estimates.total(task) == (pytest.approx(8.0), "learned")
    written = [s for step in before.steps for s in step.changes.estimates]
    assert written == [signature(task)]
    known = dict(h.kernel.state.estimates.known)
    after = Harness(snapshot=Snapshot(now=h.clock.now(), tasks=tasks, estimates=known))
    assert after.kernel.state.estimates.known[signature(task)].count == 2


def test_the_signature_that_has_not_run_for_longest_is_forgotten_in_the_store_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SIGNATURES_MAX", 2)
    h = Harness(node(cpu=1))
    first = signature(ran(h, 1.0, name="a"))
    for name in ("b", "a", "c"):
        last = ran(h, 1.0, name=name)
    known = h.kernel.state.estimates.known
    assert [row.signature for row in known.values()] == [first, signature(last)]
    assert [s for step in h.steps for s in step.changes.deleted_estimates] == ["run/local/b"]
    assert list(Estimates(1.0, dict(reversed(known.items()))).known) == list(known)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["python", "train.py", "--fast"], "python train.py"),
        (["/usr/bin/python3.11", "-m", "tool", "x"], "/usr/bin/python3.11 -m tool"),
        (["bash", "-c", "true"], "bash"),
        (["work", "file-1"], "work"),
        (["python"], "python"),
    ],
)
def test_a_script_is_told_from_others_of_its_interpreter(argv: list[str], what: str) -> None:
    task = Task(
        id="t1",
        spec=spec(ProgramSpec(argv=argv)),
        principal=Principal(user="ann"),
        submitted=0,
        kind=spec().kind,
    )
    assert signature(task) == f"run/ann/{what}"
    long = replace(task, spec=spec(ProgramSpec(argv=["x" * 5000])))
    other = replace(task, spec=spec(ProgramSpec(argv=["x" * 5001])))
    assert len(signature(long)) == limits.SIGNATURE_CHARS_MAX
    assert signature(long) != signature(other)


def test_errors_of_tasks_that_took_no_time_are_finite() -> None:
    past = Past(predicted_s=1.0, source="learned", took_s=0.0)
    assert math.isfinite(past.error)
    assert Estimate(signature="s", log_s=0.0).median_error is None
