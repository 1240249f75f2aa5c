"""The order by score, found out only as far as somebody asks.

Scores of all heads would have to be told anew at each step, since they cross over time. But a group
(see `Want`) has a bound from its priority alone: its heads are scored when the bound comes to the
top, and of those only the best is kept until it has had its turn.
"""

from __future__ import annotations

import heapq
import itertools
import math

from zenos.kernel.entries import Entry, Rank, Want
from zenos.kernel.queue import Queue


class Line:
    """Groups, and single entries, in the order in which they are tried.

    passed: who has had its turn, or gets none. An entry that has started meanwhile is left out.
    """

    def __init__(self, queue: Queue, now: float, contention: float) -> None:
        self._queue = queue
        self._now = now
        self._contention = contention
        self._items: list[tuple[Rank, int, Entry | None, Want | None]] = []
        self._numbers = itertools.count()
        self._behind: dict[Want, Rank] = {}
        self.passed: set[str] = set()

    def add(self, want: Want, behind: Rank | None = None) -> None:
        """Add a group; with `behind` those of it that come after that rank."""
        if behind is not None:
            self._behind[want] = behind
        bound = self._queue.bound(want)
        heapq.heappush(self._items, ((-bound, -math.inf, -1), next(self._numbers), None, want))

    def add_one(self, entry: Entry) -> None:
        """Add one entry, whether or not its group is in line."""
        rank = self.rank(entry)
        heapq.heappush(self._items, (rank, next(self._numbers), entry, None))

    def follow(self, entry: Entry, want: Want | None) -> None:
        """Who comes after somebody of its bucket has started: in its turn, which may be now."""
        behind = self._behind.get(want) if want is not None else None
        if want is None or (behind is not None and self.rank(entry) <= behind):
            self.add_one(entry)

    def rank(self, entry: Entry) -> Rank:
        """A smaller one comes first."""
        return self._queue.rank(entry, self._now, self._contention).rank

    def first(self, want: Want) -> Entry | None:
        """The first of a group that isn't passed over."""
        behind = self._behind.get(want)
        return self._queue.best(want, self._now, self._contention, self.passed, behind)

    def pop(self) -> tuple[Entry, Want | None] | None:
        """Whose turn it is, and of which group it comes; None when nobody is left.

        The group has to be added again for the next of it to come.
        """
        while self._items:
            _, _, entry, want = heapq.heappop(self._items)
            if entry is not None:
                if entry.task not in self.passed and self._queue.head(entry.key) is entry:
                    return entry, want
                if want is None or entry.task in self.passed:
                    continue
                # It has started, or its owner may have no more: the next of its group.
            best = self.first(want) if want is not None else None
            if best is not None:
                item = (self.rank(best), next(self._numbers), best, want)
                heapq.heappush(self._items, item)
        return None
