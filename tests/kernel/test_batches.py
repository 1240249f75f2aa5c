"""Several tasks in one submission: all of them or none, in whatever order they stand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.harness import PROGRAM, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.batches import Batch, BatchSpec
from zenos.core.config import Config
from zenos.core.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    QuotaError,
    RefusedError,
    TooLargeError,
    UnfittableError,
    ZenosError,
)
from zenos.core.quotas import Quota
from zenos.core.specs import ServeSpec
from zenos.core.task import State, TaskSpec
from zenos.kernel import gate

REPLICA = ServeSpec(model="m:1", deployment="m")


def named(name: str, *after: str, cpu: float = 1, retries: int = 0) -> TaskSpec:
    return spec(PROGRAM, cpu=cpu, name=name, after=after, retries=retries)


def submit(h: Harness, *tasks: TaskSpec, key: str | None = None) -> Batch:
    answer = h.ask(ev.SubmitBatch(request=1, spec=BatchSpec(tasks=tasks), key=key))
    assert isinstance(answer, Batch)
    return answer


def test_each_starts_once_those_before_it_have_succeeded() -> None:
    h = Harness(node(cpu=4))
    old = h.submit(named("first", cpu=4))  # of that name there is a newer one now
    h.run(old)
    first, middle, last = submit(
        h, named("last", "middle", "any:first"), named("middle", "first"), named("first")
    ).tasks
    assert [first.spec.name, middle.spec.name, last.spec.name] == ["first", "middle", "last"]
    assert middle.after == (first.id,)
    assert last.after == (middle.id, f"any:{first.id}")
    h.exit(old)
    for task in (first, middle, last):
        assert h.now(task).state is State.STARTING
        h.run(task)
        h.exit(task)


def test_an_end_before_others_in_the_file_cancels_them() -> None:
    h = Harness()
    first, second = submit(h, named("b", "a"), named("a")).tasks
    h.run(first)
    h.exit(first, exit_code=1)
    assert h.now(second).state is State.CANCELLED


@pytest.mark.parametrize(
    ("tasks", "error", "said"),
    [
        ([named("a", "c"), named("b", "a"), named("c", "b")], InvalidError, "→"),
        ([named("a", "a")], InvalidError, "a → a"),
        ([named("a"), named("a")], InvalidError, "two tasks called 'a'"),
        ([named("a"), spec()], InvalidError, "task 2: give it a name"),
        ([], InvalidError, "cannot submit nothing"),
        ([named("a"), named("b", retries=-1)], InvalidError, "task b"),
        ([named("a"), named("b", cpu=900)], UnfittableError, "cannot ever fit"),
        ([named("train"), named("b", "trian")], NotFoundError, "train"),
        (
            [named("a"), spec(ServeSpec(model="m:1", deployment="m"), name="r")],
            RefusedError,
            "replica",
        ),
        ([named(f"n{n}") for n in range(4)], QuotaError, "cannot submit 4 tasks: local has 0 of 3"),
        ([named(f"n{n}") for n in range(limits.BATCH_TASKS_MAX + 1)], TooLargeError, "at once"),
    ],
)
def test_where_one_cannot_be_none_is(
    tasks: list[TaskSpec], error: type[ZenosError], said: str
) -> None:
    h = Harness(config=Config(user_quotas={"*": Quota(tasks=3)}))
    with pytest.raises(error, match=said):
        submit(h, *tasks, key="k")
    assert not h.kernel.state.tasks
    assert not h.kernel.state.keys  # it may be sent again, mended, under the same key


def test_a_name_that_many_come_after_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    h = Harness(node())
    before = h.submit(named("before"))
    looked_for: list[str] = []

    def find(name: str, *known: Any) -> Any:
        looked_for.append(name)
        return found(name, *known)

    found = gate.find
    monkeypatch.setattr(gate, "find", find)
    batch = submit(h, *(named(f"n{number}", "before", "any:before") for number in range(20)))
    assert all(task.after == (before.id, f"any:{before.id}") for task in batch.tasks)
    assert len(looked_for) == 2  # with `any:` and without


def test_a_cycle_is_named_in_its_order() -> None:
    tasks = (named("a", "c"), named("b", "a"), named("c", "any:b"), named("d", "c"))
    with pytest.raises(InvalidError, match="cannot order") as found:
        BatchSpec(tasks=tasks).check()
    circle = found.value.message.partition(": ")[2].partition(",")[0].split(" → ")
    assert sorted(circle[1:]) == ["a", "b", "c"]
    assert circle[0] == circle[-1]
    before = {"a": "c", "b": "a", "c": "b"}
    assert all(before[later] == earlier for earlier, later in pairwise(circle))


def test_the_same_key_gives_the_same_tasks_also_after_a_restart() -> None:
    h = Harness(config=Config(ended_tasks_kept=1))
    tasks = (named("b", "a"), named("a"))
    made = submit(h, *tasks, key="k")
    h = h.restarted()
    assert [task.id for task in submit(h, *tasks, key="k").tasks] == [t.id for t in made.tasks]
    with pytest.raises(ConflictError):
        submit(h, named("a"), key="k")
    h.run(made.tasks[0])
    h.exit(made.tasks[0], exit_code=1)
    h.wait(1)
    with pytest.raises(ConflictError, match="gone"):
        submit(h, *tasks, key="k")


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_any_tasks_are_in_an_order_or_wait_in_a_circle(parents: list[list[int]]) -> None:
    count = len(parents)
    tasks = [
        named(f"n{number}", *(f"n{parent}" for parent in those if parent < count))
        for number, those in enumerate(parents)
    ]
    try:
        ordered = BatchSpec(tasks=tuple(tasks)).ordered()
    except InvalidError:
        left = {task.name: set(task.after) for task in tasks}
        while free := [name for name, before in left.items() if not before & left.keys()]:
            for name in free:
                del left[name]
        assert left
        return
    place = {task.name: number for number, task in enumerate(ordered)}
    assert len(place) == count
    assert all(place[before] < place[task.name] for task in ordered for before in task.after)
