"""Stopping a program's processes where they are, and letting them go on: for `zenos pause`.

By the control group where that can freeze (version 2), else by SIGSTOP to every process below the
shim, in whatever session it is. The shim itself goes on: it reads the output and writes down the
end. A file in the run directory says that a generation is frozen, or is being so, from before the
first process is stopped until after the last one is let go; so the next daemon knows.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from zenos.core import failpoints, processes, shim
from zenos.workers import runs
from zenos.workers.limits import Cgroups

FROZEN: Final = "frozen"  # in the run directory
LOOK_S, LOOK_S_MAX = 0.005, 0.25
How = Literal["step", "signals", "freeze"]


def is_frozen(directory: Path) -> bool:
    """Whether a generation is frozen, or is being frozen or thawed."""
    return (directory / FROZEN).exists()


async def freeze(
    cgroups: Cgroups, directory: Path, task: str, generation: int, how: How, grace_s: float
) -> bool:
    """Stop a generation's processes; returns when none of them runs any more.

    1. With `signals` the program's group gets SIGTSTP: it may put its things in order before it
       stops itself. It has half of `grace_s` seconds for that.
    2. What still runs is frozen by its control group, or by SIGSTOP; again and again, since who is
       not stopped yet may fork. A process deep in the kernel stops when it comes out.

    False when the processes have ended or were let go before.
    """
    (directory / FROZEN).touch(mode=0o600)
    failpoints.passing("worker.pause.marked")
    worker = runs.process(directory, "started")
    polite_until = time.monotonic() + grace_s / 2
    wait_s = LOOK_S
    if how == "signals" and worker is not None:  # 1
        with suppress(ProcessLookupError):
            os.killpg(worker, signal.SIGTSTP)
    by_group = False
    while is_frozen(directory):
        pids = members(directory)
        running = [pid for pid in pids if not _is_stopped(pid)]
        if not pids:
            return False
        if not running or (by_group and cgroups.is_frozen(task, generation)):
            failpoints.passing("worker.pause.stopped")
            return True
        if how != "signals" or time.monotonic() >= polite_until:  # 2
            by_group = by_group or cgroups.freeze(task, generation, frozen=True)
            for pid in () if by_group else running:
                processes.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, LOOK_S_MAX)
    return False


def thaw(cgroups: Cgroups, directory: Path, task: str, generation: int) -> bool:
    """Let a frozen generation's processes go on; whether it was frozen. Nothing to one that isn't.

    The file goes last: a daemon that is killed on the way leaves it, and the next one does it anew.
    """
    if not is_frozen(directory):
        return False
    cgroups.freeze(task, generation, frozen=False)
    for pid in members(directory):
        processes.kill(pid, signal.SIGCONT)
    failpoints.passing("worker.resume.signalled")
    with suppress(OSError):
        (directory / FROZEN).unlink()
    return True


def members(directory: Path) -> list[int]:
    """Every process below a generation's shim that is alive."""
    record = runs.read_record(directory, "shim")
    if record is None or record.get("boot_id") != shim.boot_id():
        return []
    pid = int(record["pid"])
    return shim.descendants(pid) if shim.start_time(pid) == record["start_time"] else []


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, or has ended meanwhile."""
    return (processes.stat_fields(pid) or ["X"])[0] in "TtZX"
