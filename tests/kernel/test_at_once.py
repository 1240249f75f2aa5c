"""One step decides a bounded part of what is due; the next ones follow at once with the rest."""

from __future__ import annotations

import sys
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, Harness, node, spec
from tests.kernel.reference import reference
from zenos.core import events as ev
from zenos.core.actions import Snapshot, StopWorker
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.task import State, Task
from zenos.kernel import picture, remedies
from zenos.kernel.rebuilt import build

CONFIG = Config(slice_s=300.0, slice_residence_s=60.0, overdue_wait_s=900.0)
COUNT = 12


def crowd(at_once: int, config: Config = CONFIG) -> tuple[Harness, list[Task], list[Task]]:
    """Twelve tasks that begin together on as many cores, and twelve that wait for them."""
    h = Harness(node(cpu=COUNT), config=config)
    h.kernel.preemption.at_once = at_once
    first = [h.submit(spec(TRAIN, cpu=1, memory="10MB")) for _ in range(COUNT)]
    for task in first:
        h.run(task)
    # Of as many buckets, each of which has a head.
    waiting = [h.submit(spec(TRAIN, cpu=1, memory="10MB", expected_s=2.0**n)) for n in range(COUNT)]
    return h, first, waiting


def settled(h: Harness) -> int:
    """Steps that follow at once."""
    count = 0
    while h.steps[-1].wake <= h.clock.now():
        h.step()
        count += 1
        assert count <= 2 * COUNT, "it never comes to an end"
    return count


def test_what_is_left_over_is_decided_at_once_and_as_if_it_had_been_one_step() -> None:
    h, first, _ = crowd(at_once=5)
    h.wait(300)
    assert len(h.stopped) == 5
    assert settled(h) == 2
    all_in_one, others, _ = crowd(at_once=100)
    all_in_one.wait(300)
    assert settled(all_in_one) == 0
    assert [stop.task for stop in h.stopped] == [stop.task for stop in all_in_one.stopped]
    assert len(h.stopped) == COUNT
    assert h.kernel.state.scheduler.claims == all_in_one.kernel.state.scheduler.claims
    assert {h.now(task).state for task in first} == {State.SUSPENDING}
    assert [h.now(task).state for task in first] == [all_in_one.now(t).state for t in others]


def test_what_happens_in_between_is_not_kept_waiting() -> None:
    h, first, _ = crowd(at_once=5)
    h.wait(300)
    saved = next(task for task in first if h.now(task).state is State.SUSPENDING)
    h.exit(saved, exit_code=75)  # the next step, long before all others are told to
    assert h.now(saved).state is State.QUEUED
    assert len(h.stopped) == 10
    settled(h)
    assert len(h.stopped) == COUNT


def test_all_become_overdue_in_one_step_in_the_order_in_which_they_were_queued() -> None:
    nobody_gives_way = replace(CONFIG, preemptions_per_hour=0)
    h, _, waiting = crowd(at_once=5, config=nobody_gives_way)
    more = [h.submit(spec(TRAIN, cpu=1, expected_s=2.0**n, priority=25)) for n in range(COUNT)]
    step = h.wait(2000)
    ids = [task.id for task in (*waiting, *more)]
    assert [entry.task for entry in h.kernel.state.scheduler.queue.overdue] == ids
    assert step.wake > h.clock.now()


def test_after_a_restart_the_first_in_the_queue_starts_first_though_others_were_due_before() -> (
    None
):
    h = Harness(node(cpu=1))
    h.run(h.submit(spec()))
    low = h.submit(spec(priority=25))
    h.clock.advance(5000)
    high = [h.submit(spec(priority=75, expected_s=2.0**n)) for n in range(20)]
    h.clock.advance(3000)
    due = h.kernel.state.scheduler.queue
    entries = [due.entry(task.id) for task in (high[0], low)]
    at = [due.overdue_at(entry) for entry in entries if entry is not None]
    assert at == sorted(at)
    assert at[-1] < h.clock.now()
    after = Harness(node(cpu=2), config=h.config, snapshot=h.snapshot())
    assert [task.id for task in after.started] == [low.id]


class Waits(NamedTuple):
    """A task that is submitted, some time after the one before."""

    after_s: float
    yields: bool
    priority: int
    cpu: float
    gpu: float
    expected_s: float


def twins(
    there: Node, snapshot: Snapshot | None = None, after_s: float = 0.0
) -> tuple[Harness, Harness]:
    """A kernel that decides as little as it may in each step; the policy, all of it in one."""
    snapshot = snapshot or Snapshot(now=1000.0)
    cut, whole = (Harness(config=CONFIG, snapshot=snapshot) for _ in range(2))
    cut.kernel.preemption.at_once = 1
    whole.kernel = reference(CONFIG, snapshot)
    whole.kernel.preemption.at_once = sys.maxsize
    for h in (cut, whole):
        h.clock.advance(after_s)
        h.step(ev.NodeUp(node=there))
    return cut, whole


def same(cut: Harness, whole: Harness) -> None:
    """Once all is decided, the same are overdue, the same have started, and one holds back."""
    settled(cut)
    settled(whole)
    ours, theirs = cut.kernel.state, whole.kernel.state
    assert ours.scheduler.queue.overdue == theirs.scheduler.queue.overdue
    assert ours.scheduler.reservation == theirs.scheduler.reservation
    assert [task.id for task in cut.started] == [task.id for task in whole.started]
    assert ours.overdue_running == theirs.overdue_running


@given(
    made=st.lists(
        st.builds(
            Waits,
            st.sampled_from([0.0, 0.0, 0.0, 10.0, 100.0]),
            st.booleans(),
            st.sampled_from([25, 50, 75]),
            st.sampled_from([0.5, 1.0, 2.0]),
            st.sampled_from([0.0, 0.0, 1.0]),
            st.sampled_from([10.0, 100.0, 1000.0, 10000.0]),
        ),
        min_size=25,
        max_size=40,
    ),
    waits=st.lists(st.sampled_from([0.0, 60.0, 300.0, 900.0]), min_size=1, max_size=3),
    free=st.sampled_from([0, 2, 4]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_however_little_a_step_decides_the_same_start_and_are_overdue(
    made: list[Waits], waits: list[float], free: int
) -> None:
    """At one instant, and after a restart at which many are due and some have room."""
    both = twins(node(cpu=4, gpu=2))
    for one in made:
        for h in both:
            h.wait(one.after_s)
            wanted = spec(
                TRAIN if one.yields else PROGRAM,
                cpu=one.cpu,
                gpu=one.gpu,
                memory="10MB",
                priority=one.priority,
                expected_s=one.expected_s,
            )
            task = h.submit(wanted)
            if h.now(task).state is State.STARTING:
                h.run(task)
            settled(h)
    for seconds in waits:
        for h in both:
            h.wait(seconds)
        same(*both)
    same(*twins(node(cpu=4 + free, gpu=2), both[0].snapshot(), after_s=3000.0))


def test_in_a_copy_all_is_decided_in_one_step() -> None:
    """No event waits for it."""
    h, first, _ = crowd(at_once=5)
    h.clock.advance(300)
    step = build(picture.take(h.kernel, h.clock.now())).step([], h.clock.now())
    stopped = [action.task for action in step.actions if isinstance(action, StopWorker)]
    assert sorted(stopped) == sorted(task.id for task in first)
    assert step.wake > h.clock.now()


def test_what_would_help_is_tried_until_all_is_decided() -> None:
    """At one instant, however many steps that takes."""
    h, first, waiting = crowd(at_once=1)
    h.wait(200)
    events = [ev.Cancel(request=0, task=task.id) for task in first]
    trial = remedies.Trial(picture.take(h.kernel, h.clock.now()), *events)
    assert all(trial.runs(task.id) for task in waiting)
    h.wait(100)
    trial = remedies.Trial(picture.take(h.kernel, h.clock.now()))
    assert all(trial.runs(task.id) for task in waiting)
