"""Rows of arrays, and of their tasks: the specification that those share is written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.core.arrays import Array
from zenos.core.specs import ProgramSpec
from zenos.core.task import Task, TaskSpec

# In the place of a specification that stands with the array; no program is called that.
ARRAYS_OWN: Final = TaskSpec(work=ProgramSpec(argv=[""]))


def without_spec(task: Task) -> Task:
    """The task as its row has it."""
    shares = task.array is not None and not task.array.own
    return replace(task, spec=ARRAYS_OWN) if shares else task


def with_specs(tasks: Iterable[Task], arrays: Mapping[str, Array]) -> dict[str, Task]:
    """Tasks by id as they are, from their rows; one object for all of an array."""
    return {
        task.id: replace(task, spec=arrays[task.array.id].spec)
        if task.array is not None and not task.array.own
        else task
        for task in tasks
    }


def row(array: Array) -> dict[str, object]:
    """Of one array."""
    return {
        "id": array.id,
        "user": array.principal.user,
        "project": array.principal.project,
        "record": msgspec.json.encode(array).decode(),
    }
