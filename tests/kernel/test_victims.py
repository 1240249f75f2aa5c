"""Who gives way to whom, when, and that what is given back goes to whom it was given up for."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.config import Config
from zenos.core.specs import DeploymentSpec, Work
from zenos.core.task import State, Task

HOUR_S = 3600.0


def submit(h: Harness, work: Work = TRAIN, **more: Any) -> Task:
    more.setdefault("memory", "10MB")
    return h.submit(spec(work, **more))


def running(h: Harness, work: Work = TRAIN, **more: Any) -> Task:
    task = submit(h, work, **more)
    h.run(task)
    assert h.now(task).state is State.RUNNING
    return task


def told(h: Harness) -> list[str]:
    """Who was told to stop, in order."""
    return [stop.task for stop in h.stopped]


def test_a_training_is_saved_for_a_higher_priority_and_goes_on_afterwards() -> None:
    h = Harness(node(cpu=2))
    low = running(h, cpu=2)
    h.wait(60)
    high = submit(h, PROGRAM, cpu=2, priority=75)
    assert told(h) == [low.id]
    assert h.stopped[0].save
    assert h.steps[-1].changes.events[-1].detail == f"gives way to {high.id}"
    h.exit(low, exit_code=75)
    assert h.now(high).state is State.STARTING
    assert h.now(low).state is State.QUEUED
    h.run(high)
    h.wait(100)
    h.exit(high)
    resumed = h.now(low)
    assert (resumed.state, resumed.generation, resumed.attempts) == (State.STARTING, 2, 0)
    assert (resumed.ran_s, resumed.waited_s) == (60.0, 100.0)


def test_a_program_never_gives_way_and_nobody_does_to_a_lower_priority() -> None:
    h = Harness(node(cpu=2))
    running(h, PROGRAM, priority=25)
    running(h, priority=75)
    h.wait(HOUR_S / 2)
    submit(h, priority=50)
    h.wait(60)
    assert told(h) == []


def test_only_those_give_way_who_are_needed_the_lowest_first() -> None:
    h = Harness(node(cpu=4))
    lowest = running(h, cpu=1, priority=10)
    running(h, cpu=2, priority=40)
    running(h, cpu=1, priority=30)
    h.wait(60)
    submit(h, PROGRAM, cpu=1, priority=60)
    assert told(h) == [lowest.id]
    other = Harness(node(cpu=4))
    small = running(other, cpu=1, priority=10)
    large = running(other, cpu=3, priority=20)
    other.wait(60)
    submit(other, PROGRAM, cpu=3, priority=60)
    assert told(other) == [large.id]  # the small one's end would not help
    assert other.now(small).stopping is None


def test_nobody_gives_way_in_vain() -> None:
    h = Harness(node(cpu=2, name="a"), node(cpu=2, name="b"))
    for _ in range(2):
        running(h, PROGRAM, cpu=1)
        running(h, cpu=1)
    h.wait(60)
    submit(h, PROGRAM, cpu=2, priority=75)  # neither node has two cores to give back
    assert told(h) == []


def test_what_is_given_back_is_held_for_whom_it_was_given_up_for() -> None:
    h = Harness(node(cpu=2))
    first, second = running(h, cpu=1), running(h, cpu=1)
    h.wait(60)
    wide = submit(h, PROGRAM, cpu=2, priority=75)
    late = submit(h, PROGRAM, cpu=1, priority=70)
    h.exit(first, exit_code=75)
    assert h.now(late).state is State.QUEUED  # it would fit by now
    h.exit(second, exit_code=75)
    assert h.now(wide).state is State.STARTING
    assert h.now(late).state is State.QUEUED


def test_a_claim_ends_with_who_has_it() -> None:
    h = Harness(node(cpu=2))
    low = running(h, cpu=2)
    h.wait(60)
    high = submit(h, PROGRAM, cpu=2, priority=75)
    h.cancel(high)
    assert h.kernel.state.scheduler.claims == {}
    h.exit(low, exit_code=75)
    assert h.now(low).state is State.STARTING


def test_who_has_just_started_stays_for_a_while_and_the_kernel_wakes_by_then() -> None:
    h = Harness(node(cpu=1))
    low = running(h)
    high = submit(h, PROGRAM, priority=75)
    assert told(h) == []
    assert h.steps[-1].wake == h.clock.now() + limits.RESIDENCE_S
    h.wait(limits.RESIDENCE_S)
    assert told(h) == [low.id]
    h.exit(low, exit_code=75)
    assert h.now(high).state is State.STARTING


def test_nobody_gives_way_more_often_in_an_hour_than_is_allowed() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), preemptions_per_hour=2, overdue_wait_s=1e6))
    low = running(h)
    began = h.clock.now()
    for _ in range(2):
        h.wait(60)
        high = submit(h, PROGRAM, priority=75)
        h.exit(low, exit_code=75)
        h.run(high)
        h.exit(high)
        h.run(low)
    h.wait(60)
    submit(h, PROGRAM, priority=75)
    assert told(h) == [low.id] * 2
    assert h.steps[-1].wake == began + 60 + HOUR_S
    h.wait(began + 60 + HOUR_S - h.clock.now())
    assert told(h) == [low.id] * 3


def test_equals_take_turns_once_one_has_had_its_share() -> None:
    h = Harness(node(cpu=0, gpu=2), config=replace(Config(), overdue_wait_s=1e6))
    long = running(h, cpu=0, gpu=2)
    h.wait(60)
    short = submit(h, cpu=0, gpu=1)
    assert told(h) == []
    h.wait(limits.SLICE_S / 2 - 61)  # two GPUs: half the time
    assert told(h) == []
    assert h.steps[-1].wake == h.clock.now() + 1
    h.wait(1)
    assert told(h) == [long.id]
    h.exit(long, exit_code=75)
    assert h.now(short).state is State.STARTING
    h.run(short)
    h.wait(limits.SLICE_S / 2)
    assert told(h) == [long.id]  # it has had its share: nobody gives way to it
    h.exit(short)
    assert h.now(long).state is State.STARTING


def test_who_has_had_its_share_stands_behind_its_equals_however_long_it_waits() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), overdue_wait_s=1e6))
    long = running(h)
    h.wait(limits.SLICE_S)
    blocker = submit(h, PROGRAM)
    h.exit(long, exit_code=75)
    h.run(blocker)
    h.wait(HOUR_S)
    fresh = submit(h, expected_s=1e6)
    h.exit(blocker)
    assert (h.now(fresh).state, h.now(long).state) == (State.STARTING, State.QUEUED)


def test_slices_can_be_turned_off() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), slice_s=0.0, overdue_wait_s=1e9))
    running(h)
    h.wait(10 * limits.SLICE_S)
    submit(h)
    h.wait(10 * limits.SLICE_S)
    assert told(h) == []


def test_a_training_makes_room_for_the_overdue_task_and_is_not_interrupted_when_overdue() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), overdue_wait_s=100.0, slice_s=1e6))
    runner = running(h)
    waiting = submit(h)
    h.wait(99)
    assert told(h) == []
    h.wait(1)
    assert told(h) == [runner.id]
    h.exit(runner, exit_code=75)
    h.run(waiting)
    h.wait(50)
    submit(h, PROGRAM, priority=100)
    h.wait(50)
    assert told(h) == [runner.id]  # it has waited for its turn, and keeps it


def test_while_an_overdue_task_waits_for_a_few_devices_the_others_go_on() -> None:
    config = replace(Config(), overdue_wait_s=100.0, slice_s=1e6)
    h = Harness(node(cpu=0, gpu=4), config=config)
    trainings = [running(h, cpu=0, gpu=1) for _ in range(4)]
    late = submit(h, PROGRAM, cpu=0, gpu=2)
    h.wait(150)
    assert len(told(h)) == 2
    gone = [t for t in trainings if t.id in told(h)]
    h.exit(gone[0], exit_code=75)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert (held.task, held.request.gpu) == (late.id, 2000)
    h.exit(gone[1], exit_code=75)
    assert h.now(late).state is State.STARTING


def test_time_waited_before_a_suspension_counts_as_waiting() -> None:
    h = Harness(node(cpu=1), config=replace(Config(), overdue_wait_s=1000.0))
    blocker = submit(h, PROGRAM)
    task = submit(h)
    h.wait(900)
    h.exit(blocker)
    h.run(task)
    h.wait(60)
    high = submit(h, PROGRAM, priority=75)
    h.exit(task, exit_code=75)
    h.run(high)
    h.wait(99)
    assert h.kernel.state.scheduler.queue.overdue == []
    h.wait(1)
    assert [entry.task for entry in h.kernel.state.scheduler.queue.overdue] == [task.id]


def test_after_a_restart_who_was_told_to_stop_is_told_again_and_the_right_one_starts() -> None:
    h = Harness(node(cpu=1))
    low = running(h)
    h.wait(60)
    high = submit(h, PROGRAM, priority=75)
    after = h.restarted()
    assert told(after) == [low.id]
    assert after.stopped[0].save
    after.exit(low, exit_code=75)
    assert after.now(high).state is State.STARTING
    assert after.now(low).state is State.QUEUED


def test_a_request_for_a_model_is_answered_while_a_training_holds_everything() -> None:
    h = Harness(node(cpu=2, memory="1GB"))
    training = running(h, cpu=2, memory="900MB")
    h.wait(60)
    model = DeploymentSpec(model="m", memory="500MB", keep_alive_s=60.0)
    h.step(ev.Demand(name="m", spec=model))
    h.step(ev.Used(name="m", in_flight=1))
    assert told(h) == [training.id]
    h.exit(training, exit_code=75)
    (replica,) = (h.kernel.state.tasks[r] for r in h.kernel.state.deployments["m"].replicas)
    assert replica.state is State.STARTING
    h.run(replica)
    h.step(ev.WorkerReady(task=replica.id, generation=1))
    h.wait(600)
    assert h.now(training).state is State.QUEUED  # requests are in flight
    h.step(ev.Used(name="m", in_flight=0))
    h.wait(60)
    h.exit(replica)
    assert h.now(training).state is State.STARTING


def test_an_idle_replica_gives_way_before_a_training_does() -> None:
    h = Harness(node(cpu=2, memory="1GB"))
    training = running(h, cpu=1, memory="400MB")
    h.step(ev.Demand(name="idle", spec=DeploymentSpec(model="idle", memory="500MB")))
    h.step(ev.Used(name="idle", in_flight=1))
    (replica,) = (h.kernel.state.tasks[r] for r in h.kernel.state.deployments["idle"].replicas)
    h.run(replica)
    h.step(ev.WorkerReady(task=replica.id, generation=1))
    h.step(ev.Used(name="idle", in_flight=0))
    h.wait(30)
    h.step(ev.Demand(name="m", spec=DeploymentSpec(model="m", memory="500MB")))
    assert told(h) == [replica.id]
    assert h.now(training).stopping is None


def test_late_overdue_work_takes_more_of_the_machine() -> None:
    config = replace(
        Config(), overdue_wait_s=10.0, overdue_share=0.25, overdue_late=3.0, overdue_late_share=0.5
    )
    h = Harness(node(cpu=4), config=config)
    blockers = [submit(h, PROGRAM, priority=75) for _ in range(4)]
    old = [submit(h, PROGRAM) for _ in range(3)]
    h.wait(29)
    new = [submit(h, PROGRAM, priority=75) for _ in range(3)]
    h.exit(blockers[0])
    h.exit(blockers[1])
    assert [h.now(t).state for t in old[:2]] == [State.STARTING, State.QUEUED]
    h.wait(1)  # three times what made them overdue; the new ones are none yet
    h.exit(blockers[2])
    assert h.now(old[1]).state is State.STARTING
    h.exit(blockers[3])
    assert h.now(old[2]).state is State.QUEUED
    assert sum(h.now(t).state is State.STARTING for t in new) == 2


def test_while_the_daemon_goes_down_nobody_gives_way() -> None:
    h = Harness(node(cpu=1))
    running(h)
    h.wait(60)
    h.step(ev.Shutdown(suspend=False))
    h.step(ev.NodeUp(node=node(cpu=1)))
    assert told(h) == []


def overdue_at_work(h: Harness) -> Task:
    """A training that started as overdue and runs."""
    blocker = submit(h, PROGRAM, cpu=2, memory="900MB")
    task = submit(h, cpu=2, memory="900MB")
    h.wait(100)
    h.exit(blocker)
    h.run(task)
    assert task.id in h.kernel.state.overdue_running
    return task


def test_who_started_as_overdue_gives_way_to_a_higher_priority_later_and_to_requests_at_once() -> (
    None
):
    config = replace(Config(), overdue_wait_s=100.0)
    h = Harness(node(cpu=2, memory="1GB"), config=config)
    task = overdue_at_work(h)
    h.wait(60)
    submit(h, PROGRAM, priority=100)
    h.wait(limits.SLICE_RESIDENCE_S - 61)
    assert told(h) == []
    h.wait(1)
    assert told(h) == [task.id]
    other = Harness(node(cpu=2, memory="1GB"), config=config)
    task = overdue_at_work(other)
    other.wait(60)
    other.step(ev.Demand(name="m", spec=DeploymentSpec(model="m", memory="500MB")))
    assert told(other) == [task.id]


def test_a_model_stays_the_longer_the_more_often_a_training_gave_way_to_it() -> None:
    h = Harness(node(cpu=2, memory="1GB"))
    training = running(h, cpu=2, memory="900MB")
    stayed: list[float] = []
    for _ in range(3):
        h.wait(60)
        h.step(ev.Demand(name="m", spec=DeploymentSpec(model="m", memory="500MB")))
        h.step(ev.Used(name="m", in_flight=1))
        h.exit(training, exit_code=75)
        replica = h.kernel.state.tasks[h.kernel.state.deployments["m"].replicas[-1]]
        h.run(replica)
        h.step(ev.WorkerReady(task=replica.id, generation=1))
        h.step(ev.Used(name="m", in_flight=0))
        since, told_before = h.clock.now(), len(told(h))
        while len(told(h)) == told_before:
            h.clock.advance(h.steps[-1].wake - h.clock.now())
            h.step()
        stayed.append(h.clock.now() - since)
        h.exit(replica)
        h.run(training)
    assert [round(s) for s in stayed] == [20, 40, 80]
