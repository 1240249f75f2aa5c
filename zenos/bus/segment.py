"""Segments of shared memory: made, sealed, checked and mapped. Linux only.

A segment is a memfd, a file that lies in memory and has no name: it is freed with its last
descriptor and mapping, however their owners end. Three things keep everybody who maps one safe:

- it is allocated whole before anything is written, so a write never finds that there is no memory;
- it is sealed against shrinking and growing, so an access never lies behind its end (SIGBUS);
- a pool's segments are sealed against writing, too, once the pool has mapped them: only that one
  mapping can ever write. Nobody else can, whatever descriptor they hold.

The first page is the header, in which the owner says for what the rest is used at present.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import stat
import struct
import weakref
from collections.abc import Callable
from typing import Any, Final

from zenos.core import limits
from zenos.core.errors import BusyError, HandleError, UnavailableError

PAGE_BYTES: Final = mmap.PAGESIZE
HEADER_BYTES: Final = max(PAGE_BYTES, 4096)  # the data begins on a page of its own
FIXED_SIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
NO_NEW_WRITER: Final = 0x10  # F_SEAL_FUTURE_WRITE, since Linux 5.1; Python has no name for it
_NOEXEC: Final = 0x8  # MFD_NOEXEC_SEAL, since Linux 6.3
_NO_MORE_SEALS: Final = fcntl.F_SEAL_SEAL
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_PROT_NONE: Final = 0
_MAGIC: Final = b"zenosM\x01\0"
_HEADER: Final = struct.Struct("<8sQQ")  # magic, generation, inode of the lifeline
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED: Final = ctypes.c_void_p(-1).value


class Mapping:
    """Memory of this process onto a segment. It is unmapped when nothing refers to it any more:
    this object, its memoryviews, and arrays and tensors made of them.

    writable: shared with everybody. Else what others write shows here and nothing can be written,
    until `make_private`.
    """

    def __init__(self, fd: int, size: int, *, writable: bool = False) -> None:
        """Map `size` bytes from the beginning. UnavailableError where the system refuses.

        Not Python's mmap, which keeps a descriptor of its own for each mapping.
        """
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # A private mapping that isn't written shows the shared pages themselves.
        flags = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        address = _libc.mmap(None, size, protection, flags, fd, 0)
        if address == _FAILED:
            raise UnavailableError(
                f"cannot map {size} bytes of shared memory: {os.strerror(ctypes.get_errno())}"
            )
        self._address = address
        self.size = size
        self._writable = writable
        self._exporter = _bytes_type(size).from_address(address)
        self.at_end(_libc.munmap, address, size)

    def at_end(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it when nothing refers to the memory any more."""
        weakref.finalize(self._exporter, function, *arguments).atexit = False

    def exporter(self) -> Any:
        """An object of the buffer protocol over all bytes, that keeps the mapping; it can be
        referred to weakly, which tells when nobody uses what was made of it."""
        return _bytes_type(self.size).from_buffer(self._exporter)

    @property
    def memory(self) -> memoryview:
        """All bytes, read-only unless the mapping is writable."""
        memory = memoryview(self._exporter).cast("B")
        return memory if self._writable else memory.toreadonly()

    def make_private(self) -> memoryview:
        """All bytes, writable; what is written is this process' own copy of the page."""
        if not self._writable:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            if _libc.mprotect(self._address, self.size, protection):
                reason = os.strerror(ctypes.get_errno())
                raise UnavailableError(f"cannot make shared memory private: {reason}")
        return memoryview(self._exporter).cast("B")

    def populate(self) -> None:
        """Take the pages in now, so that the first write to each isn't slow. Content stays."""
        if _libc.madvise(self._address, self.size, _POPULATE_WRITE) == 0:
            return
        # An older kernel. Pages of a memfd are taken in for writing by a read, too, and a write
        # could undo another process'.
        for _ in self.memory[::PAGE_BYTES]:
            pass

    def forget(self) -> None:
        """Cut it from the segment: in a fork, which may not hold its parent's memory.

        The addresses stay taken, since objects of the parent still unmap them; touching them ends
        the process.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        _libc.mmap(self._address, self.size, _PROT_NONE, flags, -1, 0)


@functools.lru_cache(maxsize=256)
def _bytes_type(size: int) -> Any:
    return ctypes.c_ubyte * size


def create(size: int) -> int:
    """The descriptor of a new segment of `size` bytes, zeroed, allocated, of fixed size.

    BusyError when the machine has no memory for it; UnavailableError when the system cannot.
    """
    try:
        fd = _memfd()
    except OSError as error:
        raise UnavailableError(
            f"cannot make shared memory: {error.strerror}; "
            "close files, or raise the limit with 'ulimit -n'"
        ) from error
    try:
        available = _available_bytes()
        if size > available:
            raise BusyError(
                f"cannot allocate {size} bytes of shared memory: the machine has {available} left"
            )
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED_SIZE)
    except OSError as error:
        os.close(fd)
        raise BusyError(
            f"cannot allocate {size} bytes of shared memory: {error.strerror}; "
            "free some, or ask for less"
        ) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def close_to_writers(fd: int) -> None:
    """Nobody may map it for writing from now on, or write to it; who has mapped it still may."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, NO_NEW_WRITER | _NO_MORE_SEALS)
    except OSError as error:
        raise UnavailableError(
            f"cannot make shared memory read-only for others: {error.strerror}; "
            "that takes Linux 5.1 or newer"
        ) from error


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("zenos", flags | _NOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("zenos", flags)


def _available_bytes() -> int:
    """What the machine could give without swapping; without bound where it doesn't say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - once a segment
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * limits.KIB
    except (OSError, ValueError, IndexError):
        pass
    return limits.SEGMENT_BYTES_MAX


def check(fd: int, segment: int, *, seals: int) -> int:
    """The size in bytes of what `fd` is; HandleError unless it is that segment, whole and sealed.

    segment: its inode number, which no other has while it lives.
    """
    try:
        found = os.fstat(fd)
        held = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise HandleError("cannot use this handle: what came with it is no memory") from None
    if not stat.S_ISREG(found.st_mode) or found.st_ino != segment:
        raise HandleError(f"cannot use this handle: it is of segment {segment}, not of this one")
    if held & seals != seals:
        raise HandleError("cannot use this memory: it is not sealed, so it may change under us")
    if found.st_blocks * 512 < found.st_size:
        raise HandleError("cannot use this memory: it is not allocated whole")
    return found.st_size


def write_header(memory: memoryview, generation: int, lifeline: int) -> None:
    """Say what the segment is used for: that generation, with the lifeline of that inode."""
    _HEADER.pack_into(memory, 0, _MAGIC, generation, lifeline)


def check_header(memory: memoryview, generation: int, lifeline: int) -> None:
    """HandleError unless the segment is used for that generation, with that lifeline, now."""
    magic, used_for, line = _HEADER.unpack_from(memory, 0)
    if magic != _MAGIC:
        raise HandleError("cannot use this memory: it is not from a pool of this version")
    if used_for != generation:
        raise HandleError(
            f"cannot use this handle: it is of generation {generation}, "
            f"and its memory has gone on to {used_for}"
        )
    if line != lifeline:
        raise HandleError("cannot use this handle: the lifeline with it belongs to another")
