"""What is given back goes to whom it was given up for, whoever else waits, ends or is lost."""

from __future__ import annotations

from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, Harness, node
from tests.kernel.test_victims import running, submit, told
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.core.task import State


def test_who_gave_way_and_is_overdue_meanwhile_does_not_take_it_back() -> None:
    h = Harness(node(cpu=2), config=replace(Config(), overdue_wait_s=1000.0))
    blocker = submit(h, PROGRAM, cpu=2)
    first, second = submit(h, cpu=1), submit(h, cpu=1)
    h.wait(990)
    h.exit(blocker)
    h.run(first)
    h.run(second)
    h.wait(60)
    high = submit(h, PROGRAM, cpu=2, priority=75)
    h.exit(first, exit_code=75)
    h.wait(20)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert held.task == first.id
    h.exit(second, exit_code=75)
    assert h.now(high).state is State.STARTING


def test_of_two_for_whom_others_give_way_each_starts_when_its_own_have_ended() -> None:
    h = Harness(node(cpu=4))
    first, second = running(h, cpu=2, priority=10), running(h, cpu=2, priority=20)
    h.wait(60)
    high = submit(h, PROGRAM, cpu=2, priority=90)
    low = submit(h, PROGRAM, cpu=2, priority=60)
    assert told(h) == [first.id, second.id]
    h.exit(first, exit_code=75)
    assert h.now(high).state is State.STARTING
    assert h.now(low).state is State.QUEUED
    h.exit(second, exit_code=75)
    assert h.now(low).state is State.STARTING


def test_what_was_held_back_for_who_is_cancelled_is_for_others_at_once() -> None:
    h = Harness(node(cpu=2))
    first, _ = running(h, cpu=1), running(h, cpu=1)
    h.wait(60)
    wide = submit(h, PROGRAM, cpu=2, priority=75)
    h.exit(first, exit_code=75)
    assert h.now(first).state is State.QUEUED
    h.cancel(wide)
    assert h.now(first).state is State.STARTING


def test_a_claim_whose_task_finds_no_room_after_all_holds_nothing_back_any_longer() -> None:
    h = Harness(node(cpu=2))
    paused = running(h, cpu=1)
    h.pause(paused)
    h.paused(paused)
    victim = running(h, cpu=2, priority=20)
    h.wait(60)
    high = submit(h, PROGRAM, cpu=2, priority=75)
    assert told(h) == [victim.id]
    h.resume(paused)  # goes on ahead of everything that is queued
    small = submit(h, PROGRAM, cpu=1)
    h.exit(victim, exit_code=75)
    assert h.now(paused).state is State.RUNNING
    assert h.now(high).state is State.QUEUED
    assert h.now(small).state is State.STARTING
    assert h.kernel.state.scheduler.claims == {}


def test_who_has_waited_longer_gives_no_way_to_an_overdue_task_only_to_stand_before_it() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), overdue_wait_s=1000.0, slice_s=0.0))
    blocker = submit(h, PROGRAM)
    patient = submit(h)
    h.wait(3000)
    h.exit(blocker)
    h.run(patient)
    waiting = submit(h, PROGRAM)
    h = h.restarted()  # forgets that it was overdue when it started
    h.wait(1000)
    assert [entry.task for entry in h.kernel.state.scheduler.queue.overdue] == [waiting.id]
    assert told(h) == []
    while not told(h):
        h.wait(h.steps[-1].wake - h.clock.now())
    assert 3000 < h.clock.now() - waiting.queued < 3001
    h.exit(patient, exit_code=75)
    assert h.now(waiting).state is State.STARTING


def test_an_overdue_task_keeps_the_node_on_which_others_give_way_to_it() -> None:
    config = replace(Config(), overdue_wait_s=100.0, slice_s=0.0)
    h = Harness(node(cpu=2, name="a"), node(cpu=3, name="b"), config=config)
    low = running(h, cpu=2, priority=10)
    blocker, other = submit(h, PROGRAM, cpu=2), submit(h, PROGRAM, cpu=1)
    task = submit(h, PROGRAM, cpu=2)
    h.wait(60)
    assert told(h) == [low.id]
    h.exit(other)
    h.wait(40)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert (held.task, held.node) == (task.id, "a")
    assert h.now(blocker).state is State.STARTING


def test_the_kernel_wakes_when_an_overdue_task_is_late() -> None:
    config = replace(
        Config(), overdue_wait_s=10.0, overdue_late=3.0, overdue_late_share=1.0, slice_s=0.0
    )
    h = Harness(node(cpu=2), config=config)
    trainings = [running(h), running(h)]
    first, _ = submit(h, PROGRAM), submit(h, PROGRAM)
    began = h.clock.now()
    h.wait(10)
    (gone,) = (task for task in trainings if task.id in told(h))
    h.exit(gone, exit_code=75)
    h.run(first)
    while h.clock.now() < began + 30:
        assert h.steps[-1].wake <= began + 30
        h.wait(h.steps[-1].wake - h.clock.now())
    assert len(told(h)) == 2


def test_where_nobody_may_give_way_in_an_hour_nobody_does() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), preemptions_per_hour=0))
    running(h)
    h.wait(60)
    submit(h, PROGRAM, priority=75)
    assert told(h) == []


def test_who_has_ended_is_forgotten() -> None:
    h = Harness(node(cpu=1))
    low = running(h)
    h.wait(60)
    high = submit(h, PROGRAM, priority=75)
    h.exit(low)
    assert h.now(high).state is State.STARTING
    assert h.kernel.preemption.given_way == {}


def test_what_runs_on_a_node_that_is_gone_gives_way_to_nobody() -> None:
    h = Harness(node(cpu=1, name="old"))
    running(h, priority=10)
    state = h.kernel.state
    remembered = Snapshot(
        now=h.clock.now(),
        next_task=state.next_task,
        next_seq=state.next_seq,
        tasks=state.tasks,
        deployments={},
        keys=[],
    )
    after = Harness(node(cpu=1, name="new"), snapshot=remembered)
    submit(after, PROGRAM)
    after.wait(60)
    submit(after, PROGRAM, priority=75)
    assert told(after) == []


def test_a_share_of_service_that_is_reached_but_for_rounding_is_looked_at_again() -> None:
    config = replace(
        Config(), slice_s=172.7, slice_residence_s=0.0, residence_s=0.0, overdue_wait_s=1e9
    )
    h = Harness(node(cpu=1), config=config)
    h.clock.advance(485.5)
    task = running(h, cpu=0.874)
    submit(h, PROGRAM)
    h.wait(h.steps[-1].wake - h.clock.now())
    assert told(h) == []  # a millionth of a second is missing
    h.wait(h.steps[-1].wake - h.clock.now())
    assert told(h) == [task.id]


def test_nobody_gives_way_to_two_at_once() -> None:
    h = Harness(node(cpu=2))
    low = [running(h, cpu=1, priority=10) for _ in range(2)]
    high = submit(h, PROGRAM, cpu=2, priority=90)
    submit(h, PROGRAM, cpu=2, priority=60)
    h.wait(60)  # both are considered in one step
    assert told(h) == [task.id for task in low]
    assert list(h.kernel.state.scheduler.claims) == [high.id]


def test_nobody_gives_way_where_another_node_has_room_soon() -> None:
    h = Harness(node(cpu=1, name="a"), node(cpu=1, name="b"))
    ending = submit(h, PROGRAM)
    running(h)
    h.wait(60)
    h.cancel(ending)
    high = submit(h, PROGRAM, priority=75)
    assert told(h) == [ending.id]
    h.exit(ending)
    assert h.now(high).state is State.STARTING


def test_who_is_resumed_is_given_way_to_by_a_lower_priority() -> None:
    h = Harness(node(cpu=1))
    high = running(h, priority=75)
    h.pause(high)
    h.paused(high)
    low, blocked = running(h, priority=25), submit(h, PROGRAM, priority=20)
    h.cancel(blocked)  # the queue is empty
    h.wait(60)
    assert told(h) == []
    h.resume(high)
    assert told(h) == [low.id]
    h.exit(low, exit_code=75)
    assert h.now(high).state is State.RUNNING
    assert h.now(low).state is State.QUEUED


def test_who_is_resumed_waits_for_a_higher_priority() -> None:
    h = Harness(node(cpu=1))
    paused = running(h, priority=25)
    h.pause(paused)
    h.paused(paused)
    running(h, priority=75)
    h.wait(60)
    h.resume(paused)
    h.wait(3600)
    assert told(h) == []
