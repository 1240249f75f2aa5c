"""Arrays: accepted as one, run as many, never more at once than may be."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import Reply
from zenos.core.arrays import Array, ArraySpec, Indices, parse_indices
from zenos.core.config import Config
from zenos.core.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RefusedError,
    TooLargeError,
    UnfittableError,
)
from zenos.core.task import HOLDING, Outcome, Principal, State, Task

SMALL = {"cpu": 0.1, "memory": "5MB"}


def tasks_of(h: Harness, array: Array) -> list[Task]:
    return [h.kernel.state.tasks[task_id] for task_id in array.tasks]


def at_work(h: Harness, array: Array) -> list[Task]:
    return [task for task in tasks_of(h, array) if task.state in HOLDING]


@pytest.mark.parametrize(
    ("text", "indices", "limit"),
    [
        ("0-3", [0, 1, 2, 3], None),
        ("5", [5], None),
        ("1-9:4", [1, 5, 9], None),
        (" 2-6:2%2 ", [2, 4, 6], 2),
        ("0-0%1", [0], 1),
    ],
)
def test_indices_as_people_write_them(text: str, indices: list[int], limit: int | None) -> None:
    made = parse_indices(text)
    assert list(range(made.first, made.last + 1, made.step)) == indices
    assert (made.count, made.limit) == (len(indices), limit)


@pytest.mark.parametrize(
    "text",
    ["", "a", "-1", "0-", "9-0", "0-9:0", "0-9%0", "0-9%%2", "1.5", "0-99999999999", "٣"],
)
def test_other_indices_are_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_indices(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0-99999999999", "cannot use the array '0-99999999999': 99999999999 is no index; give a"),
        ("0-9:0", "cannot use the array '0-9:0': 0 is no step; give a number from 1 to "),
        ("0-9%0", "cannot use the array '0-9%0': 0 is no limit; give a number from 1 to "),
    ],
)
def test_a_number_of_an_array_is_refused_in_the_words_it_was_written_in(
    text: str, says: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_indices(text)
    assert refused.value.message.startswith(says)


def test_an_array_of_ten_millions_is_refused_with_the_limit() -> None:
    with pytest.raises(TooLargeError, match=r"array of 10000000 tasks: at most 10000"):
        parse_indices("0-9999999")
    h = Harness()
    with pytest.raises(TooLargeError):
        h.ask(
            ev.SubmitArray(request=1, spec=ArraySpec(task=spec(), indices=Indices(last=9_999_999)))
        )
    assert h.kernel.state.tasks == {}
    assert h.kernel.state.arrays == {}


def test_one_submission_one_step_one_row_one_line() -> None:
    h = Harness()
    array = h.submit_array(spec(**SMALL, name="sweep"), "2-6:2", key="k")
    changes = h.steps[-1].changes
    assert set(changes.tasks) == {"t1", "t2", "t3"}
    assert changes.arrays == {"array-1": array}
    assert [(row.action, row.subject) for row in changes.audit] == [("submit", "array-1")]
    assert len(changes.keys) == 1
    assert [line.type for line in changes.events].count("submitted") == 1
    assert [task.label for task in tasks_of(h, array)] == ["sweep[2]", "sweep[4]", "sweep[6]"]
    assert [task.array.index for task in tasks_of(h, array) if task.array] == [2, 4, 6]
    # Again, and after a restart.
    assert h.submit_array(spec(**SMALL, name="sweep"), "2-6:2", key="k") == array
    h = h.restarted()
    assert h.submit_array(spec(**SMALL, name="sweep"), "2-6:2", key="k") == array
    assert len(h.kernel.state.tasks) == 3
    with pytest.raises(ConflictError):
        h.submit_array(spec(**SMALL, name="sweep"), "2-8:2", key="k")


def test_as_many_at_once_as_may_be_and_the_next_when_one_ends() -> None:
    h = Harness()
    array = h.submit_array(spec(**SMALL), "0-9%3")
    assert [task.id for task in at_work(h, array)] == ["t1", "t2", "t3"]
    waiting = h.now(tasks_of(h, array)[3])
    assert h.kernel.state.waiting_for(waiting) == "waits for its turn: 3 of array-1 at once"
    h.run(tasks_of(h, array)[1])
    h.wait(20_000)  # who waits because of the limit isn't overdue by that
    h.exit(tasks_of(h, array)[1], exit_code=1)
    assert [task.id for task in at_work(h, array)] == ["t1", "t3", "t4"]
    assert tasks_of(h, array)[3].waited_s == 0
    h = h.restarted()
    assert [task.id for task in at_work(h, array)] == ["t1", "t3", "t4"]
    for number in range(len(tasks_of(h, array))):
        task = tasks_of(h, array)[number]
        if not task.is_ended:
            h.run(task)
            h.exit(task)
            assert len(at_work(h, array)) <= 3
    assert array.states(h.kernel.state.tasks) == {State.FAILED: 1, State.SUCCEEDED: 9}


def test_a_task_that_waits_for_its_retry_or_is_held_gives_its_place_to_another() -> None:
    h = Harness()
    array = h.submit_array(spec(**SMALL, retries=1), "0-2%1")
    first, second, third = tasks_of(h, array)
    h.run(first)
    h.exit(first, exit_code=1)
    assert [task.id for task in at_work(h, array)] == [second.id]
    h.suspend(third)
    h.wait(400)
    assert h.kernel.state.crowded == {first.id}
    h.run(second)
    h.exit(second)
    assert [task.id for task in at_work(h, array)] == [first.id]
    h.resume(third)
    assert h.now(third).state is State.QUEUED
    h.run(first)
    h.exit(first)
    assert [task.id for task in at_work(h, array)] == [third.id]


def test_who_has_a_place_and_waits_for_room_keeps_it_over_a_restart() -> None:
    h = Harness(node(cpu=10))
    array = h.submit_array(spec(**SMALL), "0-3%1")
    first, second, third, _ = tasks_of(h, array)
    h.cordon("local", "cordon")
    h.wait(10)
    h.exit(first)
    h = h.restarted()
    queue = h.kernel.state.scheduler.queue
    assert second.id in queue
    assert third.id not in queue
    h.cordon("local", None)
    assert [task.id for task in at_work(h, array)] == [second.id]


def test_cancel_ends_all_of_it_with_one_row() -> None:
    h = Harness()
    array = h.submit_array(spec(**SMALL), "0-5%2")
    h.run(tasks_of(h, array)[0])
    h.ask(ev.CancelArray(request=1, array=array.id))
    assert [row.action for row in h.steps[-1].changes.audit] == ["cancel"]
    assert [task.state for task in tasks_of(h, array)[2:]] == [State.CANCELLED] * 4
    assert {stop.task for stop in h.stopped} == {"t1", "t2"}
    h.ask(ev.CancelArray(request=1, array=array.id))
    assert h.steps[-1].changes.audit == []
    with pytest.raises(NotFoundError):
        h.ask(ev.CancelArray(request=1, array="array-9"))
    them = Principal(user="you", project="other")
    with pytest.raises(RefusedError):
        h.ask(ev.CancelArray(request=1, array=array.id, principal=them))


def test_an_array_comes_after_others_and_others_after_it() -> None:
    h = Harness(node(cpu=10))
    before = h.submit(spec(**SMALL, name="before"))
    array = h.submit_array(spec(**SMALL, name="sweep", after=("before",)), "0-2")
    child = h.submit(spec(**SMALL, after=("sweep",)))
    whatever = h.submit(spec(**SMALL, after=("any:sweep",)))
    assert at_work(h, array) == []
    h.run(before)
    h.exit(before)
    assert len(at_work(h, array)) == 3
    assert h.kernel.state.waiting_for(h.now(child)) == "comes after sweep (not all of it has ended)"
    first, second, third = tasks_of(h, array)
    for task in (first, third):
        h.run(task)
        h.exit(task)
    assert h.now(child).state is State.QUEUED
    h = h.restarted()
    h.run(second)
    h.exit(second, exit_code=1)
    assert (h.now(child).state, h.now(child).stopping) == (State.CANCELLED, "t3 has failed")
    assert h.now(whatever).state is State.STARTING
    late = h.submit(spec(**SMALL, after=(array.id,)))
    assert late.stopping == "a task of array-2 has not succeeded"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_failure_in_an_array_counts_in_whichever_order_a_step_hears_of_its_ends(
    order: tuple[int, int],
) -> None:
    h = Harness(node(cpu=10))
    array = h.submit_array(spec(**SMALL), "0-1")
    child = h.submit(spec(**SMALL, after=(array.id,)))
    whatever = h.submit(spec(**SMALL, after=(f"any:{array.id}",)))
    for task in tasks_of(h, array):
        h.run(task)
    ends = [
        ev.WorkerExited(task=task, generation=1, outcome=Outcome(exit_code=code))
        for task, code in zip(array.tasks, (1, 0), strict=True)
    ]
    h.step(*(ends[place] for place in order))
    assert h.now(child).state is State.CANCELLED
    assert h.now(whatever).state is State.STARTING


class Counting(dict[str, Task]):
    """Tasks, and how often one was looked up."""

    lookups = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.lookups += 1
        return super().get(key, default)

    def __getitem__(self, key: str) -> Task:
        self.lookups += 1
        return super().__getitem__(key)


def test_what_comes_after_an_array_costs_as_much_for_each_task_however_long_the_array_is() -> None:
    def lookups(count: int) -> int:
        h = Harness(node(cpu=1))
        known = h.kernel.state.tasks = Counting(h.kernel.state.tasks)
        indices = parse_indices(f"0-{count - 1}")
        for after in ((), ("array-1",)):
            task = spec(cpu=0.001, memory="4MiB", after=after)
            event = ev.SubmitArray(request=0, spec=ArraySpec(task=task, indices=indices))
            h.kernel.step([event], h.clock.now())
        ends = [
            ev.WorkerExited(task=f"t{number}", generation=1, outcome=Outcome(exit_code=0))
            for number in range(1, count + 1)
        ]
        for end in (ends[:-1], ends[-1:]):
            h.kernel.step([*end], h.clock.now())
        assert all(h.kernel.state.tasks[f"t{count + 1 + k}"].generation for k in range(count))
        return known.lookups

    assert lookups(400) < 6 * lookups(100)


def test_what_of_it_is_forgotten_still_counts_until_all_is() -> None:
    h = Harness(node(cpu=10), config=Config(ended_tasks_kept=1))
    array = h.submit_array(spec(**SMALL, name="sweep"), "0-2")
    first, second, third = tasks_of(h, array)
    for task, code in ((first, 1), (second, 0)):
        h.run(task)
        h.exit(task, exit_code=code)
    now = h.kernel.state.arrays[array.id]
    assert now.forgotten == {State.FAILED: 1}
    assert now.states(h.kernel.state.tasks) == {
        State.FAILED: 1,
        State.SUCCEEDED: 1,
        State.STARTING: 1,
    }
    assert h.submit(spec(after=("sweep",))).stopping == "a task of array-1 has not succeeded"
    h.run(third)
    h.exit(third)
    other = h.submit(spec(**SMALL))
    h.run(other)
    h.exit(other)
    assert h.kernel.state.arrays == {}
    assert h.steps[-1].changes.deleted_arrays == [array.id]


def test_what_no_array_can_be_is_said() -> None:
    h = Harness()
    with pytest.raises(InvalidError, match="only programs"):
        h.submit_array(spec(TRAIN), "0-3")
    with pytest.raises(UnfittableError, match="cannot ever fit"):
        h.submit_array(spec(gpu=8), "0-3")
    with pytest.raises(NotFoundError):
        h.submit_array(spec(after=("nobody",)), "0-3")
    with pytest.raises(InvalidError, match="ids look like that"):
        h.submit(spec(name="array-3"))
    assert h.kernel.state.arrays == {}


def test_another_priority_of_one_task_is_its_own() -> None:
    h = Harness(node(cpu=1))
    array = h.submit_array(spec(cpu=1, name="sweep"), "0-2")
    third = tasks_of(h, array)[2]
    h.nice(third, 75)
    assert [task.array.own for task in tasks_of(h, array) if task.array] == [False, False, True]
    first = tasks_of(h, array)[0]
    h.run(first)
    h.exit(first)
    assert [task.id for task in at_work(h, array)] == [third.id]


def test_a_large_array_takes_little_memory_for_each_task() -> None:
    h = Harness()
    task = spec(**SMALL, name="sweep")
    wanted = ArraySpec(task=task, indices=Indices(last=limits.ARRAY_TASKS_MAX - 1, limit=4))
    step = h.kernel.step([ev.SubmitArray(request=1, spec=wanted)], h.clock.now())
    assert isinstance(step.actions[0], Reply)
    tasks = [h.kernel.state.tasks[f"t{n}"] for n in range(1, limits.ARRAY_TASKS_MAX + 1)]
    assert {id(task.spec) for task in tasks} == {id(task)}
    each = sys.getsizeof(tasks[-1]) + sys.getsizeof(tasks[-1].array) + sys.getsizeof(tasks[-1].id)
    assert each < 700
