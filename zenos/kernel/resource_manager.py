"""The resource manager: one pool per node, integers throughout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zenos.core.errors import UnfittableError
from zenos.core.resources import Resources, show_share, show_size
from zenos.core.task import Allocation, Node

WHOLE = 1000  # milli-GPUs in one device


class Pool:
    """What one node has, what of it is given out, and to which device.

    A share of a GPU below 1 lies on one device; 1 or more means whole devices. GPU memory is
    divided evenly over the devices of an allocation.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.used = Resources()
        self.gpu_used = [0] * node.gpus
        self.gpu_memory_used = [0] * node.gpus

    @property
    def free(self) -> Resources:
        """Capacity less what is given out; negative where the node has shrunk under its tasks."""
        return self.node.capacity - self.used

    def allocate(self, request: Resources, reserved: Resources | None = None) -> Allocation | None:
        """An allocation for `request`, or None. What is `reserved` for another is not touched."""
        free = self.free if reserved is None else self.free.without(reserved)
        if not request.fits_in(free):
            return None
        devices = self._devices(request)
        if devices is None:
            return None
        allocation = Allocation(node=self.node.name, resources=request, shares=devices)
        self.occupy(allocation)
        return allocation

    def copy(self) -> Pool:
        """A pool of its own, to try out in it what would be."""
        made = Pool(self.node)
        made.used = self.used
        made.gpu_used, made.gpu_memory_used = self.gpu_used[:], self.gpu_memory_used[:]
        return made

    def would_fit(self, request: Resources, reserved: Resources) -> bool:
        """Whether `allocate` would find room."""
        return request.fits_in(self.free.without(reserved)) and self.has_devices(request)

    @property
    def is_in_pieces(self) -> bool:
        """Whether a device is given out in part."""
        return any(0 < used < WHOLE for used in self.gpu_used)

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
        for device, share in allocation.shares.items():
            if device < len(self.gpu_used):
                self.gpu_used[device] += sign * share
                self.gpu_memory_used[device] += sign * memory_each(allocation)

    def _devices(self, request: Resources) -> dict[int, int] | None:
        """Shares by device: best fit for a share of one, the first free ones for whole devices."""
        if request.gpu == 0:
            return {}
        each = self.node.gpu_memory_each
        if request.gpu < WHOLE:
            room = [
                (WHOLE - used, device)
                for device, used in enumerate(self.gpu_used)
                if WHOLE - used >= request.gpu
                and each - self.gpu_memory_used[device] >= request.gpu_memory
            ]
            return {min(room)[1]: request.gpu} if room else None
        count = request.gpu // WHOLE
        free = [device for device, used in enumerate(self.gpu_used) if used == 0]
        if len(free) < count or -(-request.gpu_memory // count) > each:
            return None
        return dict.fromkeys(free[:count], WHOLE)


def memory_each(allocation: Allocation) -> int:
    """GPU memory (bytes) that an allocation takes on each of its devices."""
    count = len(allocation.shares)
    return -(-allocation.resources.gpu_memory // count) if count else 0


def why_never(request: Resources, nodes: Sequence[Node]) -> str:
    """Why no node could hold `request` even if it were empty, in words; empty when one could."""
    if any(Pool(node).allocate(request) is not None for node in nodes):
        return ""
    if not nodes:
        return "no node is known yet"
    for what, show in (("cpu", show_share), ("gpu", show_share), ("memory", show_size)):
        most = max(getattr(node.capacity, what) for node in nodes)
        wanted = getattr(request, what)
        if wanted > most:
            unit = {"cpu": " CPUs", "gpu": " GPUs", "memory": " of memory"}[what]
            return f"wants {show(wanted)}{unit}, the largest node has {show(most)}"
    largest = max(node.gpu_memory_each for node in nodes)
    return f"no single node has all of {request} (largest GPU memory: {show_size(largest)})"


class ResourceManager:
    """The pools of all nodes. `allocate` and `release` are its whole interface to the scheduler."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self._could_hold: dict[Resources, bool] = {}  # until a node changes

    def add(self, node: Node, allocations: Iterable[Allocation]) -> None:
        """A node is there, or has changed; `allocations` are those that tasks hold on it."""
        pool = Pool(node)
        for allocation in allocations:
            pool.occupy(allocation)
        self.pools[node.name] = pool
        self._could_hold.clear()

    def allocate(
        self, request: Resources, reserved: dict[str, Resources] | None = None
    ) -> Allocation | None:
        """First fit over the nodes. `reserved` is held back on each node."""
        for name, pool in self.pools.items():
            allocation = pool.allocate(request, (reserved or {}).get(name))
            if allocation is not None:
                return allocation
        return None

    def release(self, allocation: Allocation) -> None:
        """Give an allocation back to its node, where the node is known."""
        pool = self.pools.get(allocation.node)
        if pool is not None:
            pool.release(allocation)

    def occupy(self, allocation: Allocation) -> None:
        """Count an allocation that was changed, where its node is known."""
        pool = self.pools.get(allocation.node)
        if pool is not None:
            pool.occupy(allocation)

    def has_cpu(self, node: str, cpu: int) -> bool:
        """Whether so many millicores are free on a node that is known."""
        pool = self.pools.get(node)
        return pool is not None and (cpu == 0 or cpu <= pool.free.cpu)

    def has_free(self, request: Resources) -> bool:
        """Whether some node has that much free, devices and what is held back left aside."""
        return any(request.fits_in(pool.free) for pool in self.pools.values())

    def able(self, request: Resources) -> list[Pool]:
        """The nodes that could hold `request` if they were empty."""
        return [p for p in self.pools.values() if Pool(p.node).allocate(request) is not None]

    def could_ever_hold(self, request: Resources) -> bool:
        """Whether some node could hold `request` if it were empty."""
        found = self._could_hold.get(request)
        if found is None:
            found = bool(self.able(request))
            self._could_hold[request] = found
        return found

    def check_fits_ever(self, request: Resources) -> None:
        """Raises UnfittableError when no node could hold `request` even if it were empty."""
        if self.could_ever_hold(request):
            return
        why = why_never(request, [pool.node for pool in self.pools.values()])
        raise UnfittableError(f"cannot ever fit: {why}" + ("; ask for less" if self.pools else ""))

    def capacity(self) -> Resources:
        """The sum over all nodes."""
        return sum((p.node.capacity for p in self.pools.values()), Resources())

    def used(self) -> Resources:
        """The sum of what is given out."""
        return sum((p.used for p in self.pools.values()), Resources())
