"""The process of a lane, as who started it has it: a pool (lanes.py) or a host of calls.

What the process itself makes of what it is given is in inherited.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final, NamedTuple

from zenos.core.errors import LaneError
from zenos.threads.current import BOARD_BYTES, Board


class Started(NamedTuple):
    """A lane's process. link: our end of its socket; theirs: its own, ours to close."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    theirs: socket.socket
    board: Board


def start(module: str, kind: socket.SocketKind, environment: dict[str, str]) -> Started:
    """Start one. LaneError when the system can't; then nothing is left of it.

    module: what it runs. environment: what it has beside our own.
    """
    board = None
    try:
        link, theirs = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        raise LaneError(f"cannot start a lane's process: {error}") from error
    try:
        fd = os.memfd_create("zenos-lane", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, BOARD_BYTES)
            board = Board(fd)
            argv = [str(number) for number in (theirs.fileno(), fd, os.getpid())]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *argv],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno(), fd],
            )
        finally:
            os.close(fd)
    except OSError as error:
        link.close()
        theirs.close()
        if board is not None:
            board.close()
        raise LaneError(f"cannot start a lane's process: {error}") from error
    return Started(process, link, theirs, board)


KILLED: Final = f"was ended by {signal.SIGKILL.name}"


def how_ended(code: int) -> str:
    """How a process with that exit code has ended, in words."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, in seconds; 0 when it can't be told."""
    with suppress(OSError):
        # The clock of another process's CPU time: clock_getcpuclockid(3), as Linux has it.
        return time.clock_gettime((~pid << 3) | 2)
    return 0.0
