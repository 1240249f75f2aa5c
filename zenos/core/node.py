"""Nodes: what a machine has, what others use of it, and whether it takes work."""

from __future__ import annotations

from typing import Literal

import msgspec

from zenos.core.resources import Resources

Cordon = Literal["cordon", "drain"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What processes outside zenos use of a node, in bytes, and what that leaves for all tasks.

    memory_left: what tasks may hold together, a margin taken off; less than 0 where others use the
    margin too. gpu_memory, gpu_memory_left: the same by device; empty without real GPUs.
    """

    memory: int
    memory_left: int
    gpu_memory: list[int] = []
    gpu_memory_left: list[int] = []


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine.

    capacity: what zenos may give out. gpus: number of devices. virtual_gpus: declared, not real.
    enforcement: how limits hold there, e.g. `{"memory": "cgroup v2", "cpu": "affinity"}`. measured:
    what others use of it, where that is looked at. cordon: somebody said that nothing new starts
    there; of `drain` what can be saved is sent away as well. lease_s: it says at least so often
    that it is there, and is lost otherwise; None: it is there for as long as the daemon is. lost:
    since when nothing is heard of it.
    """

    name: str
    capacity: Resources
    gpus: int = 0
    virtual_gpus: bool = False
    gpu_memory_each: int = 0
    labels: list[str] = []
    enforcement: dict[str, str] = {}
    measured: Measured | None = None
    cordon: Cordon | None = None
    lease_s: float | None = None
    lost: float | None = None

    @property
    def there(self) -> Resources:
        """What of its capacity counts for all nodes together: of one that is lost nothing."""
        return self.capacity if self.lost is None else Resources()

    @property
    def takes_work(self) -> bool:
        """Whether anything new may start there."""
        return self.cordon is None and self.lost is None

    @property
    def standing(self) -> str:
        """Why nothing new starts there, in a word or two; empty where it may."""
        if self.lost is not None:
            return "lost"
        return {None: "", "cordon": "cordoned", "drain": "drained"}[self.cordon]
