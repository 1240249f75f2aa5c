"""Deadlines of all who wait in an event loop, with one timer: most of them never come."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

SPENT_MAX = 1000  # that may be kept beside as many as are still waited for


class Deadlines:
    """Ends futures whose time has come: their result is False. Belongs to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, asyncio.Future[bool]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer fires
        self._most = SPENT_MAX

    def watch(self, future: asyncio.Future[bool], deadline: float) -> None:
        """End it then (on the monotonic clock), unless it is done."""
        if len(self._heap) > self._most:  # those that were done in time
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + SPENT_MAX
        heapq.heappush(self._heap, (deadline, next(self._numbers), future))
        if self._timer is None or deadline < self._due:
            self._arm(deadline)

    def close(self) -> None:
        """End nothing any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = deadline
        left_s = max(0.0, deadline - time.monotonic())
        self._timer = self._loop.call_later(left_s, self._fire)

    def _fire(self) -> None:
        self._timer, now = None, time.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].done()):
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_result(False)
        if self._heap:
            self._arm(self._heap[0][0])
