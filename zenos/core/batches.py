"""Several tasks in one submission, which may come after each other by name: all or none."""

from __future__ import annotations

import graphlib
from typing import Annotated

import msgspec

from zenos.core import limits
from zenos.core.dependencies import parse_after
from zenos.core.errors import InvalidError, RefusedError, TooLargeError, ZenosError
from zenos.core.fields import within
from zenos.core.specs import ServeSpec
from zenos.core.task import Task, TaskSpec
from zenos.core.wording import nearest


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tasks that are submitted together, each with a name of its own among them.

    `after` of one may name another, wherever that stands; any other name is of a task that was
    there before.
    """

    tasks: Annotated[
        tuple[TaskSpec, ...],
        within("The tasks, in any order.", minItems=1, maxItems=limits.BATCH_TASKS_MAX),
    ]

    def check(self) -> None:
        """Raises ZenosError for the first task that can't be, and for a cycle, which it names."""
        if not self.tasks:
            raise InvalidError("cannot submit nothing: give at least one task")
        if len(self.tasks) > limits.BATCH_TASKS_MAX:
            raise TooLargeError(
                f"cannot submit {len(self.tasks)} tasks at once: at most {limits.BATCH_TASKS_MAX};"
                " an array does the same for many inputs"
            )
        seen: set[str] = set()
        for number, task in enumerate(self.tasks, start=1):
            if not task.name:
                raise InvalidError(f"cannot submit task {number}: give it a name")
            if task.name in seen:
                raise InvalidError(f"cannot submit two tasks called {task.name!r}: name one anew")
            seen.add(task.name)
            try:
                task.check()
            except ZenosError as error:
                raise type(error)(f"{error.message} (task {task.name})") from None
            if isinstance(task.work, ServeSpec):
                raise RefusedError("cannot submit a replica by itself: deploy the model")
        self.ordered()

    def ordered(self) -> list[TaskSpec]:
        """Each after those that it waits for. Raises InvalidError with the cycle, if one is."""
        by_name = {task.name: task for task in self.tasks}
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for task in self.tasks:
            before = (parse_after(entry).task for entry in task.after)
            sorter.add(task.name, *(name for name in before if name in by_name))
        try:
            return [by_name[name] for name in sorter.static_order()]
        except graphlib.CycleError as error:
            cycle = " → ".join(error.args[1])
            raise InvalidError(
                f"cannot order the tasks: {cycle}, each after the one before it; none could start"
            ) from None

    def hint(self, name: str) -> str:
        """The task of these that is called most like that, in words; empty without one."""
        return nearest(name, [task.name for task in self.tasks])


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that were submitted together, in an order in which each comes after its parents."""

    tasks: list[Task]

    @property
    def id(self) -> str:
        """The first id and the last: `t5-t9`, all those between included."""
        return f"{self.tasks[0].id}-{self.tasks[-1].id}"
