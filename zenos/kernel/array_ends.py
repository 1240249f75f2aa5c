"""Which arrays have ended, and which of them not in success, counted as their tasks change.

Looked up in the tasks themselves that would take as long as the array is, for each task that comes
after it: a minute where one of thousands comes after another.
"""

from __future__ import annotations

from collections.abc import Iterable

from zenos.core.arrays import Array
from zenos.core.task import State, Task


class ArrayEnds:
    """Of each array how many tasks have not ended, and whether one has ended without success."""

    def __init__(self, arrays: Iterable[Array], tasks: Iterable[Task]) -> None:
        self._alive: dict[str, int] = {}
        self._failed = {
            array.id
            for array in arrays
            if any(state is not State.SUCCEEDED for state in array.forgotten)
        }
        for task in tasks:
            self.change(None, task)

    def change(self, old: Task | None, new: Task) -> None:
        """A task is there, or is another than it was."""
        if new.array is None:
            return
        more = (not new.is_ended) - (old is not None and not old.is_ended)
        if more:
            self._alive[new.array.id] = self._alive.get(new.array.id, 0) + more
        if new.is_ended and new.state is not State.SUCCEEDED:
            self._failed.add(new.array.id)

    def forget(self, array: str) -> None:
        """An array is not remembered any more."""
        self._alive.pop(array, None)
        self._failed.discard(array)

    def is_open(self, array: str) -> bool:
        """Whether a task of it has not ended."""
        return self._alive.get(array, 0) > 0

    def has_failed(self, array: str) -> bool:
        """Whether a task of it has ended otherwise than in success."""
        return array in self._failed
