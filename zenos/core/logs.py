"""A log that is bounded, and reading it over its rotations. Standard library only.

A log is two files at most: `log`, and before it `log.1`. Each has a logical offset: where it
begins in all that was ever written. Those of both are in `log.begins`, by the files' inodes, and
written before the files are renamed: so whoever dies in between, each file still has its own.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

LOOKS = 20  # a rotation is three system calls; whoever looks so often has seen it end
RECORD_BYTES_MAX = 1024


def rotate(path: str, log: int, begin: int, size: int) -> int:
    """Set the log aside as `log.1` and begin it anew; the new file's descriptor.

    log: its descriptor; begin, size: its logical offset and its bytes. OSError when there is no
    room: then it goes on as it was.
    """
    fresh = open_log(f"{path}.new")
    try:
        lines = f"{os.fstat(log).st_ino} {begin}\n{os.fstat(fresh).st_ino} {begin + size}\n"
        record = os.open(f"{path}.begins.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.write(record, lines.encode()) < len(lines):
                raise OSError(28, "No space left on device")
        finally:
            os.close(record)
        os.rename(f"{path}.begins.new", f"{path}.begins")
        with suppress(FileNotFoundError):  # somebody has removed it
            os.rename(path, f"{path}.1")
        os.rename(f"{path}.new", path)
    except OSError:
        os.close(fresh)
        raise
    return fresh


def open_log(path: str) -> int:
    """A descriptor that appends."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Reader:
    """What a log holds from a logical offset on; `offset` is where the next part begins.

    It is later than asked for where what was before is gone. The files stay open, so that what was
    there when they were looked for is read whole, whatever is set aside meanwhile. A file that is
    no regular one is left out: a worker may have put anything there.
    """

    def __init__(self, path: str, offset: int) -> None:
        self._path = path
        self._files: list[tuple[int, int]] = []  # descriptor and logical offset, oldest first
        self.offset = offset
        self._files = self._find()
        if self._files:
            self.offset = max(offset, self._files[0][1])

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; empty at the end of what was found so far."""
        while self._files:
            fd, begin = self._files[0]
            if begin > self.offset:
                return b""
            if part := os.pread(fd, count, self.offset - begin):
                self.offset += len(part)
                return part
            if len(self._files) == 1:
                return b""
            os.close(self._files.pop(0)[0])
        return b""

    @property
    def has_gap(self) -> bool:
        """Whether what comes next is gone, so that there is more only from a later offset on."""
        return bool(self._files) and self._files[0][1] > self.offset

    def look(self) -> bool:
        """Look for files that were begun since; whether there are any."""
        known = {os.fstat(fd).st_ino for fd, _ in self._files}
        with suppress(OSError):
            if os.stat(self._path).st_ino in known:
                return False  # the usual case, at the price of one system call
        fresh = self._find()
        new = [file for file in fresh if os.fstat(file[0]).st_ino not in known]
        for file in fresh:
            if file not in new:
                os.close(file[0])
        self._files += new
        return bool(new)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop()[0])

    def _find(self) -> list[tuple[int, int]]:
        """Both files, as far as they are there. In the middle of a rotation it is looked again."""
        for left in reversed(range(LOOKS)):
            # The newer one first: were it set aside in between, it would be found twice, not never.
            newer, older = _open(self._path), _open(f"{self._path}.1")
            fds = [fd for fd in (older, newer) if fd is not None]
            begins = _begins(f"{self._path}.begins", fds, guess=left == 0)
            if begins is not None:
                return list(zip(fds, begins, strict=True))
            for fd in fds:
                os.close(fd)
        return []


def _open(path: str) -> int | None:
    """A descriptor to read from; None for what is not there, or no regular file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _begins(path: str, fds: list[int], *, guess: bool) -> list[int] | None:
    """The logical offsets of a log's files, oldest first; None while a rotation is under way.

    guess: from their sizes, where the record doesn't know them.
    """
    inodes = [os.fstat(fd).st_ino for fd in fds]
    recorded: dict[int, int] = {}
    with suppress(OSError, ValueError), open(path, "rb") as file:
        for line in file.read(RECORD_BYTES_MAX).splitlines():
            inode, begin = line.split()
            recorded[int(inode)] = int(begin)
    if len(fds) == 2 and inodes[0] not in recorded and inodes[1] in recorded:
        # A new record, and the files as they were: what was set aside ends where the log begins.
        recorded[inodes[0]] = recorded[inodes[1]] - os.fstat(fds[0]).st_size
    if all(inode in recorded for inode in inodes) and len(set(inodes)) == len(inodes):
        begins = [recorded[inode] for inode in inodes]
        if begins == sorted(begins):
            return begins
    if not guess and (recorded or len(fds) > 1):
        return None
    return [0, os.fstat(fds[0]).st_size] if len(fds) == 2 else [0]
