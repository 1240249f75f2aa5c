"""What processes outside zenos use is given out to nobody, and waits for nobody when it is back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core.node import Measured, Node
from zenos.core.outlook import Why
from zenos.core.resources import Resources
from zenos.core.task import State
from zenos.kernel.explanation import explain
from zenos.kernel.picture import slim, take
from zenos.kernel.pool import Pool

GB = 1_000_000_000


def left(h: Harness, memory: int, used: int = GB, gpus: list[int] | None = None) -> None:
    measured = Measured(memory=used, memory_left=memory, gpu_memory_left=gpus or [])
    h.step(ev.Measured(node="local", measured=measured))


def why(h: Harness, task: str) -> Why:
    return explain(slim(take(h.kernel, h.clock.now(), task)), task)


def test_no_more_starts_than_others_leave_and_it_starts_when_they_have_gone() -> None:
    h = Harness(node(cpu=8, memory="4GB"))
    first = h.submit(spec(memory="1GB"))
    left(h, 2 * GB, used=3 * GB)
    large, small = h.submit(spec(memory="2GB")), h.submit(spec(memory="1GB"))
    assert [h.now(t).state for t in (first, large, small)] == [
        State.STARTING,
        State.QUEUED,
        State.STARTING,
    ]
    found = why(h, large.id)
    assert "1.9 GiB is used by processes outside zenos" in found.reason
    assert found.lacks[0].lacks.memory == 2 * GB
    assert found.lacks[0].outside == Resources(memory=2 * GB)
    assert any(remedy.kind == "node" for remedy in found.remedies)
    left(h, 6 * GB)
    assert h.now(large).state is State.STARTING
    assert h.kernel.state.changes.nodes["local"].measured == Measured(memory=GB, memory_left=6 * GB)


def test_what_runs_goes_on_when_others_take_what_it_was_given() -> None:
    h = Harness(node(cpu=8, memory="4GB"))
    running = h.submit(spec(TRAIN, memory="3GB"))
    h.run(running)
    left(h, -GB)
    h.wait(5000)
    assert not h.stopped
    assert h.kernel.state.resources.pools["local"].free.memory == -3 * GB
    # What wants no memory isn't kept from starting by it.
    assert h.now(h.submit(spec(memory="0"))).state is State.STARTING


def test_what_others_leave_too_little_for_waits_and_is_not_refused() -> None:
    h = Harness(node(cpu=8, memory="4GB"))
    left(h, GB)
    waiting = h.submit(spec(memory="4GB"))
    assert waiting.state is State.QUEUED
    h.wait(100_000)  # overdue by now, with a reservation
    assert h.now(waiting).state is State.QUEUED
    left(h, 5 * GB)
    assert h.now(waiting).state is State.STARTING


def test_nobody_gives_way_where_it_would_not_help() -> None:
    h = Harness(node(cpu=8, memory="4GB"))
    training = h.submit(spec(TRAIN, memory="1GB", priority=25))
    h.run(training)
    left(h, 2 * GB)
    h.wait(60)
    h.submit(spec(memory="3GB", priority=75))
    h.wait(60)
    assert not h.stopped
    h.submit(spec(memory="2GB", priority=75))
    assert [stop.task for stop in h.stopped] == [training.id]


@pytest.mark.parametrize(
    ("gpu", "memory", "devices"),
    [
        (0.5, "6GB", {1: 500}),  # the only one that has so much left
        (1, "8GB", {1: 1000}),
        (1, "0", {1: 1000}),  # the one of which others use least
        (2, "4GB", {1: 1000, 2: 1000}),
        (3, "9GB", None),
    ],
)
def test_of_each_gpu_no_more_is_given_than_others_leave(
    gpu: float, memory: str, devices: dict[int, int] | None
) -> None:
    three = replace(node(gpu=3), gpu_memory_each=8 * GB)
    capacity = replace(three.capacity, gpu_memory=24 * GB)
    h = Harness(replace(three, capacity=capacity))
    left(h, 9 * GB, gpus=[GB, 80 * GB, 5 * GB])
    wants = replace(Resources.of(gpu=gpu), gpu_memory=Resources.of(memory=memory).memory)
    task = h.submit(replace(spec(), resources=wants))
    given_ = h.now(task).allocation
    assert (given_.shares if given_ else None) == devices
    left(h, 9 * GB)
    assert h.now(task).state is State.STARTING


@given(
    memory_left=st.integers(-5 * GB, 9 * GB),
    held=st.lists(st.integers(0, GB), max_size=4),
)
def test_free_is_what_the_formula_says(memory_left: int, held: list[int]) -> None:
    """free = min(budget - allocations, total - foreign - allocations - margin)"""
    made = Node(name="local", capacity=Resources.of(cpu=8, memory="4GB"))
    pool = Pool(replace(made, measured=Measured(memory=0, memory_left=memory_left)))
    for memory in held[:2]:
        pool.allocate(Resources(memory=memory))
    pool.withhold()
    for memory in held[2:]:
        pool.allocate(Resources(memory=memory))
    free = min(4 * GB, max(0, memory_left)) - pool.used.memory
    assert pool.free.memory == pool.copy().free.memory == free
    assert (pool.allocate(Resources(memory=max(0, free) + 1))) is None
