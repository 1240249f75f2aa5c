"""A worker's memory limit, as its shim holds it. Standard library only."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from zenos.core.processes import descendants, kill, own_bytes, resident_bytes

# From one look at what processes share to the next, in times of what the look has taken.
LOOK_EVERY = 20


class Limits:
    """The worker's memory limit, by cgroup where the spec names one, else by watching.

    A worker that `outlives_kills` has parts that the kernel may kill for want of memory in the
    group, and says itself what that means: only its own end is one.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.limit = int(spec.get("memory_limit") or 0)
        self.groups: list[str] = list(spec.get("cgroups") or [])
        self.peak = 0
        self.exceeded = False
        self._shared = 0  # of what is resident, what was counted for more than one process
        self._look_at = 0.0
        self._outlives = bool(spec.get("outlives_kills"))
        self._kills = self._looked = self._oom_kills()

    def enter(self) -> None:
        """Put this process (and all its children to come) under the limits."""
        for group in self.groups:
            with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

    def sample(self) -> bool:
        """Look; whether the limit has been exceeded, so that the worker must end."""
        if self.groups and self._memory_group():
            kills = self._oom_kills()
            if self._outlives:
                # Not all that was seen: this worker's own end may be in it, and be seen later.
                self._kills, self._looked = self._looked, kills
            else:
                self.exceeded = self.exceeded or kills > self._kills
            self.peak = max(self.peak, self._group_peak())
        else:
            used = self._used()
            self.peak = max(self.peak, used)
            self.exceeded = self.exceeded or bool(self.limit and used > self.limit)
        return self.exceeded

    def sample_end(self, *, killed: bool) -> None:
        """The last look, once the worker has ended. killed: by SIGKILL."""
        if self._outlives and killed and self._oom_kills() > self._kills:
            self.exceeded = True
        self.sample()

    def _used(self) -> int:
        """What the worker and all below it have; what they share counts once.

        1. Within the limit even if it counted for each, nobody needs to know it better.
        2. Else it is looked at, which takes long in a large task: so only once in LOOK_EVERY times
           that, while what was shared at the last look leaves it within the limit. Nobody is over
           the limit by what was seen before.
        """
        pids = descendants(os.getpid())
        resident = resident_bytes(pids)
        if not self.limit or resident <= self.limit:  # 1
            return resident
        began = time.monotonic()
        if began >= self._look_at or resident - self._shared > self.limit:  # 2
            self._shared = max(0, resident - own_bytes(pids))
            self._look_at = began + LOOK_EVERY * (time.monotonic() - began)
        return resident - self._shared

    def most(self, largest_bytes: int) -> int:
        """The most memory that was used at once. largest_bytes: of any process, by getrusage.

        A group has counted all of it, and nothing else; getrusage also counts what a fork shares
        with the server that it came from.
        """
        if self.peak and self._memory_group():
            return self.peak
        return max(self.peak, largest_bytes)

    def kill_members(self) -> None:
        """End what is in the groups: also what has left the worker's process group and session."""
        for group in self.groups:
            for pid in self._members(group):
                kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove the groups, which are empty by now; the daemon removes what is left."""
        for group in self.groups:
            for _ in range(20):
                try:
                    os.rmdir(group)
                except FileNotFoundError:
                    break
                except OSError:
                    self.kill_members()
                    time.sleep(0.01)
                else:
                    break

    def _memory_group(self) -> str | None:
        for group in self.groups:
            for name in ("memory.max", "memory.limit_in_bytes"):
                if os.path.exists(os.path.join(group, name)):
                    return group
        return None

    def _members(self, group: str) -> list[int]:
        try:
            with open(os.path.join(group, "cgroup.procs"), encoding="ascii") as file:
                return [int(line) for line in file]
        except OSError:
            return []

    def _group_peak(self) -> int:
        group = self._memory_group()
        for name in ("memory.peak", "memory.max_usage_in_bytes", "memory.current"):
            try:
                with open(os.path.join(group or "", name), encoding="ascii") as file:
                    return int(file.read())
            except (OSError, ValueError):
                continue
        return 0

    def _oom_kills(self) -> int:
        """How often the kernel has killed in the group: memory.events (v2), memory.oom_control."""
        group = self._memory_group()
        for name in ("memory.events", "memory.oom_control"):
            try:
                with open(os.path.join(group or "", name), encoding="ascii") as file:
                    for line in file:
                        key, _, value = line.partition(" ")
                        if key == "oom_kill":
                            return int(value)
            except (OSError, ValueError):
                continue
        return 0
