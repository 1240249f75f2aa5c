"""Which waiting thread is next. Pure: no clock, no I/O.

Ranks by score cross over time and so fit no heap (as in the kernel's queue of tasks). Hence
buckets: all threads that a policy doesn't tell apart otherwise than by their order; first in first
out inside, and only the heads of buckets are ranked.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Literal, NamedTuple, get_args

from zenos.core import priority

Policy = Literal["fifo", "priority", "aged", "least_attained"]
POLICIES: Final = get_args(Policy)


class Waiter(NamedTuple):
    """A waiting thread. queued: when it came, in seconds; expected_s: its expected run time."""

    order: int
    thread: int
    group: int
    priority: int
    queued: float
    expected_s: float


class Waiting:
    """The threads that wait.

    1. fifo: in the order in which they came.
    2. priority: the higher first; equals as in 1.
    3. aged: by priority + ageing · P(T), where T = waited / (expected time · (1 + contention)), by
       the same code as the kernel's tasks (zenos/core/priority.py); equals as there: the shorter
       first, then as in 1.
    4. least_attained: of the group that has had the least time on lanes; inside a group as in 1.
    """

    def __init__(self, policy: Policy, ageing: float, attained: Callable[[int], float]) -> None:
        """attained: seconds on lanes that a group has had so far."""
        self._policy = policy
        self._ageing = ageing
        self._attained = attained
        self._buckets: dict[Hashable, list[Waiter]] = {}
        self._live: dict[int, Waiter] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, thread: int) -> bool:
        return thread in self._live

    def __iter__(self) -> Iterator[int]:
        return iter(self._live)

    def push(self, waiter: Waiter) -> None:
        """One more; it has its place by `order`, which no two share."""
        self._live[waiter.thread] = waiter
        heapq.heappush(self._buckets.setdefault(self._key(waiter), []), waiter)

    def discard(self, thread: int) -> bool:
        """Take one out; whether it was there."""
        return self._live.pop(thread, None) is not None

    def pop(self, contention: float, now: float) -> int:
        """Take the next one out. There must be one."""
        best: tuple[float, ...] | None = None
        chosen: list[Waiter] = []
        for key, bucket in list(self._buckets.items()):
            while bucket and self._live.get(bucket[0].thread) is not bucket[0]:
                heapq.heappop(bucket)  # taken out meanwhile
            if not bucket:
                del self._buckets[key]
                continue
            rank = self._rank(bucket[0], contention, now)
            if best is None or rank < best:
                best, chosen = rank, bucket
        waiter = heapq.heappop(chosen)
        del self._live[waiter.thread]
        return waiter.thread

    def _key(self, waiter: Waiter) -> Hashable:
        match self._policy:
            case "fifo":  # 1
                return None
            case "priority":  # 2
                return waiter.priority
            case "aged":  # 3
                return waiter.priority, math.frexp(waiter.expected_s)[1]
            case "least_attained":  # 4
                return waiter.group

    def _rank(self, waiter: Waiter, contention: float, now: float) -> tuple[float, ...]:
        match self._policy:
            case "fifo":  # 1
                return (waiter.order,)
            case "priority":  # 2
                return (-waiter.priority, waiter.order)
            case "aged":  # 3
                expected_s = priority.execution_s(waiter.expected_s, contention)
                score = priority.score(
                    waiter.priority, self._ageing, now - waiter.queued, expected_s
                )
                return (-score, waiter.expected_s, waiter.order)
            case "least_attained":  # 4
                return (self._attained(waiter.group), waiter.order)
