"""Which control groups this process is in, and making room in version 2's. Standard library only.

Version 2 has a rule of leaves: a group that gives controllers to its children holds no processes
itself (Linux, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"). Only the
root of the whole hierarchy is free of it. What a container, or whoever has a cgroup namespace, sees
as `/` is a group like any other; it is told by the file `cgroup.type`, which the true root lacks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

ROOT: Final = Path("/sys/fs/cgroup")
UNLIMITED: Final = 2**62  # bytes: by a number near 2**63 version 1 says what the other calls "max"
MOVES_MAX: Final = 20  # what forks while it is moved is moved again, so often
_LEAF: Final = re.compile(r"zenos-[0-9a-f]{12}-daemon")


class Files:
    """The control groups' files. Tests have one that lives in memory."""

    def read(self, path: Path) -> str:
        """The text; OSError when there is none."""
        return path.read_text(encoding="ascii", errors="replace")

    def write(self, path: Path, text: str) -> None:
        """Write in one go; OSError when the kernel refuses."""
        path.write_text(text, encoding="ascii")

    def exists(self, path: Path) -> bool:
        """Whether it is there."""
        return path.exists()

    def make(self, path: Path) -> None:
        """A group; it may be there."""
        path.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove an empty group; OSError when it isn't."""
        path.rmdir()

    def children(self, path: Path) -> list[Path]:
        """The groups in a group."""
        return [child for child in path.iterdir() if child.is_dir()]

    def is_ours(self, pid: int) -> bool:
        """Whether a process has our user, and may be seen. 0 stands for one outside of here."""
        try:
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            return pid > 0  # it has ended
        return f"\nUid:\t{os.getuid()}\t" in status


def own_groups(path: Path = Path("/proc/self/cgroup")) -> dict[str, str]:
    """This process's group by controller; the key "" is version 2's."""
    groups: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = group
    return groups


def own_directories(base: Path, group: str, files: Files | None = None) -> list[Path]:
    """A group's directory below a mount, then those that it lies in.

    A container may see itself at the root, or its name's end alone, although the name is longer
    outside: so it is the longest end of the name under which this process is found.
    """
    files = files or Files()
    whole = PurePosixPath(group.lstrip("/"))
    ends = (PurePosixPath(*whole.parts[start:]) for start in range(len(whole.parts) + 1))
    below = next((end for end in ends if _members(files, base / end, os.getpid())), whole)
    return [base / below, *(base / parent for parent in below.parents)]


def all_directories(root: Path, controller: str) -> list[Path]:
    """Our own groups of a controller, in both versions, with all that they lie in."""
    own = own_groups()
    found = []
    for base, group in ((root, own.get("")), (root / controller, own.get(controller))):
        if group is not None:
            found += own_directories(base, group)
    return found


def cpus_usable(root: Path = ROOT) -> float:
    """CPUs on which this process may run, or that its cgroups' quotas allow where that is less.

    A container with `--cpus=2` on a machine with 64 sees all of them; the two are a quota.
    """
    usable = float(len(os.sched_getaffinity(0)))
    for directory in all_directories(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (directory / "cpu.max").read_text().split()
            usable = min(usable, int(quota) / int(period))  # ValueError for "max"
        with suppress(OSError, ValueError):
            limit = int((directory / "cpu.cfs_quota_us").read_text())
            each = int((directory / "cpu.cfs_period_us").read_text())
            usable = min(usable, limit / each) if limit > 0 else usable
    return max(math.floor(usable * 1000), 1) / 1000


class MemoryKills:
    """What the kernel has killed in this process's own group, as its memory was used up, since
    this was made. It counts a kill before anybody can see that one's end.
    """

    def __init__(self, root: Path = ROOT) -> None:
        own, files = own_groups(), Files()
        self._places: list[tuple[Path, Path]] = []  # the counter's file, and the limit's
        for base, controller, counter, limit in (
            (root, "", "memory.events", "memory.max"),
            (root / "memory", "memory", "memory.oom_control", "memory.limit_in_bytes"),
        ):
            if controller in own:
                directory = own_directories(base, own[controller], files)[0]
                self._places.append((directory / counter, directory / limit))
        self._before = self._count()

    def any(self) -> bool:
        """Whether there was one."""
        return self._count() > self._before

    def limit(self) -> int | None:
        """The group's memory, in bytes; None where it has no limit, or that can't be told."""
        for _, limit in self._places:
            with suppress(OSError, ValueError):  # ValueError for "max"
                size = int(limit.read_text())
                return size if size < UNLIMITED else None
        return None

    def _count(self) -> int:
        for counter, _ in self._places:
            with suppress(OSError, ValueError):
                for line in counter.read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
        return 0


def _members(files: Files, group: Path, wanted: int) -> bool:
    with suppress(OSError):
        return wanted in _pids(files, group)
    return False


class Room(NamedTuple):
    """Where groups with limits can be made in version 2.

    base: the group for them; controllers: those that its children have; leaf: where the processes
    went that stood in the way, None if they are where they were.
    """

    base: Path
    controllers: frozenset[str]
    leaf: Path | None


def make_room(own: Path, name: str, needed: str, also: Iterable[str], files: Files) -> Room | None:
    """A group `name` in our own one, or beside it; None when it lacks `needed`. OSError: refused.

    1. A daemon's leaf is no place for groups: its parent is, where room was made before.
    2. The members of any group but the hierarchy's root go into a leaf, if all of them are ours:
       the daemon itself, a `zenos up` that waits for it, a container's shell.
    3. The controllers are given to the children, and by these to theirs.
    """
    parent = own.parent if _LEAF.fullmatch(own.name) else own  # 1
    is_root = not files.exists(parent / "cgroup.type")
    leaf = own if parent != own and not is_root else None
    if needed not in files.read(parent / "cgroup.controllers").split():
        return None
    if needed not in files.read(parent / "cgroup.subtree_control").split():
        if not is_root:  # 2
            leaf = parent / f"{name}-daemon"
        try:
            if leaf is not None:
                files.make(leaf)
                _move(parent, leaf, files)
            files.write(parent / "cgroup.subtree_control", f"+{needed}")  # 3
        except OSError:
            if leaf is not None:
                _undo(parent, leaf, files)
            raise
    base = parent / name
    files.make(base)
    files.write(base / "cgroup.subtree_control", f"+{needed}")
    given = {needed}
    for controller in also:
        with suppress(OSError):
            for group in (parent, base):
                files.write(group / "cgroup.subtree_control", f"+{controller}")
            given.add(controller)
    return Room(base, frozenset(given), leaf)


def close_room(room: Room, files: Files) -> None:
    """Remove the group, and let the processes go back, if no worker and no other home needs it."""
    with suppress(OSError):
        files.remove(room.base)
        parent = room.base.parent
        if room.leaf is not None and not [
            child
            for child in files.children(parent)
            if child.name.startswith("zenos-") and not _LEAF.fullmatch(child.name)
        ]:
            for controller in room.controllers:
                files.write(parent / "cgroup.subtree_control", f"-{controller}")
            _undo(parent, room.leaf, files)


def _move(source: Path, target: Path, files: Files) -> None:
    """Move all members; PermissionError when one is somebody else's."""
    for _ in range(MOVES_MAX):
        members = _pids(files, source)
        if not members:
            return
        if not all(map(files.is_ours, members)):
            raise PermissionError(f"{source} holds processes of others")
        for pid in members:
            with suppress(ProcessLookupError):
                files.write(target / "cgroup.procs", str(pid))


def _undo(parent: Path, leaf: Path, files: Files) -> None:
    with suppress(OSError):
        _move(leaf, parent, files)
        files.remove(leaf)


def can_hold(root: Path = ROOT) -> bool:
    """Whether memory limits can probably be held from where this process is; changes nothing."""
    own, files = own_groups(), Files()
    if (root / "cgroup.controllers").exists():
        group = own_directories(root, own.get("", "/"), files)[0]
        group = group.parent if _LEAF.fullmatch(group.name) else group
        control = group / "cgroup.subtree_control"
        try:
            return (
                "memory" in files.read(group / "cgroup.controllers").split()
                and os.access(control, os.W_OK)
                and os.access(group / "cgroup.procs", os.W_OK)
                and os.access(group, os.W_OK)
                and (
                    "memory" in files.read(control).split()
                    or not files.exists(group / "cgroup.type")
                    or all(map(files.is_ours, _pids(files, group)))
                )
            )
        except OSError:
            return False
    return os.access(own_directories(root / "memory", own.get("memory", "/"))[0], os.W_OK)


def _pids(files: Files, group: Path) -> list[int]:
    return [int(pid) for pid in files.read(group / "cgroup.procs").split()]
