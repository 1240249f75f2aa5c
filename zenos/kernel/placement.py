"""Where something fits: an index over the nodes, so that nobody has to look at all of them.

Nodes stand on shelves by how many of their devices are entirely free, and each shelf is a tree of
maxima over the nodes in their order. What wants `n` devices looks on the shelf with the fewest that
suffice first (best fit: whole nodes stay whole for those that want them, and what wants no GPU goes
where none is free), and there takes the first node that fits.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import Final

from zenos.core.resources import Resources

WHOLE: Final = 1000  # milli-GPUs in one device

# The most that one node of several has free: cpu, gpu, memory, gpu_memory, and of one device.
Most = tuple[int, int, int, int, int]


def _most(a: Most | None, b: Most | None) -> Most | None:
    if a is None:
        return b
    if b is None:
        return a
    return (
        a[0] if a[0] > b[0] else b[0],
        a[1] if a[1] > b[1] else b[1],
        a[2] if a[2] > b[2] else b[2],
        a[3] if a[3] > b[3] else b[3],
        a[4] if a[4] > b[4] else b[4],
    )


class _Shelf:
    """A tree of maxima: leaves `size` to `2 * size - 1`, the root at 1."""

    __slots__ = ("size", "tree")

    def __init__(self, size: int) -> None:
        self.size = size
        self.tree: list[Most | None] = [None] * (2 * size)

    def put(self, position: int, most: Most | None) -> None:
        tree = self.tree
        at = self.size + position
        tree[at] = most
        at //= 2
        while at:
            new = _most(tree[2 * at], tree[2 * at + 1])
            if new == tree[at]:
                break
            tree[at] = new
            at //= 2

    def fitting(self, least: Most) -> Iterator[int]:
        """Positions that have at least that much of each, in order."""
        tree, size = self.tree, self.size
        cpu, gpu, memory, gpu_memory, share = least
        stack = [1]
        while stack:
            at = stack.pop()
            most = tree[at]
            if (
                most is None
                or most[0] < cpu
                or most[1] < gpu
                or most[2] < memory
                or most[3] < gpu_memory
                or most[4] < share
            ):
                continue
            if at >= size:
                yield at - size
            else:
                stack += (2 * at + 1, 2 * at)


class Index:
    """What nodes have free, by their positions. A node that isn't on a shelf is not there."""

    def __init__(self) -> None:
        self._size = 1
        self._shelves: dict[int, _Shelf] = {}
        self._levels: list[int] = []  # of the shelves, in order
        self._level_of: list[int | None] = []

    def put(self, position: int, free: Resources, whole: int, share: int) -> None:
        """A node has so much free: `whole` devices entirely, `share` milli-GPUs of one device."""
        self._grow(position + 1)
        before = self._level_of[position]
        if before is not None and before != whole:
            self._shelves[before].put(position, None)
            self._drop_if_empty(before)
        if whole not in self._shelves:
            self._shelves[whole] = _Shelf(self._size)
            insort(self._levels, whole)
        # What wants nothing of something fits where less than nothing of it is free.
        memory, gpu_memory = max(0, free.memory), max(0, free.gpu_memory)
        most = (max(0, free.cpu), max(0, free.gpu), memory, gpu_memory, share)
        self._shelves[whole].put(position, most)
        self._level_of[position] = whole

    def remove(self, position: int) -> None:
        """A node takes nothing."""
        self._grow(position + 1)
        level = self._level_of[position]
        if level is not None:
            self._level_of[position] = None
            self._shelves[level].put(position, None)
            self._drop_if_empty(level)

    def _drop_if_empty(self, level: int) -> None:
        if self._shelves[level].tree[1] is None:
            del self._shelves[level]
            self._levels.remove(level)

    def fitting(self, request: Resources) -> Iterator[int]:
        """Positions of nodes with room for it, the best first; devices' memory is left aside."""
        whole, share = divmod(request.gpu, WHOLE)
        if whole:
            share = 0
        least = (request.cpu, request.gpu, request.memory, request.gpu_memory, share)
        for level in self._levels:
            if level >= whole:
                yield from self._shelves[level].fitting(least)

    def roots(self) -> list[tuple[int, Most]]:
        """Of each shelf its level and the most that a node on it has."""
        found = []
        for level in self._levels:
            most = self._shelves[level].tree[1]
            if most is not None:
                found.append((level, most))
        return found

    def _grow(self, count: int) -> None:
        while len(self._level_of) < count:
            self._level_of.append(None)
        if count <= self._size:
            return
        while self._size < count:
            self._size *= 2
        for level, old in list(self._shelves.items()):
            shelf = self._shelves[level] = _Shelf(self._size)
            for position in range(old.size):
                most = old.tree[old.size + position]
                if most is not None:
                    shelf.put(position, most)
