"""Gangs: workers of one training over several nodes, all of them or none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.harness import PROGRAM, Harness, node
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.errors import RefusedError, UnfittableError
from zenos.core.resources import Resources
from zenos.core.specs import CallSpec, DataSpec, DeploymentSpec, TrainSpec
from zenos.core.task import State, TaskSpec
from zenos.kernel.entries import Shape
from zenos.kernel.explanation import explain
from zenos.kernel.picture import take
from zenos.kernel.resource_manager import ResourceManager
from zenos.simulate import cluster
from zenos.simulate.report import Meter
from zenos.simulate.traces import Job
from zenos.simulate.world import World


def gang(workers: int, **more: object) -> TaskSpec:
    data = DataSpec(paths=["/data"])
    work = TrainSpec(model="m", arch="llama-nano", data=data, workers=workers, batch_size=64)
    resources = Resources.of(cpu=workers, gpu=workers, memory=f"{workers}GB")
    return TaskSpec(work=work, resources=resources, **more)  # type: ignore[arg-type]


def nodes(count: int, gpu: int = 4) -> Harness:
    made = (node(cpu=gpu, gpu=gpu, memory="64GB", name=f"n{n}") for n in range(count))
    return Harness(*made, config=Config(residence_s=5.0))


def test_a_gang_that_fits_on_one_node_stays_on_one() -> None:
    h = nodes(2)
    h.submit(gang(1))
    task = h.submit(gang(4))
    allocation = h.now(task).allocation
    assert allocation is not None
    assert (allocation.node, allocation.others) == ("n1", ())


def test_a_larger_one_takes_as_few_nodes_as_there_can_be_and_the_fullest_for_its_rest() -> None:
    h = nodes(4)
    for _ in range(2):
        h.submit(gang(1))  # both on n0: best fit
    task = h.submit(gang(10))
    allocation = h.now(task).allocation
    assert allocation is not None
    held = {part.node: part.resources.gpu for part in allocation.parts}
    assert held == {"n1": 4000, "n2": 4000, "n0": 2000}
    assert allocation.total == task.spec.resources


def test_why_counts_what_a_gang_holds_on_each_of_its_nodes() -> None:
    h = nodes(2)
    task = h.submit(gang(8))
    h.run(task)
    waiting = h.submit(gang(1))
    made = explain(take(h.kernel, h.clock.now()), waiting.id)
    assert [[holder.task for holder in lack.holders] for lack in made.lacks] == [[task.id]] * 2
    assert [holder.resources.gpu for lack in made.lacks for holder in lack.holders] == [4000] * 2
    (remedy,) = [remedy for remedy in made.remedies if remedy.kind == "end"]
    assert remedy.tasks == [task.id]


def test_all_or_nothing_and_everything_comes_back() -> None:
    h = nodes(2)
    first = h.submit(gang(1))
    task = h.submit(gang(8))
    assert h.now(task).state is State.QUEUED
    assert h.kernel.state.resources.used() == first.spec.resources
    h.run(first)
    h.exit(first)
    assert h.now(task).state is State.STARTING
    h.run(task)
    h.exit(task)
    assert h.kernel.state.resources.used() == Resources()


def test_what_is_larger_than_all_nodes_together_is_refused() -> None:
    h = nodes(2)
    with pytest.raises(UnfittableError, match="9 workers don't fit on all 2 nodes together"):
        h.submit(gang(9))
    alone = TrainSpec(model="m", arch="llama-nano", data=DataSpec(paths=["/data"]))
    with pytest.raises(UnfittableError, match="the largest node has 4"):
        h.submit(TaskSpec(work=alone, resources=gang(8).resources))


def test_lower_priorities_give_way_to_a_gang_on_all_its_nodes_at_once() -> None:
    h = nodes(2)
    low = [h.submit(gang(4, priority=25)) for _ in range(2)]
    for task in low:
        h.run(task)
    h.wait(10)
    high = h.submit(gang(8, priority=75))
    assert [h.now(task).state for task in low] == [State.SUSPENDING] * 2
    h.exit(low[0], exit_code=75)
    assert h.now(high).state is State.QUEUED
    assert h.now(low[0]).state is State.QUEUED  # what it gave back is held for the gang
    h.exit(low[1], exit_code=75)
    assert h.now(high).state is State.STARTING


def test_nobody_gives_way_where_one_node_stays_taken() -> None:
    h = nodes(2)
    low, even = h.submit(gang(4, priority=25)), h.submit(gang(4, priority=75))
    for task in (low, even):
        h.run(task)
    h.wait(10)
    h.submit(gang(8, priority=75))
    assert h.now(low).state is State.RUNNING


def test_a_gang_over_several_nodes_gives_way_whole_and_is_not_paused() -> None:
    h = nodes(2)
    wide = h.submit(gang(8, priority=25))
    h.run(wide)
    with pytest.raises(RefusedError, match=r"cannot pause .* several nodes"):
        h.pause(wide)
    h.wait(10)
    high = h.submit(gang(1, priority=75))
    assert h.now(wide).state is State.SUSPENDING
    h.exit(wide, exit_code=75)
    assert h.now(high).state is State.STARTING


def test_an_overdue_gang_gets_its_turn_while_small_ones_keep_coming() -> None:
    h = nodes(2)
    running = [h.submit(gang(1)) for _ in range(8)]
    wide = h.submit(gang(8))
    h.wait(4000)
    for _ in range(8):
        h.submit(gang(1))
        ended = running.pop(0)
        h.run(ended)
        h.exit(ended)
    assert h.now(wide).state is State.STARTING


@given(gpu=st.integers(1, 9), workers=st.integers(1, 40), count=st.integers(1, 5))
def test_parts_add_up_and_each_fits_on_a_node_of_its_own(
    gpu: int, workers: int, count: int
) -> None:
    resources = ResourceManager()
    for number in range(count):
        resources.add(node(cpu=gpu, gpu=gpu, memory="64GB", name=f"n{number}"), [])
    wants = Resources.of(cpu=workers, gpu=workers, memory=f"{workers}MB")
    parts = resources.parts(Shape(wants, workers))
    assert bool(parts) is (workers <= gpu * count)
    if parts:
        assert sum(parts, Resources()) == wants
        assert len(parts) == -(-workers // gpu)
        allocation = resources.allocate(wants, None, workers)
        assert allocation is not None
        assert len({part.node for part in allocation.parts}) == len(parts)


JOBS = st.lists(
    st.builds(
        Job,
        submit_s=st.integers(0, 3000).map(float),
        duration_s=st.integers(0, 5000).map(float),
        gpu=st.integers(1, 6).map(lambda gpus: gpus * 1000),
        priority=st.sampled_from([25, 50, 75]),
    ),
    min_size=1,
    max_size=20,
).map(lambda jobs: sorted(jobs, key=lambda j: j.submit_s))


@settings(max_examples=40, deadline=None)
@given(jobs=JOBS)
def test_gangs_and_single_ones_all_end_and_no_device_is_given_out_twice(jobs: list[Job]) -> None:
    config = Config(slice_s=500.0, slice_residence_s=60.0, overdue_wait_s=600.0)
    world = World(jobs, cluster.nodes("3x2gpu"), config, Meter(jobs[-1].submit_s), 60.0)
    step = world.kernel.step

    def checked(events, now):  # type: ignore[no-untyped-def]
        made = step(events, now)
        world.kernel.state.check()
        return made

    world.kernel.step = checked  # type: ignore[method-assign]
    ran = world.run(lambda done: None)
    for job, how in zip(jobs, ran, strict=True):
        assert how.done_s >= job.submit_s + job.duration_s


def test_idle_models_and_hosts_of_calls_give_way_to_a_gang_on_all_its_nodes() -> None:
    h = nodes(2)
    for number in range(2):
        name = f"m{number}"
        more = DeploymentSpec(model=name, cpu=4, gpu=4, keep_alive_s=3600.0)
        h.ask(ev.Deploy(request=1, spec=more))
        h.step(ev.Demand(name=name), ev.Used(name=name, in_flight=1, waiting=1))
        replica = h.kernel.state.deployments[name].replicas[-1]
        h.run(h.kernel.state.tasks[replica])
        h.step(ev.WorkerReady(task=replica, generation=1), ev.Used(name=name, in_flight=0))
    h.wait(60)
    h.submit(gang(8, priority=75))
    assert [action.task for action in h.stopped] == ["t1", "t2"]
    h = nodes(2)
    for number in range(2):
        host = CallSpec(python="/usr/bin/python3", key=f"k{number}")
        h.run(h.submit(TaskSpec(work=host, resources=gang(4).resources)))
    h.submit(gang(8))
    assert sorted((action.task, action.on) for action in h.wanted) == [("t1", True), ("t2", True)]


def test_replicas_stay_where_a_gang_has_no_room_all_the_same() -> None:
    h = nodes(2)
    more = DeploymentSpec(model="m", cpu=4, gpu=4, keep_alive_s=3600.0)
    h.ask(ev.Deploy(request=1, spec=more))
    h.step(ev.Demand(name="m"), ev.Used(name="m", in_flight=1, waiting=1))
    h.run(h.kernel.state.tasks["t1"])
    h.step(ev.WorkerReady(task="t1", generation=1), ev.Used(name="m", in_flight=0))
    h.run(h.submit(TaskSpec(work=PROGRAM, resources=gang(1).resources)))
    h.wait(60)
    h.submit(gang(8, priority=75))
    assert h.stopped == []
