"""What would be on a node if some of what is given out there came back."""

from __future__ import annotations

import math

from zenos.core.resources import Resources
from zenos.core.task import Allocation
from zenos.kernel.pool import Pool


class Trial:
    """Whether `request` would fit on a node, beside what is held back there for others.

    Sums decide most of it. A copy of the node's devices is made once the sums suffice. Says
    `Pool.would_fit` of it, but for what a request says of the node.
    """

    __slots__ = ("_base", "_cpu", "_devices", "_gpu", "_gpu_memory", "_memory", "_out", "_request")

    def __init__(self, base: Pool, request: Resources, held: Resources) -> None:
        self._base, self._request = base, request
        self._devices: Pool | None = None
        self._out: list[Allocation] = []  # what is back by the sums, and not by the devices yet
        # What is lacking of each; of what isn't wanted, nothing ever is.
        free = base.free
        self._cpu = request.cpu - free.cpu + held.cpu if request.cpu else -math.inf
        self._gpu = request.gpu - free.gpu + held.gpu if request.gpu else -math.inf
        self._memory = request.memory - free.memory + held.memory if request.memory else -math.inf
        self._gpu_memory = -math.inf
        if request.gpu_memory:
            self._gpu_memory = request.gpu_memory - free.gpu_memory + held.gpu_memory

    @property
    def fits(self) -> bool:
        """Whether it does by now."""
        if self._cpu > 0 or self._gpu > 0 or self._memory > 0 or self._gpu_memory > 0:
            return False
        if not self._request.gpu:
            return True
        if self._devices is None:
            self._devices = self._base.copy()
        for part in self._out:
            self._devices.count_devices(part, -1)
        self._out.clear()
        return self._devices.has_devices(self._request)

    def release(self, part: Allocation) -> None:
        """It comes back."""
        self._add(part, -1)
        self._out.append(part)

    def fits_without(self, part: Allocation) -> bool:
        """Whether it would fit if this, which came back, did not; then it does not."""
        self._add(part, +1)
        if self._cpu <= 0 and self._gpu <= 0 and self._memory <= 0 and self._gpu_memory <= 0:
            if self._devices is None:
                return True  # no devices are wanted
            self._devices.count_devices(part, +1)
            if self._devices.has_devices(self._request):
                return True
            self._devices.count_devices(part, -1)
        self._add(part, -1)
        return False

    def _add(self, part: Allocation, sign: int) -> None:
        back = part.resources
        self._cpu += sign * back.cpu
        self._gpu += sign * back.gpu
        self._memory += sign * back.memory
        self._gpu_memory += sign * back.gpu_memory
