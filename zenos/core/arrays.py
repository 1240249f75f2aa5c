"""Arrays: one submission, many tasks that differ in their index alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, TooLargeError
from zenos.core.fields import about, check_bounds
from zenos.core.specs import ProgramSpec
from zenos.core.task import Principal, State, Task, TaskSpec

_INDICES: Final = re.compile(r"^\s*([0-9]+)(?:-([0-9]+))?(?::([0-9]+))?(?:%([0-9]+))?\s*$")


class Indices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which indices an array has, and how many of its tasks may run at once."""

    first: Annotated[int, about("The first index.", 0, limits.ARRAY_INDEX_MAX)] = 0
    last: Annotated[int, about("The last one, included.", 0, limits.ARRAY_INDEX_MAX)]
    step: Annotated[int, about("From one to the next.", 1, limits.ARRAY_INDEX_MAX)] = 1
    limit: Annotated[
        int | None, about("Tasks that run at once; by default any.", 1, limits.ARRAY_INDEX_MAX)
    ] = None

    @property
    def count(self) -> int:
        """How many they are."""
        return (self.last - self.first) // self.step + 1

    def check(self) -> None:
        """Raises InvalidError for numbers that may not be used, TooLargeError for too many."""
        check_bounds(self)
        if self.last < self.first:
            raise InvalidError(f"cannot count from {self.first} to {self.last}: it is less")
        if self.count > limits.ARRAY_TASKS_MAX:
            raise TooLargeError(
                f"cannot make an array of {self.count} tasks: at most {limits.ARRAY_TASKS_MAX}; let"
                " each task do several indices, or submit several arrays"
            )


def parse_indices(text: str) -> Indices:
    """`0-99`, `0-99:2` (each second one), `0-99%4` (four at once), `7`. Raises InvalidError."""
    found = _INDICES.match(text) if isinstance(text, str) and len(text) <= 64 else None
    if found is None:
        raise InvalidError(f"cannot read the array {repr(text)[:40]}: write 0-99, 0-99:2 or 0-99%4")
    first, last, step, limit = (None if part is None else int(part) for part in found.groups())
    assert first is not None  # noqa: S101 - the expression has it
    most = limits.ARRAY_INDEX_MAX
    named = (
        ("index", first, 0),
        ("index", last, 0),
        ("step", step, 1),
        ("limit", limit, 1),
    )
    for what, number, least in named:
        if number is not None and not least <= number <= most:
            raise InvalidError(
                f"cannot use the array {text.strip()!r}: {number} is no {what}; give a number from "
                f"{least} to {most}"
            )
    made = Indices(
        first=first,
        last=first if last is None else last,
        step=1 if step is None else step,
        limit=limit,
    )
    made.check()
    return made


class ArraySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many tasks that differ in their index alone, which each finds in ZENOS_ARRAY_INDEX."""

    task: Annotated[TaskSpec, about("Each of the tasks; its work is a program.")]
    indices: Annotated[Indices, about("Which there are.")]

    def check(self) -> None:
        """Raises InvalidError for what an array cannot do, TooLargeError for too many tasks."""
        self.indices.check()
        self.task.check()
        if not isinstance(self.task.work, ProgramSpec):
            raise InvalidError("cannot make an array of that: only programs tell tasks apart")


class Array(msgspec.Struct, frozen=True, kw_only=True):
    """One array, as stored. Its tasks are `count` ids in a row, from t`start` on.

    spec: of each of its tasks, unless that has been given another priority. forgotten: how its
    ended tasks had ended that are not remembered any more, by state.
    """

    id: str
    spec: TaskSpec
    indices: Indices
    principal: Principal
    submitted: float
    start: int
    forgotten: dict[State, int] = {}
    format: int = 1

    @property
    def name(self) -> str:
        """The user's name for it, or its id."""
        return self.spec.name or self.id

    @property
    def tasks(self) -> Iterator[str]:
        """The ids of its tasks, in the order of their indices."""
        return (f"t{number}" for number in range(self.start, self.start + self.indices.count))

    def states(self, tasks: Mapping[str, Task]) -> dict[State, int]:
        """How many of its tasks are in each state, forgotten ones included."""
        found = dict(self.forgotten)
        for task_id in self.tasks:
            task = tasks.get(task_id)
            if task is not None:
                found[task.state] = found.get(task.state, 0) + 1
        return found

    def is_open(self, tasks: Mapping[str, Task]) -> bool:
        """Whether a task of it has not ended; the last ones are looked at first."""
        ids = range(self.start + self.indices.count - 1, self.start - 1, -1)
        found = (tasks.get(f"t{number}") for number in ids)
        return any(task is not None and not task.is_ended for task in found)

    def failed(self, tasks: Mapping[str, Task]) -> bool:
        """Whether a task of it has ended otherwise than in success."""
        if any(state is not State.SUCCEEDED for state in self.forgotten):
            return True
        found = (tasks.get(task_id) for task_id in self.tasks)
        return any(t is not None and t.is_ended and t.state is not State.SUCCEEDED for t in found)
