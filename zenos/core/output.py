"""A worker's output: from a pipe into its log, which is bounded. Standard library only.

The shim stands between because nothing else bounds a log. A worker that had the file itself would
write gigabytes between two looks and while its end is copied, and the faster the disk, the more;
a limit on the size of files (RLIMIT_FSIZE) would hold for all that a program writes. Through a pipe
no more comes than the shim takes, whatever share of the processor it gets. The price: one wake-up
of the shim for a line, though not more than 200 in a second (see `PAUSE_S`).
"""

from __future__ import annotations

import os

from zenos.core.logs import open_log, rotate

CHUNK_BYTES = 1 << 16  # what a pipe holds
# After a little output the shim waits this long before it takes more: else a program that writes
# its lines one by one would wake it for each.
PAUSE_S, LITTLE_BYTES = 0.005, 1 << 12


def notice(lost_bytes: int, fault: str) -> str:
    """What stands where output is missing."""
    return f"\n[cannot show {lost_bytes} bytes of output: {fault}]\n"


class Output:
    """The log in a run directory, and the pipe that leads there.

    bytes_max: the size at which the log is set aside as `log.1` and begun anew (see logs.py), so
    that both together hold at most twice that; 0 for no limit. OSError when there can be no log.
    """

    def __init__(self, directory: str, bytes_max: int) -> None:
        self._path = os.path.join(directory, "log")
        self._bytes_max = bytes_max
        self._lost = 0
        self._fault = ""
        self._log = open_log(self._path)
        self._begin = 0
        self._size = 0
        self.end, self.writer = os.pipe()
        os.set_blocking(self.end, False)

    def enter(self) -> None:
        """In the worker: make the pipe its stdout and stderr."""
        os.dup2(self.writer, 1)
        os.dup2(self.writer, 2)
        for fd in (self._log, self.end, self.writer):
            os.close(fd)

    def leave(self) -> None:
        """In the shim, once the worker is forked: the pipe ends with its last writer."""
        os.close(self.writer)

    def take(self) -> int | None:
        """Move what has come, at most 64 KiB; the number of bytes, None when no more can come.

        What cannot be written is dropped, and the log says so as soon as it can: a full disk is no
        reason to hold the program up.
        """
        size = min(CHUNK_BYTES, self._bytes_max or CHUNK_BYTES)
        try:
            data = os.read(self.end, size)
        except BlockingIOError:
            return 0
        if not data:
            return None
        self._write(data)
        return len(data)

    def drain(self) -> None:
        """Move what is left when all writers have ended.

        At most what the largest pipe holds: a stranger may have opened its other end.
        """
        left = 1 << 20
        while left > 0 and (moved := self.take()):
            left -= moved

    def tell_lost(self) -> int:
        """Say in the log what could not be written, if it has room by now.

        The number of bytes of which it still says nothing.
        """
        if self._lost:
            self._write(b"")
        return self._lost

    def _write(self, data: bytes) -> None:
        rest = (notice(self._lost, self._fault).encode() if self._lost else b"") + data
        try:
            if self._bytes_max and self._size + len(rest) > self._bytes_max:
                self._begin_anew()
            while rest:
                written = os.write(self._log, rest)
                self._size += written
                rest = rest[written:]
        except OSError as error:
            self._fault = error.strerror or "unknown"
            told = len(rest) <= len(data)  # the notice got out, a part of the data did not
            self._lost = len(rest) if told else self._lost + len(data)
        else:
            self._lost = 0

    def _begin_anew(self) -> None:
        fresh = rotate(self._path, self._log, self._begin, self._size)
        os.close(self._log)
        self._begin += self._size
        self._log, self._size = fresh, 0
