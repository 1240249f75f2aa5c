"""Start times and deadlines."""

from __future__ import annotations

import pytest

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.core.task import State


def test_nothing_starts_before_its_time_and_waits_since_then() -> None:
    h = Harness()
    task = h.submit(spec(start_at=50_000.0))
    assert h.steps[-1].wake <= 50_000
    assert h.wait(48_999).wake <= 50_000
    assert h.now(task).state is State.QUEUED
    h = h.restarted()
    h.wait(1)
    assert h.now(task).state is State.STARTING
    assert h.now(task).waited_s == 0
    assert h.now(h.submit(spec(start_at=3.0))).state is State.STARTING  # is over already


def test_who_is_held_or_comes_after_others_waits_for_all_of_it() -> None:
    h = Harness()
    parent = h.submit(spec())
    child = h.submit(spec(start_at=5000.0, after=(parent.id,)))
    held = h.submit(spec(start_at=5000.0))
    h.suspend(held)
    h.run(parent)
    h.exit(parent)
    h.resume(held)
    assert {h.now(task).queued for task in (child, held)} == {5000.0}
    assert h.kernel.state.delayed == {child.id, held.id}
    h.wait(4000)
    assert {h.now(task).state for task in (child, held)} == {State.STARTING}
    parent = h.submit(spec())
    late = h.submit(spec(start_at=6000.0, after=(parent.id,)))
    h.wait(9000)
    assert h.now(late).state is State.QUEUED
    h.cancel(late)


def test_as_its_deadline_nears_a_task_passes_others() -> None:
    h = Harness(node(cpu=1), config=Config(overdue_wait_s=1e6))
    first = h.submit(spec())
    other = h.submit(spec(priority=75, expected_s=100.0))
    due = h.submit(spec(expected_s=100.0, deadline=3000.0))
    h.run(first)

    def order() -> list[str]:
        return [r.entry.task for r in h.kernel.state.scheduler.ranking(h.clock.now())]

    assert order() == [other.id, due.id]
    raised = [h.kernel.state.scheduler.queue.key(due.id).raised]
    wakes = 0
    while h.clock.now() < 2950:
        step = h.wait(min(max(h.steps[-1].wake - h.clock.now(), 0.001), 50))
        raised.append(h.kernel.state.scheduler.queue.key(due.id).raised)
        wakes += step.wake < h.clock.now() + 1e-9
    assert raised == sorted(raised)
    assert (raised[0], raised[-1]) == (0, 50)
    assert set(raised) == set(range(0, 51, 5))
    assert wakes < 50
    assert order() == [due.id, other.id]
    h = h.restarted()
    assert order() == [due.id, other.id]
    h.nice(due, 90)
    assert h.kernel.state.scheduler.queue.key(due.id).raised == 10
    h.exit(first)
    assert h.now(due).state is State.STARTING


def test_a_deadline_preempts_nobody() -> None:
    h = Harness(node(cpu=1))
    running = h.submit(spec(TRAIN))
    h.run(running)
    h.submit(spec(deadline=h.clock.now() + 1))
    h.wait(3000)
    assert h.stopped == []
    h.submit(spec(priority=51))
    h.wait(10)
    assert [stop.task for stop in h.stopped] == [running.id]


def test_a_deadline_that_can_hardly_be_met_warns() -> None:
    h = Harness()
    now = h.clock.now()
    assert h.submit(spec(deadline=now + 10)).warning == ""  # nobody knows how long it takes
    task = h.submit(spec(expected_s=60.0, deadline=now + 30))
    assert task.warning == "it is expected to run for 60 s, and its deadline leaves 30 s"
    task = h.submit(spec(expected_s=60.0, start_at=now + 50, deadline=now + 100))
    assert task.warning == "it is expected to run for 60 s, and its deadline leaves 50 s"
    assert h.submit(spec(expected_s=60.0, deadline=now + 61)).warning == ""


@pytest.mark.parametrize(
    "more",
    [
        {"deadline": 1000.0},
        {"deadline": float("nan")},
        {"start_at": float("inf")},
        {"start_at": -1.0},
        {"start_at": 9000.0, "deadline": 8000.0},
    ],
)
def test_times_that_cannot_be_are_refused(more: dict[str, float]) -> None:
    h = Harness()
    with pytest.raises(InvalidError):
        h.submit(spec(**more))
    assert h.kernel.state.tasks == {}
