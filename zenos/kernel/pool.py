"""One node's pool: what it has, what of it is given out, and to which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from zenos.core.node import Node
from zenos.core.resources import Request, Resources, show_share, show_size, show_units
from zenos.core.task import Allocation
from zenos.kernel.placement import WHOLE

NOTHING: Final = Resources()
NODES_NAMED_MAX: Final = 20


class NodeClass(NamedTuple):
    """What nodes have in common that could hold the same if they were empty."""

    capacity: Resources
    gpus: int
    gpu_memory_each: int
    labels: tuple[str, ...] = ()
    takes_work: bool = True


class Pool:
    """What one node has, what of it is given out, and to which device.

    A share of a GPU below 1 lies on one device; 1 or more means whole devices. GPU memory is
    divided evenly over the devices of an allocation.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.kind = NodeClass(
            node.capacity, node.gpus, node.gpu_memory_each, tuple(node.labels), node.takes_work
        )
        self.used = Resources()
        # What of the capacity others use, so that it is there for no task; in sum, and by device.
        self.withheld = NOTHING
        self.gpu_memory_withheld = [0] * node.gpus
        # Capacity less what is given out and withheld; negative where the node has shrunk under its
        # tasks, or others have taken what is theirs.
        self.free = node.capacity
        self.gpu_used = [0] * node.gpus
        self.gpu_memory_used = [0] * node.gpus
        self.whole_free = node.gpus  # devices of which nothing is given out

    def allocate(self, request: Resources, reserved: Resources | None = None) -> Allocation | None:
        """An allocation for `request`, or None. What is `reserved` for another is not touched."""
        free = self.free if reserved is None else self.free.without(reserved)
        if not admits(self.node, request) or not request.fits_in(free):
            return None
        devices = self._devices(request)
        if devices is None:
            return None
        given = request.plain
        allocation = Allocation(node=self.node.name, resources=given, shares=devices)
        self.occupy(allocation)
        return allocation

    def withhold(self) -> None:
        """Leave out what others use, as it was measured.

        Free is min(capacity, left) - used: of memory, and of each device's. A pool of which that
        isn't asked is the node as it would be without anybody.
        """
        measured = self.node.measured
        if measured is None:
            return
        each = self.node.gpu_memory_each
        left = measured.gpu_memory_left[: self.node.gpus]
        by_device = [max(0, each - min(each, max(0, free))) for free in left]
        self.gpu_memory_withheld = by_device + [0] * (self.node.gpus - len(by_device))
        capacity = self.node.capacity.memory
        self.withheld = Resources(
            memory=capacity - min(capacity, max(0, measured.memory_left)),
            gpu_memory=sum(self.gpu_memory_withheld),
        )
        self.free = self.node.capacity - self.used - self.withheld

    def copy(self) -> Pool:
        """A pool of its own, to try out in it what would be."""
        made = Pool.__new__(Pool)
        made.node, made.kind = self.node, self.kind
        made.used, made.free, made.whole_free = self.used, self.free, self.whole_free
        made.withheld, made.gpu_memory_withheld = self.withheld, self.gpu_memory_withheld
        made.gpu_used, made.gpu_memory_used = self.gpu_used[:], self.gpu_memory_used[:]
        return made

    def would_fit(self, request: Resources, reserved: Resources) -> bool:
        """Whether `allocate` would find room."""
        free = self.free if reserved == NOTHING else self.free.without(reserved)
        fits = request.fits_in(free) and admits(self.node, request)
        return fits and self.has_devices(request)

    @property
    def is_in_pieces(self) -> bool:
        """Whether a device is given out in part."""
        return any(0 < used < WHOLE for used in self.gpu_used)

    @property
    def largest_share(self) -> int:
        """The most milli-GPUs that one device has left."""
        if self.whole_free:
            return WHOLE
        return WHOLE - min(self.gpu_used) if self.gpu_used else 0

    def has_devices(self, request: Resources) -> bool:
        """Whether the GPUs have room for `request`, shares on one device, the others whole."""
        return self._devices(request) is not None

    def occupy(self, allocation: Allocation) -> None:
        """Count an allocation as given out: a new one, or one from before a restart."""
        self._count(allocation, +1)

    def release(self, allocation: Allocation) -> None:
        """Take an allocation back."""
        self._count(allocation, -1)

    def _count(self, allocation: Allocation, sign: int) -> None:
        if sign > 0:
            self.used = self.used + allocation.resources
        else:
            self.used = self.used - allocation.resources
        self.free = self.node.capacity - self.used - self.withheld
        self.count_devices(allocation, sign)

    def count_devices(self, allocation: Allocation, sign: int) -> None:
        """Of an allocation that is given out (+1) or back (-1), its devices alone."""
        for device, share in allocation.shares.items():
            if device < len(self.gpu_used):
                before = self.gpu_used[device]
                self.gpu_used[device] = before + sign * share
                self.whole_free += (before + sign * share == 0) - (before == 0)
                self.gpu_memory_used[device] += sign * memory_each(allocation)

    def _devices(self, request: Resources) -> dict[int, int] | None:
        """Shares by device: best fit for a share of one, the first free ones for whole devices."""
        if request.gpu == 0:
            return {}
        if request.gpu < WHOLE:
            room = [
                (WHOLE - used, device)
                for device, used in enumerate(self.gpu_used)
                if WHOLE - used >= request.gpu and self._memory_of(device) >= request.gpu_memory
            ]
            return {min(room)[1]: request.gpu} if room else None
        count = request.gpu // WHOLE
        if self.whole_free < count:
            return None
        each, wanted = self.node.gpu_memory_each, -(-request.gpu_memory // count)
        free = [
            device
            for device, used in enumerate(self.gpu_used)
            if used == 0 and each - self.gpu_memory_withheld[device] >= wanted
        ]
        if len(free) < count:
            return None
        free.sort(key=lambda device: self.gpu_memory_withheld[device])
        return dict.fromkeys(free[:count], WHOLE)

    def _memory_of(self, device: int) -> int:
        """Bytes of a device that are neither given out nor withheld."""
        taken = self.gpu_memory_used[device] + self.gpu_memory_withheld[device]
        return max(0, self.node.gpu_memory_each - taken)


def admits(node: Node, request: Resources) -> bool:
    """Whether a node takes new work, and is one that `request` names, if it does."""
    if not node.takes_work:
        return False
    return not isinstance(request, Request) or request.admits(node.name, node.labels)


def memory_each(allocation: Allocation) -> int:
    """GPU memory (bytes) that an allocation takes on each of its devices."""
    count = len(allocation.shares)
    return -(-allocation.resources.gpu_memory // count) if count else 0


def why_never(request: Resources, nodes: Sequence[Node]) -> str:
    """Why no node could hold `request` even if it were empty, in words; empty when one could.

    That a node takes no work now is no reason.
    """
    nodes = [replace(node, cordon=None, lost=None) for node in nodes]
    if any(Pool(node).allocate(request) is not None for node in nodes):
        return ""
    if not nodes:
        return "no node is known yet"
    if isinstance(request, Request):
        there = [n for n in nodes if request.admits(n.name, n.labels)]
        if not there:
            return _nowhere(request, nodes)
        nodes = there
    for what, show in (("cpu", show_share), ("gpu", show_share), ("memory", show_size)):
        most = max(getattr(node.capacity, what) for node in nodes)
        wanted = getattr(request, what)
        if wanted > most:
            is_memory = what == "memory"
            named = f"{show(wanted)} of memory" if is_memory else show_units(wanted, what.upper())
            largest = f"the largest node has {show(most)}" if most else "no node has any"
            return f"wants {named}, {largest}"
    gpu_memory = max(node.gpu_memory_each for node in nodes)
    return f"no single node has all of {request} (largest GPU memory: {show_size(gpu_memory)})"


def _nowhere(request: Request, nodes: Sequence[Node]) -> str:
    """Which of a request's words about its node is true of none."""
    named = [node for node in nodes if request.node in ("", node.name)]
    if not named:
        names = ", ".join(sorted(node.name for node in nodes)[:NODES_NAMED_MAX])
        return f"no node is called {request.node!r}; there are {names}"
    wanted = ", ".join(request.labels)
    have = sorted({label for node in named for label in node.labels})
    where = f"the node {request.node} has" if request.node else "nodes have"
    return f"no node has {wanted} together; {where} {', '.join(have[:NODES_NAMED_MAX]) or 'none'}"
