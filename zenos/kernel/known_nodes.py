"""What is remembered of a need: which nodes have room for it, and what it costs on which others."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection
from typing import Final

LEFT_OVER_MIN: Final = 64  # of a heap's items that don't count any more, before it is made anew


class KnownNodes:
    """Which nodes have room for a need without anybody's giving way, and which if some do.

    seen: up to which touch nodes have been noted. Costs are in a heap, those that count are in
    `costs`; who would give way on a node can change with time alone, so each may have its end.
    Nodes are noted for as long as the kernel lives, so heaps are made anew when most of them is
    left over.

    A node that has changed isn't looked at before it may be the cheapest: until then its cost is
    the least that it might be (`unsure`). `look` is called to look at one: it has to say one of
    `forget`, `has_room` and `costs_there` of it.
    """

    __slots__ = ("_ends", "_ends_of", "_heap", "costs", "fits", "seen", "unsure")

    def __init__(self) -> None:
        self.seen = 0
        self.fits: set[str] = set()
        self.costs: dict[str, int] = {}
        self.unsure: set[str] = set()  # of those, whom nobody has looked at since
        self._heap: list[tuple[int, str]] = []
        self._ends: list[tuple[float, str]] = []
        self._ends_of: dict[str, float] = {}

    def helps(self, look: Callable[[str], None]) -> bool:
        """Whether it takes somebody's giving way, and that is enough."""
        return not self.fits and self.can_be_made(look)

    def can_be_made(self, look: Callable[[str], None]) -> bool:
        """Whether there is a node where somebody's giving way is enough."""
        return len(self.costs) > len(self.unsure) or self.cheapest((), look) is not None

    @property
    def size(self) -> int:
        """How many items its heaps have."""
        return len(self._heap) + len(self._ends)

    def forget(self, node: str) -> None:
        """A node has neither room for it, nor would it if some gave way."""
        self.fits.discard(node)
        if self.costs.pop(node, None) is not None:
            self.unsure.discard(node)
            self._ends_of.pop(node, None)

    def has_room(self, node: str) -> None:
        """Nobody needs to give way there."""
        self.forget(node)
        self.fits.add(node)

    def may_cost(self, node: str, least: int) -> None:
        """Nobody has looked at a node since it has changed. It has no room without somebody's
        giving way, and that would be no less.
        """
        self._ends_of.pop(node, None)
        self.unsure.add(node)
        self._cost(node, least)

    def costs_there(self, node: str, cost: int, end: float) -> None:
        """That much is taken back there, until `end`: then it may be by others."""
        self.unsure.discard(node)
        self._cost(node, cost)
        if end == math.inf:
            self._ends_of.pop(node, None)
        elif self._ends_of.get(node) != end:
            self._ends_of[node] = end
            heapq.heappush(self._ends, (end, node))
            if len(self._ends) > 2 * len(self._ends_of) + LEFT_OVER_MIN:
                self._ends = [(at, name) for name, at in self._ends_of.items()]
                heapq.heapify(self._ends)

    def _cost(self, node: str, cost: int) -> None:
        self.fits.discard(node)
        if self.costs.get(node) != cost:
            self.costs[node] = cost
            heapq.heappush(self._heap, (cost, node))
            if len(self._heap) > 2 * len(self.costs) + LEFT_OVER_MIN:
                self._heap = [(there, name) for name, there in self.costs.items()]
                heapq.heapify(self._heap)

    def over(self, now: float) -> set[str]:
        """Nodes that are to be looked at again since their end has come."""
        found: set[str] = set()
        while self._ends and self._ends[0][0] <= now:
            end, node = heapq.heappop(self._ends)
            if self._ends_of.get(node) == end:
                del self._ends_of[node]
                found.add(node)
        return found

    def cheapest(self, taken: Collection[str], look: Callable[[str], None]) -> str | None:
        """Where the least is taken back, of the nodes that aren't taken."""
        passed: list[tuple[int, str]] = []
        best: str | None = None
        while self._heap:
            cost, node = self._heap[0]
            if self.costs.get(node) != cost:
                heapq.heappop(self._heap)
            elif node in taken:
                passed.append(heapq.heappop(self._heap))
            elif node in self.unsure:
                look(node)
            else:
                best = node
                break
        for item in passed:
            heapq.heappush(self._heap, item)
        return best
