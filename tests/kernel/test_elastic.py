"""Elastic trainings: their workers come and go with what is idle."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.specs import TrainSpec
from zenos.core.task import State, Task, TaskSpec
from zenos.kernel.explanation import explain
from zenos.kernel.picture import take

CONFIG = Config(grow_s=60.0, residence_s=5.0, preemptions_per_hour=6)


def elastic(least: int, most: int, **more: object) -> TaskSpec:
    work = replace(TRAIN, workers=most, workers_min=least, batch_size=8)
    return spec(work, cpu=most, memory=f"{100 * most}MB", **more)  # type: ignore[arg-type]


def suspended(h: Harness, task: Task) -> None:
    """Its worker has saved and ended."""
    assert h.now(task).state is State.SUSPENDING
    h.exit(task, exit_code=75)


def test_it_starts_with_as_many_workers_as_there_is_room_for() -> None:
    h = Harness(node(cpu=3), config=CONFIG)
    task = h.now(h.submit(elastic(1, 4)))
    assert task.workers == 3
    assert task.granted == Resources.of(cpu=3, memory="300MB")
    assert h.kernel.state.resources.used() == task.granted
    assert h.started[-1].workers == 3  # as its worker is told


def test_it_waits_for_no_more_than_its_least() -> None:
    h = Harness(node(cpu=3), config=CONFIG)
    h.run(h.submit(spec(cpu=2)))
    task = h.submit(elastic(1, 4))
    assert (h.now(task).state, h.now(task).workers) == (State.STARTING, 1)
    other = h.submit(elastic(1, 4))
    assert h.now(other).state is State.QUEUED


def test_who_starts_in_the_same_step_comes_before_more_workers() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    work = [elastic(1, 4), spec(cpu=1), spec(cpu=1)]
    h.step(*(ev.Submit(request=n, spec=one) for n, one in enumerate(work)))
    tasks = list(h.kernel.state.tasks.values())
    assert all(task.state is State.STARTING for task in tasks)
    assert [task.workers for task in tasks] == [2, 1, 1]


def test_it_grows_into_what_becomes_idle_after_a_while() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    other = h.submit(spec(cpu=3))
    h.run(other)
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.wait(10)
    h.exit(other)
    assert h.now(task).state is State.RUNNING  # not at once: a start costs
    assert h.steps[-1].wake == pytest.approx(h.now(task).running + 60.0)
    h.clock.advance(h.steps[-1].wake - h.clock.now())
    h.step()
    suspended(h, task)
    assert (h.now(task).state, h.now(task).workers) == (State.STARTING, 4)
    assert h.now(task).attempts == 0


def test_who_started_first_grows_first() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    for _ in range(6):
        h.exit(h.submit(spec(memory="5MB")))
    blocking = [h.submit(spec(memory="5MB")) for _ in range(2)]
    h.step(*(ev.Submit(request=1, spec=elastic(1, 2)) for _ in range(2)))
    elder, younger = h.started[-2:]
    assert (elder.id, younger.id) == ("t9", "t10")  # the other way round as words
    for task in (elder, younger):
        h.run(task)
    h.wait(CONFIG.grow_s)
    h.exit(blocking[0])
    assert (h.now(elder).stopping, h.now(younger).stopping) == ("suspend", None)


def test_what_it_has_beyond_its_least_is_for_equals_that_wait() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.wait(10)
    equal = h.submit(spec(cpu=2))
    suspended(h, task)
    assert h.now(equal).state is State.STARTING
    assert (h.now(task).state, h.now(task).workers) == (State.STARTING, 2)


def test_its_least_is_not_for_equals() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    task = h.submit(elastic(2, 4))
    h.run(task)
    h.wait(10)
    h.submit(spec(cpu=3))
    assert h.now(task).state is State.RUNNING


def test_it_gives_way_to_equals_at_the_moment_at_which_it_has_had_its_share() -> None:
    h = Harness(node(cpu=1), config=Config(residence_s=1.0, slice_s=100.0, slice_residence_s=1.0))
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.submit(spec(cpu=1))
    began = h.clock.now()
    while h.now(task).stopping is None:
        h.wait(h.steps[-1].wake - h.clock.now())
    assert h.clock.now() - began == pytest.approx(25.0)  # it counts as one of four cores


def test_a_lower_priority_gets_nothing_back() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.wait(10)
    h.submit(spec(cpu=1, priority=25))
    assert h.now(task).state is State.RUNNING


def test_a_higher_priority_gets_all_of_it() -> None:
    h = Harness(node(cpu=4), config=CONFIG)
    task = h.submit(elastic(2, 4))
    h.run(task)
    h.wait(10)
    urgent = h.submit(spec(cpu=3, priority=75))
    suspended(h, task)
    assert (h.now(urgent).state, h.now(task).state) == (State.STARTING, State.QUEUED)


def test_it_does_not_grow_into_what_is_held_back_for_another() -> None:
    """For a paused task that is to go on: it waits for more than is free."""
    h = Harness(node(cpu=4), config=CONFIG)
    paused = h.submit(spec(cpu=3))
    h.run(paused)
    h.pause(paused)
    h.paused(paused)
    h.run(h.submit(spec(cpu=2, priority=75)))
    ends = h.submit(spec(cpu=1, priority=75))
    h.run(ends)
    task = h.submit(elastic(1, 2, priority=75))
    h.run(task)
    h.resume(paused)
    h.exit(ends)
    h.wait(100)  # there is room for another worker
    assert h.kernel.state.scheduler.resuming["local"].cpu == 3000
    assert (h.now(task).state, h.now(task).workers) == (State.RUNNING, 1)


def test_it_does_not_grow_on_a_node_that_takes_no_work() -> None:
    h = Harness(node(cpu=2), config=CONFIG)
    other = h.submit(spec(cpu=1))
    h.run(other)
    task = h.submit(elastic(1, 2))
    h.run(task)
    h.cordon("local", "cordon")
    h.exit(other)
    h.wait(100)
    assert h.now(task).state is State.RUNNING
    h.cordon("local", None)
    h.step()
    assert h.now(task).state is State.SUSPENDING


def test_its_owners_quota_holds_for_what_it_has_beyond_its_least_too() -> None:
    quota = Quota(cpu=3)
    h = Harness(node(cpu=8), config=replace(CONFIG, user_quotas={"*": quota}))
    task = h.now(h.submit(elastic(1, 6)))
    assert task.workers == 3
    h.run(task)
    h.wait(100)
    assert h.now(task).state is State.RUNNING


def test_it_grows_less_often_than_a_training_may_give_way() -> None:
    h = Harness(node(cpu=2), config=CONFIG)
    grown = 0
    task = h.submit(elastic(1, 2))
    h.run(task)
    for _ in range(8):
        other = h.submit(spec(cpu=1))
        h.wait(10)
        if h.now(task).state is State.SUSPENDING:
            h.exit(task, exit_code=75)
            h.run(task)
        if h.now(other).state is not State.STARTING:
            break
        h.run(other)
        h.exit(other)
        h.wait(70)
        if h.now(task).state is State.SUSPENDING:
            grown += 1
            h.exit(task, exit_code=75)
            h.run(task)
    assert 1 <= grown < CONFIG.preemptions_per_hour // 2
    assert len(h.kernel.preemption.given_way[task.id]) <= CONFIG.preemptions_per_hour


def test_paused_it_goes_on_with_the_workers_that_it_has() -> None:
    h = Harness(node(cpu=3), config=CONFIG)
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.pause(task)
    h.paused(task)
    assert h.kernel.state.resources.used().cpu == 0
    h.resume(task)
    assert (h.now(task).state, h.now(task).granted.cpu) == (State.RUNNING, 3000)


def test_why_says_what_it_lacks_to_go_on_with_the_workers_that_it_has() -> None:
    h = Harness(node(cpu=3), config=CONFIG)
    task = h.submit(elastic(1, 4))
    h.run(task)
    h.pause(task)
    h.paused(task)
    other = h.submit(spec(cpu=2))
    h.resume(task)
    (lack,) = explain(take(h.kernel, h.clock.now(), task.id), task.id).lacks
    assert (lack.lacks, [holder.task for holder in lack.holders]) == (
        Resources(cpu=2000),
        [other.id],
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"workers": 2, "workers_min": 3}, "workers_min 3 above workers 2"),
        ({"workers": 2, "workers_min": 1, "backend": "gloo"}, "over gloo"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        TrainSpec(model="m", arch="llama-nano", data=TRAIN.data, **fields).check()  # type: ignore[arg-type]


def test_on_gpus_it_is_refused() -> None:
    with pytest.raises(InvalidError, match="on GPUs"):
        replace(elastic(1, 2), resources=Resources.of(cpu=2, gpu=2)).check()


def test_two_of_one_owner_are_not_saved_for_the_same_room_in_a_quota() -> None:
    quota = Quota(cpu=4)
    nodes = node(cpu=3), node(cpu=3, name="second")
    h = Harness(*nodes, config=replace(CONFIG, user_quotas={"*": quota}))
    other = h.submit(spec(cpu=2))
    tasks = [h.submit(elastic(1, 3)) for _ in range(2)]
    for task in (other, *tasks):
        h.run(task)
    assert [h.now(task).workers for task in tasks] == [1, 1]
    h.wait(100)
    h.exit(other)
    for _ in range(3):
        h.wait(1)
    assert [h.now(task).state for task in tasks] == [State.SUSPENDING, State.RUNNING]


def test_on_several_nodes_it_stays_as_it_was_cut() -> None:
    h = Harness(node(cpu=1), node(cpu=1, name="second"), config=CONFIG)
    task = h.submit(elastic(2, 4))
    allocation = h.now(task).allocation
    assert allocation is not None
    assert {part.node: part.resources.cpu for part in allocation.parts} == {
        "local": 1000,
        "second": 1000,
    }
    h.run(task)
    h.wait(100)
    assert h.now(task).state is State.RUNNING
