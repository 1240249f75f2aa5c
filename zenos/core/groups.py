"""This process's control groups, and the CPUs that they leave it."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath


def own_groups(path: Path = Path("/proc/self/cgroup")) -> dict[str, str]:
    """This process's group by controller; the key "" is version 2's."""
    groups: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = group
    return groups


def own_directories(root: Path, controller: str) -> list[Path]:
    """Our own groups of a controller, in both versions, with all that they lie in.

    A container may see itself at the root although its group has a longer name outside.
    """
    own = own_groups()
    found = []
    for base, group in ((root, own.get("")), (root / controller, own.get(controller))):
        if group is not None:
            below = PurePosixPath(group.lstrip("/"))
            found += [base / below, *(base / parent for parent in below.parents)]
    return found


def cpus_usable(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs on which this process may run, or that its cgroups' quotas allow where that is less.

    A container with `--cpus=2` on a machine with 64 sees all of them; the two are a quota.
    """
    usable = float(len(os.sched_getaffinity(0)))
    for directory in own_directories(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (directory / "cpu.max").read_text().split()
            usable = min(usable, int(quota) / int(period))  # ValueError for "max"
        with suppress(OSError, ValueError):
            limit = int((directory / "cpu.cfs_quota_us").read_text())
            each = int((directory / "cpu.cfs_period_us").read_text())
            usable = min(usable, limit / each) if limit > 0 else usable
    return max(math.floor(usable * 1000), 1) / 1000
