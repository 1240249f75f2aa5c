"""What many tasks have in common is kept once."""

from __future__ import annotations

from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core.arrays import Array, ArraySpec, Indices
from zenos.core.task import Principal, Task
from zenos.kernel.alike import KEPT, Alike


def test_tasks_that_want_the_same_share_what_says_so() -> None:
    h = Harness(node(cpu=1))
    made = [h.submit(spec(cpu=1), principal=Principal(user="ann")) for _ in range(2)]
    made.append(h.submit(spec(cpu=0.5), principal=Principal(user="ann")))
    first, second, other = made
    assert first.spec.resources is second.spec.resources
    assert first.principal is second.principal
    assert other.spec.resources == replace(first.spec.resources, cpu=500)


def test_all_of_an_array_share_one_record_whoever_wanted_the_same_before() -> None:
    h = Harness(node(cpu=1))
    before = h.submit(spec(cpu=1))
    wanted = ArraySpec(task=spec(cpu=1, name="sweep"), indices=Indices(last=2))
    array = h.ask(ev.SubmitArray(request=1, spec=wanted))
    assert isinstance(array, Array)
    tasks = [h.kernel.state.tasks[task] for task in array.tasks]
    assert [task.spec is array.spec for task in tasks] == [True] * 3
    assert array.spec.resources is h.now(before).spec.resources


def test_a_repeated_request_is_the_same_request_all_the_same() -> None:
    h = Harness()
    wants = spec(cpu=1, name="once")
    first = h.ask(ev.Submit(request=1, spec=wants, key="k", principal=Principal(user="ann")))
    again = ev.Submit(
        request=2, spec=spec(cpu=1, name="once"), key="k", principal=Principal(user="ann")
    )
    answer = h.ask(again)
    assert isinstance(first, Task)
    assert isinstance(answer, Task)
    assert answer.id == first.id


def test_no_more_is_kept_than_there_is_room_for() -> None:
    alike = Alike()
    for cpu in range(2 * KEPT):
        alike.spec(replace(spec(), resources=replace(spec().resources, cpu=cpu + 1)))
    assert len(alike._requests) <= KEPT
