"""The resource manager: one pool (`pool.py`) per node, integers throughout."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from zenos.core.errors import UnfittableError
from zenos.core.node import Node
from zenos.core.resources import Request, Resources
from zenos.core.task import Allocation
from zenos.kernel.entries import Shape
from zenos.kernel.placement import Index
from zenos.kernel.pool import NOTHING, NodeClass, Pool, admits, why_never

LEFT_OVER_MIN: Final = 64  # of a heap's items, before it is made anew


class ResourceManager:
    """The pools of all nodes. `allocate` and `release` are its whole interface to the scheduler."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self._index = Index()
        self._names: list[str] = []  # by position
        self._positions: dict[str, int] = {}
        self._capacity, self._used = NOTHING, NOTHING
        # Nodes of each class, and heaps of what they have free, the most first; an item counts as
        # long as its node has so much free.
        self._classes: dict[NodeClass, dict[str, None]] = {}
        self._freest: dict[NodeClass, list[tuple[int, int, int, int]]] = {}
        self._could_hold: dict[Resources, list[NodeClass]] = {}  # until a node changes
        self._parts: dict[Shape, tuple[Resources, ...]] = {}  # the same

    def add(self, node: Node, allocations: Iterable[Allocation]) -> None:
        """A node is there, or has changed; `allocations` are those that tasks hold on it."""
        pool = Pool(node)
        for allocation in allocations:
            pool.occupy(allocation)
        pool.withhold()
        before = self.pools.get(node.name)
        if before is None:
            self._positions[node.name] = len(self._names)
            self._names.append(node.name)
        else:
            self._capacity = self._capacity - before.node.there
            self._used = self._used - before.used
            self._classes[before.kind].pop(node.name)
        self.pools[node.name] = pool
        self._capacity, self._used = self._capacity + node.there, self._used + pool.used
        self._classes.setdefault(pool.kind, {})[node.name] = None
        self._freest.clear()
        self._could_hold.clear()
        self._parts.clear()
        self._file(pool)

    def _file(self, pool: Pool) -> None:
        """What a node has free has changed."""
        position = self._positions[pool.node.name]
        if not pool.node.takes_work:
            self._index.remove(position)
            return
        self._index.put(position, pool.free, pool.whole_free, pool.largest_share)
        heap = self._freest.get(pool.kind)
        if heap is not None and len(heap) <= 4 * len(self._classes[pool.kind]) + LEFT_OVER_MIN:
            heapq.heappush(heap, (*_freest(pool), position))
        elif heap is not None:
            del self._freest[pool.kind]  # mostly left over

    def allocate(
        self,
        request: Resources,
        reserved: dict[str, Resources] | None = None,
        workers: int = 1,
    ) -> Allocation | None:
        """Best fit over the nodes, all or nothing. `reserved` is held back on each node."""
        held = reserved or {}
        placed: list[Allocation] = []
        for part in self.parts(Shape(request, workers)):
            pool = self.find(part, held)
            if pool is None:
                break
            before = pool.used
            allocation = pool.allocate(part)
            assert allocation is not None  # noqa: S101 - by `find`
            placed.append(allocation)
            self._recount(pool, before)
        else:
            return replace(placed[0], others=tuple(placed[1:])) if placed else None
        for allocation in placed:
            self.release(allocation)
        return None

    def allocate_on(
        self, node: str, request: Resources, reserved: dict[str, Resources]
    ) -> Allocation | None:
        """All of it on that node."""
        pool = self.pools.get(node)
        if pool is None or not pool.would_fit(request, reserved.get(node, NOTHING)):
            return None
        before = pool.used
        allocation = pool.allocate(request)
        self._recount(pool, before)
        return allocation

    def fits(self, shape: Shape, reserved: dict[str, Resources]) -> bool:
        """Whether `allocate` would find room."""
        parts = self.parts(shape)
        if len(parts) == 1:
            return self.find(parts[0], reserved) is not None
        allocation = self.allocate(shape.request, reserved, shape.workers)
        if allocation is not None:
            self.release(allocation)
        return allocation is not None

    def parts(self, shape: Shape) -> tuple[Resources, ...]:
        """What each node gives: all of it one node that could hold it, else as few as there can be.

        A gang that no node could hold is cut between its workers: as many as the largest node takes
        on each but the last. Empty where that can never be, nodes without use left aside.
        """
        found = self._parts.get(shape)
        if found is None:
            found = self._parts[shape] = self._cut(shape)
        return found

    def _cut(self, shape: Shape) -> tuple[Resources, ...]:
        request, workers = shape
        if self._able(request):
            return (request,)
        if _named(request):
            return ()
        for each in range(workers - 1, 0, -1):
            part = _share_of(request, each, workers)
            if not self._able(part):
                continue
            count = -(-workers // each)
            rest = _like(request, request - part.times(count - 1))
            enough = self._count(part) >= count - 1 and self._count(rest) >= count
            return (part,) * (count - 1) + (rest,) if enough else ()
        return ()

    def _count(self, request: Resources) -> int:
        """How many nodes could hold it if they were empty."""
        return sum(len(self._classes[kind]) for kind in self._able(request))

    def find(self, request: Resources, reserved: dict[str, Resources]) -> Pool | None:
        """The node where it fits: the fewest devices entirely free, then the first."""
        named = _named(request)
        if named:
            only = self.pools.get(named)
            fits = only is not None and only.would_fit(request, reserved.get(named, NOTHING))
            return only if fits else None
        for position in self._index.fitting(request):
            pool = self.pools[self._names[position]]
            if pool.would_fit(request, reserved.get(pool.node.name, NOTHING)):
                return pool
        return None

    def _recount(self, pool: Pool, before: Resources) -> None:
        self._used = self._used + pool.used - before
        self._file(pool)

    def release(self, allocation: Allocation) -> None:
        """Give an allocation back to its nodes, where they are known."""
        for part in allocation.parts:
            pool = self.pools.get(part.node)
            if pool is not None:
                before = pool.used
                pool.release(part)
                self._recount(pool, before)

    def occupy(self, allocation: Allocation) -> None:
        """Count an allocation that was changed, where its nodes are known."""
        for part in allocation.parts:
            pool = self.pools.get(part.node)
            if pool is not None:
                before = pool.used
                pool.occupy(part)
                self._recount(pool, before)

    def has_cpu(self, node: str, cpu: int) -> bool:
        """Whether so many millicores are free on a node that is known."""
        pool = self.pools.get(node)
        return pool is not None and (cpu == 0 or cpu <= pool.free.cpu)

    def may_fit(self, shapes: Iterable[Shape]) -> list[Shape]:
        """Those for which there may be room: told from the most that any node has, which is cheap.

        Of a gang that no node could hold, its first part is looked at.
        """
        roots = self._index.roots()
        if not roots:
            return []
        cpu, gpu, memory, gpu_memory, _ = (max(c) for c in zip(*(m for _, m in roots), strict=True))
        found: list[Shape] = []
        for shape in shapes:
            r = shape[0]
            if shape[1] > 1:
                parts = self.parts(shape)
                if not parts:
                    continue
                r = parts[0]
            if r.gpu <= gpu and r.cpu <= cpu and r.memory <= memory and r.gpu_memory <= gpu_memory:
                found.append(shape)
        return found

    def is_able(self, name: str, request: Resources) -> bool:
        """Whether a node could hold `request` if it were empty."""
        pool = self.pools.get(name)
        if pool is None or not admits(pool.node, request):
            return False
        return pool.kind in self._able(request)

    def able(self, request: Resources) -> list[Pool]:
        """The nodes that could hold `request` if they were empty."""
        kinds = set(self._able(request))
        there = (pool for pool in self.pools.values() if pool.kind in kinds)
        return [pool for pool in there if admits(pool.node, request)]

    def _able(self, request: Resources) -> list[NodeClass]:
        """The classes of nodes that could hold `request` if they were empty."""
        found = self._could_hold.get(request)
        if found is None:
            named = _named(request)
            firsts = (next(iter(names)) for names in self._classes.values() if names)
            pools = [self.pools[name] for name in ([named] if named in self.pools else firsts)]
            found = [p.kind for p in pools if Pool(p.node).would_fit(request, NOTHING)]
            self._could_hold[request] = found
        return found

    def freest(self, request: Resources, without: Collection[str] = ()) -> Pool:
        """Of the nodes that could hold `request` the one with the most free: CPU, GPU, memory."""
        named = _named(request)
        if named:
            return self.pools[named]
        kinds = self._able(request)
        if not without:
            return self.pools[self._names[min(self._top(kind) for kind in kinds)[-1]]]
        names = (name for kind in kinds for name in self._classes[kind] if name not in without)
        best = min((*_freest(self.pools[name]), self._positions[name]) for name in names)
        return self.pools[self._names[best[-1]]]

    def _top(self, kind: NodeClass) -> tuple[int, int, int, int]:
        heap = self._freest.get(kind)
        if heap is None:
            names = self._classes[kind]
            heap = [(*_freest(self.pools[name]), self._positions[name]) for name in names]
            heapq.heapify(heap)
            self._freest[kind] = heap
        while (*_freest(self.pools[self._names[heap[0][-1]]]), heap[0][-1]) != heap[0]:
            heapq.heappop(heap)
        return heap[0]

    def could_ever_hold(self, request: Resources, workers: int = 1) -> bool:
        """Whether it would fit if all nodes that take work were empty."""
        return bool(self.parts(Shape(request, workers)))

    def check_fits_ever(self, request: Resources, workers: int = 1) -> None:
        """Raises UnfittableError when it would not fit even if all nodes were empty.

        Those count as well that are cordoned or lost: they can come back.
        """
        if self.could_ever_hold(request, workers):
            return
        nodes = [pool.node for pool in self.pools.values()]
        if fits_once_open(request, workers, nodes):
            return
        why = why_never(request, nodes)
        if workers > 1 and len(nodes) > 1:
            why += f", and {workers} workers don't fit on all {len(nodes)} nodes together"
        # Where no node has the name or the labels that are asked for, less of anything is no help.
        sized = any(
            not isinstance(request, Request) or request.admits(node.name, node.labels)
            for node in nodes
        )
        raise UnfittableError(f"cannot ever fit: {why}" + ("; ask for less" if sized else ""))

    def capacity(self) -> Resources:
        """The sum over all nodes that are there."""
        return self._capacity

    def used(self) -> Resources:
        """The sum of what is given out."""
        return self._used


def fits_once_open(request: Resources, workers: int, nodes: Sequence[Node]) -> bool:
    """Whether it would fit, if empty nodes took work that are cordoned or lost; False without."""
    if all(node.takes_work for node in nodes):
        return False
    opened = ResourceManager()
    for node in nodes:
        opened.add(replace(node, cordon=None, lost=None), ())
    return opened.could_ever_hold(request, workers)


def _share_of(request: Resources, workers: int, of: int) -> Resources:
    """What so many of a gang's workers want; of what can't be divided the last node gives more."""
    part = Resources(
        cpu=request.cpu * workers // of,
        gpu=request.gpu * workers // of,
        memory=request.memory * workers // of,
        gpu_memory=request.gpu_memory * workers // of,
    )
    return _like(request, part)


def _like(request: Resources, part: Resources) -> Resources:
    """A part of a request, on the nodes of which that speaks."""
    if not isinstance(request, Request):
        return part
    return replace(
        request, cpu=part.cpu, gpu=part.gpu, memory=part.memory, gpu_memory=part.gpu_memory
    )


def _named(request: Resources) -> str:
    """The only node that a request may go to; empty where it may go to others."""
    return request.node if isinstance(request, Request) else ""


def _freest(pool: Pool) -> tuple[int, int, int]:
    """Sorts nodes with the most free first."""
    return -pool.free.cpu, -pool.free.gpu, -pool.free.memory
