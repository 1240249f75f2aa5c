"""Control groups of version 2 in memory, with the kernel's rules for members and controllers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zenos.core.cgroups import Files

TOP = Path("/cg")


class FakeGroups(Files):
    """A hierarchy under `TOP`, which is its root unless it stands for a namespace's.

    strangers: pids of other users. A pid that is in no group is not there.
    """

    def __init__(self, controllers: str, *, namespace: bool = False) -> None:
        self.groups: dict[Path, set[int]] = {TOP: set()}
        self.given: dict[Path, set[str]] = {TOP: set()}
        self.read_only: set[Path] = set()
        self.strangers: set[int] = set()
        self._controllers = set(controllers.split())
        self._namespace = namespace

    def add(self, group: str, *pids: int) -> Path:
        """A group with members; those above it give it all controllers."""
        path = TOP / group
        for parent in reversed(path.parents):
            if parent.is_relative_to(TOP):
                self.make(parent)
                self.given[parent] |= self.available(parent)
        self.make(path)
        self.groups[path] |= set(pids)
        return path

    def available(self, group: Path) -> set[str]:
        return self._controllers if group == TOP else self.given[group.parent]

    def _is_root(self, group: Path) -> bool:
        return group == TOP and not self._namespace

    def read(self, path: Path) -> str:
        members = self._group(path.parent)
        if path.name == "cgroup.procs":
            return "".join(f"{pid}\n" for pid in sorted(members))
        if path.name == "cgroup.controllers":
            return " ".join(sorted(self.available(path.parent)))
        if path.name == "cgroup.subtree_control":
            return " ".join(sorted(self.given[path.parent]))
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))

    def write(self, path: Path, text: str) -> None:
        group, members = path.parent, self._group(path.parent)
        if group in self.read_only:
            raise PermissionError(errno.EACCES, "permission denied", str(path))
        if path.name == "cgroup.procs":
            if self.given[group] and not self._is_root(group):
                raise OSError(errno.EBUSY, "device or resource busy", str(path))
            source = [held for held in self.groups.values() if int(text) in held]
            if not source:
                raise ProcessLookupError(errno.ESRCH, "no such process")
            source[0].discard(int(text))
            members.add(int(text))
        elif path.name == "cgroup.subtree_control":
            sign, controller = text[0], text[1:]
            if sign == "-":
                if any(controller in self.given[child] for child in self.children(group)):
                    raise OSError(errno.EBUSY, "device or resource busy", str(path))
                self.given[group].discard(controller)
                return
            if controller not in self.available(group):
                raise FileNotFoundError(errno.ENOENT, "no such controller", str(path))
            if members and not self._is_root(group):
                raise OSError(errno.EBUSY, "device or resource busy", str(path))
            self.given[group].add(controller)
        else:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))

    def exists(self, path: Path) -> bool:
        if path.name == "cgroup.type":
            return path.parent in self.groups and not self._is_root(path.parent)
        return path in self.groups or path.parent in self.groups

    def make(self, path: Path) -> None:
        if path.parent in self.read_only:
            raise PermissionError(errno.EACCES, "permission denied", str(path))
        self.groups.setdefault(path, set())
        self.given.setdefault(path, set())

    def remove(self, path: Path) -> None:
        if self._group(path) or self.children(path):
            raise OSError(errno.EBUSY, "device or resource busy", str(path))
        del self.groups[path], self.given[path]

    def children(self, path: Path) -> list[Path]:
        return [group for group in self.groups if group.parent == path and group != path]

    def is_ours(self, pid: int) -> bool:
        return pid > 0 and pid not in self.strangers

    def _group(self, path: Path) -> set[int]:
        try:
            return self.groups[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such group", str(path)) from None


ME = os.getpid()
