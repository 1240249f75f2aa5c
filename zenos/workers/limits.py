"""How limits are enforced: cgroup v2, cgroup v1, or by watching.

All groups of a home lie under one `zenos-HOMEID` group inside the daemon's own, so that the limits
of whoever started the daemon hold for its tasks too. For version 2's see core/cgroups.py; where the
daemon's own can't be written, `zenos up` has asked systemd for a scope (cli/scope.py). A worker
enters its generation's groups, and its shim removes them; the daemon removes what a killed shim
leaves over.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from zenos.core import cgroups
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.core.resources import Resources

log = logging.getLogger(__name__)
PERIOD_US = 100_000
Method = Literal["cgroup v2", "cgroup v1", "watchdog"]
# Open files as the daemon was started with: workers get that, since many programs still use
# `select`, which breaks above 1,024. The daemon itself has a descriptor for each worker and client.
OPEN_FILES: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_FILES_DAEMON: Final = 65_536


def raise_open_files() -> None:
    """Let this process have as many files open as it may, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES_DAEMON if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_DAEMON)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Cgroups:
    """The control groups of one home. Without any, `method` is `watchdog` and groups are empty."""

    def __init__(
        self, memory: Path | None, cpu: Path | None, version: int, room: cgroups.Room | None = None
    ) -> None:
        self._memory = memory
        self._cpu = cpu
        self._version = version
        self._room = room

    @classmethod
    def detect(cls, config: Config, home_id: str, root: Path = cgroups.ROOT) -> Cgroups:
        """What can be used here.

        InvalidError when the settings demand cgroups and none can be written.
        """
        if config.enforcement == "watchdog":
            return cls(None, None, 0)
        name = f"zenos-{home_id}"
        found = _v2(root, name, cgroups.Files()) or _v1(root, name)
        if found is None:
            if config.enforcement == "cgroup":
                raise InvalidError(
                    "cannot enforce limits by cgroup: none can be written; start the daemon with "
                    "'systemd-run --user --scope -p Delegate=yes', or set 'enforcement: auto'"
                )
            return cls(None, None, 0)
        return found

    @property
    def method(self) -> Method:
        """How memory limits hold."""
        if self._memory is None:
            return "watchdog"
        return "cgroup v2" if self._version == 2 else "cgroup v1"

    @property
    def cpu_method(self) -> str:
        """How CPU limits hold."""
        return f"cgroup v{self._version} quota" if self._cpu is not None else "thread counts"

    def make(
        self, task: str, generation: int, wants: Resources, *, together: bool = True
    ) -> list[str]:
        """Groups with the limits of one generation; the worker enters all of them.

        together: where one of its processes is killed for want of memory, all are (version 2).
        """
        name = f"{task}-{generation}"
        made: list[str] = []
        if self._memory is not None:
            made.append(str(self._make_memory(self._memory / name, wants.memory, together)))
        if self._cpu is not None and wants.cpu:
            group = self._cpu / name
            group.mkdir(exist_ok=True)
            quota_us = max(1000, wants.cpu * PERIOD_US // 1000)
            if self._version == 2:
                (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            if str(group) not in made:
                made.append(str(group))
        return made

    def _make_memory(self, group: Path, limit: int, together: bool) -> Path:
        group.mkdir(exist_ok=True)
        if self._version == 2:
            (group / "memory.max").write_text(str(limit) if limit else "max")
            with suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            with suppress(OSError):
                (group / "memory.oom.group").write_text("1" if together else "0")
        elif limit:
            (group / "memory.limit_in_bytes").write_text(str(limit))
            with suppress(OSError):  # only where swap is counted
                (group / "memory.memsw.limit_in_bytes").write_text(str(limit))
        return group

    def kill(self, task: str, generation: int) -> None:
        """End whatever is still in a generation's groups."""
        for base in filter(None, (self._memory, self._cpu)):
            with suppress(OSError):
                for line in (base / f"{task}-{generation}" / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(line), signal.SIGKILL)

    def freeze(self, task: str, generation: int, *, frozen: bool) -> bool:
        """Freeze what is in a generation's group, or let it go on; False where that can't be."""
        if self._version != 2 or self._memory is None:
            return False
        with suppress(OSError):
            path = self._memory / f"{task}-{generation}" / "cgroup.freeze"
            if path.exists():
                path.write_text("1" if frozen else "0")
                return True
        return False

    def is_frozen(self, task: str, generation: int) -> bool:
        """Whether all that is in a generation's group is frozen."""
        if self._memory is None:
            return False
        with suppress(OSError):
            events = (self._memory / f"{task}-{generation}" / "cgroup.events").read_text()
            return "frozen 1" in events.splitlines()
        return False

    def remove(self, task: str, generation: int) -> bool:
        """Remove a generation's groups; False where one is not empty yet: who was killed is dying.

        None may be left, and the controllers may have one group together.
        """
        gone = True
        for base in filter(None, (self._memory, self._cpu)):
            try:
                (base / f"{task}-{generation}").rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def tidy(self, keep: Container[str]) -> None:
        """Remove the empty groups of generations that have ended. keep: names of the others."""
        for base in filter(None, (self._memory, self._cpu)):
            with suppress(OSError):
                for group in base.iterdir():
                    if group.is_dir() and group.name not in keep:
                        with suppress(OSError):  # it is not empty
                            group.rmdir()

    def end(self, task: str, generation: int) -> None:
        """End what is still in a generation's groups, and remove those that are empty."""
        self.kill(task, generation)
        self.remove(task, generation)

    def close(self) -> None:
        """Remove the home's groups, if no worker goes on in one of them."""
        if self._room is not None:
            cgroups.close_room(self._room, cgroups.Files())
            return
        for base in filter(None, (self._memory, self._cpu)):
            with suppress(OSError):
                base.rmdir()


def _v2(root: Path, name: str, files: cgroups.Files) -> Cgroups | None:
    """In our own group, if its memory controller can be given to children."""
    own = cgroups.own_groups().get("")
    if own is None or not files.exists(root / "cgroup.controllers"):
        return None
    directory = cgroups.own_directories(root, own, files)[0]
    try:
        room = cgroups.make_room(directory, name, "memory", ["cpu"], files)
    except OSError as error:
        log.warning("cgroup v2 cannot be used in %s: %s", directory, error)
        return None
    if room is None:
        return None
    return Cgroups(room.base, room.base if "cpu" in room.controllers else None, 2, room)


def _v1(root: Path, name: str) -> Cgroups | None:
    """Our own groups of the memory and, where mounted, the CPU controller."""
    own = cgroups.own_groups()
    bases: dict[str, Path | None] = {}
    for controller in ("memory", "cpu"):
        bases[controller] = None
        parent = cgroups.own_directories(root / controller, own.get(controller, "/"))[0]
        try:
            if (parent / "cgroup.procs").exists():
                base = parent / name
                base.mkdir(exist_ok=True)
                bases[controller] = base
        except OSError as error:
            log.info("the %s controller of cgroup v1 cannot be used: %s", controller, error)
    memory = bases["memory"]
    return Cgroups(memory, bases["cpu"], 1) if memory is not None else None
