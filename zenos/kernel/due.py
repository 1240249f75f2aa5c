"""When tasks are due for something: the next one, at a cost that grows with the logarithm."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

from zenos.kernel.entries import order_of

LEFT_OVER_MIN: Final = 64  # items that don't count, before they are looked for


class Due:
    """A heap of times. What doesn't count any more is left out when it comes to the top, and all of
    it once it may be most: with a time limit of a year it would come to the top after a year.

    due_at: when a task is due now; infinity when it isn't. An item counts while that is its time.
    """

    def __init__(self, due_at: Callable[[str], float]) -> None:
        self._due_at = due_at
        self._items: list[tuple[float, int, str]] = []
        self._most = LEFT_OVER_MIN

    def __len__(self) -> int:
        return len(self._items)

    def add(self, task_id: str) -> None:
        """A task is due at another time than before, if at all."""
        at = self._due_at(task_id)
        if at == math.inf:
            return
        heapq.heappush(self._items, (at, order_of(task_id), task_id))
        if len(self._items) > self._most:
            self._items = list({item for item in self._items if self._counts(item)})
            heapq.heapify(self._items)
            self._most = 2 * len(self._items) + LEFT_OVER_MIN

    def next_at(self) -> float:
        """When the next task is due; infinity when none is."""
        while self._items:
            if self._counts(self._items[0]):
                return self._items[0][0]
            heapq.heappop(self._items)
        return math.inf

    def pop(self) -> str:
        """The task that is due next, whose item is gone then."""
        return heapq.heappop(self._items)[2]

    def _counts(self, item: tuple[float, int, str]) -> bool:
        return self._due_at(item[2]) == item[0]
