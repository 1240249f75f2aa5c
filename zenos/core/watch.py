"""Waiting for a worker's end, and for the end of what it leaves behind. Standard library only."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any

from zenos.core.memory import Limits
from zenos.core.output import LITTLE_BYTES, PAUSE_S, Output
from zenos.core.processes import (
    PR_SET_PDEATHSIG,
    children,
    descendants,
    handles,
    kill,
    prctl,
    stat_fields,
)

SAMPLE_S = 0.2
STOPPING = "stopping"  # in the run directory, once the daemon has begun to end the worker
# The longest grace time that the settings allow: for when no daemon ends it.
GRACE_S_MAX = 3600.0
# For what is left behind by a worker that nobody stopped, and how often it is looked at.
LEFTOVERS_S, LOOK_S = 2.0, 0.05


class Watch:
    """What the shim waits for: the worker's end, its output, the next look at its memory."""

    def __init__(self, worker: int, output: Output, limits: Limits) -> None:
        self._worker = worker
        self._output: Output | None = output
        self._limits = limits
        self._pidfd = os.pidfd_open(worker)
        self._wait_s = 0.01
        self._sample_at = time.monotonic() + self._wait_s
        self._listen_at = 0.0
        self._sentinel: int | None = None

    def until_end(self) -> None:
        """Return when the worker has ended; it is a zombie then."""
        while not self._turn(self._pidfd, self._sample_at):
            continue
        os.close(self._pidfd)

    def let_rest_end(self, directory: str) -> None:
        """Let what the worker has left behind end by itself, for a while.

        After a worker that ended on the daemon's SIGTERM (a shell around a program that saves its
        state) it has the grace time of whoever stopped the task, which ends with SIGKILL to the
        group: therefore the worker, which leads the group, stays a zombie until then. No second
        SIGTERM goes to a process that handles the first, since to many that means "at once".
        That it was the daemon's says the file STOPPING in the run directory.
        After a worker that ended otherwise it gets SIGTERM and `LEFTOVERS_S`, after one that was
        killed nothing.
        """
        stopped = _was_stopped(self._worker)
        if stopped is None or self._limits.exceeded or not self._rest():
            return
        stopped = stopped and os.path.exists(f"{directory}/{STOPPING}")
        if stopped:
            self._sentinel = _sentinel(self._worker)
        wait_s = GRACE_S_MAX if self._sentinel is not None else LEFTOVERS_S
        for pid in descendants(os.getpid()):
            told = stopped and self._in_group(pid) and handles(pid, signal.SIGTERM)
            if pid != self._sentinel and not told:
                kill(pid, signal.SIGTERM)
        guarded, look_s = self._sentinel is not None, 0.002
        end = time.monotonic() + wait_s
        while self._rest() and time.monotonic() < end and not self._limits.exceeded:
            if guarded and self._sentinel is None:
                return
            look_s = min(2 * look_s, LOOK_S)
            self._turn(None, time.monotonic() + look_s)

    def end_rest(self) -> tuple[int, Any]:
        """End all that is left and reap it; the worker's status and its use of resources."""
        self._limits.sample_end(killed=_was_stopped(self._worker) is None)
        kill(-self._worker, signal.SIGKILL)
        _, code, usage = os.wait4(self._worker, 0)
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return code, usage  # orphans become our children, so nobody is left
            for pid in descendants(os.getpid()):
                kill(pid, signal.SIGKILL)
            self._limits.kill_members()
            time.sleep(0.002)

    def _in_group(self, pid: int) -> bool:
        return stat_fields(pid)[2:3] == [str(self._worker)]

    def _rest(self) -> bool:
        """Whether something lives besides the sentinel; what has ended is reaped, but the worker.

        What outlives its parent becomes our child, so to have none is enough. The list of children
        is looked at again after each reaping: who was reaped may have left us others.
        """
        while True:
            rest = reaped = False
            for pid in children(os.getpid()):
                if pid == self._worker:
                    continue
                if os.waitpid(pid, os.WNOHANG)[0]:
                    reaped = True
                    if pid == self._sentinel:
                        self._sentinel = None
                elif pid != self._sentinel:
                    rest = True
            if not reaped:
                return rest

    def _turn(self, pidfd: int | None, until: float) -> bool:
        """Wait for the worker's end, if that is asked, and for output, and do what is due."""
        now = time.monotonic()
        if now >= self._sample_at:
            self._sample()
            now = time.monotonic()
        poll = select.poll()
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        if self._output is not None:
            if now >= self._listen_at:
                poll.register(self._output.end, select.POLLIN)
            else:
                until = min(until, self._listen_at)
        ready = [fd for fd, _ in poll.poll(max(0.0, until - now) * 1000)]
        if self._output is not None and self._output.end in ready:
            moved = self._output.take()
            if moved is None:
                self._output = None  # nobody holds the other end: a program that closed its output
            elif moved < LITTLE_BYTES:
                self._listen_at = time.monotonic() + PAUSE_S
        return pidfd in ready

    def _sample(self) -> None:
        if self._output is not None:
            self._output.tell_lost()  # a program that says no more would never have it told
        if self._limits.sample():
            kill(-self._worker, signal.SIGKILL)
            self._limits.kill_members()
        self._wait_s = min(2 * self._wait_s, SAMPLE_S)
        self._sample_at = time.monotonic() + self._wait_s


def _sentinel(group: int) -> int | None:
    """A process in the worker's group that only waits for SIGKILL; None when there can be none.

    The daemon ends the grace time by killing the group. What has left the group doesn't feel that,
    and is ended when the sentinel has gone.
    """
    try:
        pid = os.fork()
    except OSError:
        return None
    if pid == 0:
        try:
            os.closerange(0, 1024)  # also the lock: it is held while the shim lives, no longer
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                signal.pause()  # a shim ignores SIGTERM, and so does this
        finally:
            os._exit(1)
    try:
        os.setpgid(pid, group)
    except OSError:
        kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    return pid


def _was_stopped(worker: int) -> bool | None:
    """Whether a worker that has ended did so on SIGTERM; None when it was killed."""
    status = os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    if status is None or status.si_code == os.CLD_EXITED:
        # 128 + signal: how shells, and programs that handle it, say the same.
        return status is not None and status.si_status == 128 + signal.SIGTERM
    return None if status.si_status == signal.SIGKILL else status.si_status == signal.SIGTERM
