"""Tasks that have a node for themselves."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core.arrays import ArraySpec, parse_indices
from zenos.core.errors import InvalidError, UnfittableError
from zenos.core.resources import Resources
from zenos.core.task import State, TaskSpec

ALONE = {"exclusive": True}


def test_it_waits_until_nobody_is_there_and_nobody_comes_meanwhile() -> None:
    h = Harness(node(cpu=4, gpu=2))
    other = h.submit(spec(cpu=1))
    h.run(other)
    alone = h.submit(spec(cpu=1, priority=75, **ALONE))  # type: ignore[arg-type]
    assert h.now(alone).state is State.QUEUED
    h.exit(other)
    assert h.now(alone).allocation.resources == Resources.of(cpu=4, gpu=2, memory="4GB")
    h.run(alone)
    late = h.submit(spec(cpu=0.1, memory="4MiB"))
    assert h.now(late).state is State.QUEUED
    h.exit(alone)
    assert h.now(late).state is State.STARTING


def test_what_it_says_of_resources_is_how_much_its_node_must_have() -> None:
    h = Harness(node(cpu=2, name="small"), node(cpu=8, name="large"))
    alone = h.now(h.submit(spec(cpu=4, **ALONE)))  # type: ignore[arg-type]
    assert (alone.allocation.node, alone.spec.resources.cpu) == ("large", 8000)
    with pytest.raises(UnfittableError, match="wants 9 CPUs, the largest node has 8"):
        h.submit(spec(cpu=9, **ALONE))  # type: ignore[arg-type]


def test_which_of_unequal_nodes_has_to_be_said() -> None:
    h = Harness(node(cpu=2, name="small"), node(cpu=8, name="large"))
    with pytest.raises(InvalidError, match="large, small are not equal; name one"):
        h.submit(spec(cpu=1, **ALONE))  # type: ignore[arg-type]
    alone = h.submit(spec(cpu=1, node="small", **ALONE))  # type: ignore[arg-type]
    assert h.now(alone).spec.resources.cpu == 2000


def test_each_task_of_an_array_is_alone() -> None:
    h = Harness(node(cpu=4))
    task = spec(cpu=1, **ALONE)  # type: ignore[arg-type]
    h.ask(ev.SubmitArray(request=1, spec=ArraySpec(task=task, indices=parse_indices("0-2"))))
    states = [task.state for task in h.kernel.state.tasks.values()]
    assert states == [State.STARTING, State.QUEUED, State.QUEUED]


def test_a_key_is_answered_again_though_the_node_has_changed_since() -> None:
    h = Harness(node(cpu=4))
    asked: TaskSpec = spec(cpu=1, **ALONE)  # type: ignore[arg-type]
    first = h.submit(asked, key="k")
    h.step(ev.NodeUp(node=node(cpu=8)))
    assert h.submit(asked, key="k").id == first.id


def test_it_cannot_be_elastic_too() -> None:
    work = replace(TRAIN, workers=2, workers_min=1)
    with pytest.raises(InvalidError, match="leave exclusive"):
        spec(work, cpu=2, **ALONE).check()  # type: ignore[arg-type]
