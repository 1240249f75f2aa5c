"""Processes, as /proc has them. Standard library only: shims use it."""

from __future__ import annotations

import os
from typing import Any

# Where the kernel has CONFIG_PROC_CHILDREN; else all of /proc is read for it.
HAS_CHILDREN = os.path.exists("/proc/thread-self/children")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def boot_id() -> str:
    """This boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state first. Empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started; 0 when it is gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def session_members(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if len(fields) > 3 and int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(name))
    return found


def with_variables(variables: dict[str, str]) -> list[int]:
    """The processes that were started with all these in their environment, as far as we may see.

    A fork is as what it was forked from: what a process itself has set since then isn't seen.
    """
    wanted = {os.fsencode(f"{name}={value}") for name, value in variables.items()}
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    has = wanted.issubset(file.read().split(b"\0"))
            except OSError:  # it has ended, or is another user's
                continue
            if has:
                found.append(int(name))
    return found


def children(pid: int) -> list[int]:
    """The children of a process, also those that have ended and aren't reaped."""
    if not HAS_CHILDREN:
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and stat_fields(int(name))[1:2] == [str(pid)]
        ]
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except OSError:  # it has ended meanwhile, and its children are the shim's
        return found
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    return list(below({pid}))


def below(roots: set[int]) -> set[int]:
    """All processes below these, by one look at all there are."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if len(fields) > 1 and fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(int(name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        here = parents.get(waiting.pop(), [])
        found.update(here)
        waiting += here
    return found


def handles(pid: int, number: int) -> bool:
    """Whether a process catches a signal, or blocks it so as to wait for it."""
    mask = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(("SigCgt:", "SigBlk:")):
                    mask |= int(line.split()[1], 16)
    except OSError:
        return False
    return bool(mask >> (number - 1) & 1)


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of processes together; pages that they share count for each."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * page
        except (OSError, IndexError):
            continue
    return total


def own_bytes(pids: list[int]) -> int:
    """Resident memory of processes together; a page that several share counts once, in parts.

    Of what they share with others their part counts. The kernel walks through all pages for it:
    tens of milliseconds for each GiB. A process of which it doesn't tell counts as it is resident.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                parts = (line.split() for line in file)
                total += next(int(part[1]) * 1024 for part in parts if part[0] == "Pss:")
        except (OSError, StopIteration):
            total += resident_bytes([pid])
    return total


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same pid."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}


def prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` call this process: 15 bytes. What it starts is called the same.

    A program that is executed has a name of its own again.
    """
    try:
        with open("/proc/self/comm", "w", encoding="utf-8") as file:
            file.write(name)
    except OSError:
        return  # it is to be read by people alone


def kill(pid: int, number: int) -> None:
    """Send a signal to a process, or to a group by its negative number; it may be gone."""
    try:
        os.kill(pid, number)
    except OSError:
        return
