"""Parcels: handles with the descriptors that make them good, and their way over a unix socket.

Two descriptors travel: the segment's, and the *lifeline*, the reading end of a pipe whose writing
end the owner of the memory keeps. Every copy of the lifeline, wherever it is, says that somebody
uses the memory: a parcel that wasn't sent yet, one that waits in a socket, a view. When the last
copy is closed the owner's end reports it (POLLERR). The kernel closes what a dead process held and
what waited in a dead socket, so a `kill -9` at any point counts as letting go, with no bookkeeping
that could be wrong. Nobody writes into the pipe.

Counting in shared memory would need a repair after each death, and leases with a timeout would
either be too short for a slow reader or keep memory too long; a pipe is exact, and costs one
descriptor at each end.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Sequence
from typing import Final, Self

import msgspec

from zenos.bus.handle import Handle
from zenos.core import limits
from zenos.core.errors import ConflictError, DeadlineError, HandleError, UnavailableError

LENGTH: Final = struct.Struct(">I")
DESCRIPTORS: Final = 2  # of a parcel
# A peer may attach more: they must be taken to be closed. The most that Linux passes at once.
_TAKEN_MAX: Final = 253
_open: weakref.WeakSet[Parcel] = weakref.WeakSet()
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(tuple[Handle, ...])


class Parcel:
    """Handles into one segment, its descriptor and a lifeline. Closed by `close`, by leaving
    `with`, or with the last reference.

    May be sent many times, to many processes, also by one who only passes it on: nothing is mapped
    for that.
    """

    def __init__(self, handles: Sequence[Handle], segment: int, lifeline: int) -> None:
        """Takes over both descriptors. HandleError for no handles, too many, or not of one use."""
        self._descriptors: tuple[int, ...] = (segment, lifeline)
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self.handles = tuple(handles)
        if not 1 <= len(self.handles) <= limits.ARRAYS_PER_PARCEL_MAX:
            raise HandleError(
                f"cannot pass {len(self.handles)} arrays at once: "
                f"from 1 to {limits.ARRAYS_PER_PARCEL_MAX}"
            )
        if len({(handle.segment, handle.generation) for handle in self.handles}) != 1:
            raise HandleError("cannot pass arrays of several buffers at once")
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The segment's and the lifeline, for who sends them by other means. ConflictError."""
        if not self._close.alive:
            raise ConflictError("cannot use a parcel that was closed")
        segment, lifeline = self._descriptors
        return segment, lifeline

    @property
    def body(self) -> bytes:
        """The handles, as `decode` reads them."""
        return _encoder.encode(self.handles)

    def close(self) -> None:
        """Let go. What was sent, and views, are not concerned."""
        self._close()


def tie(handles: Sequence[Handle], segment: int) -> tuple[Parcel, int]:
    """A parcel with a new lifeline, and the end of that which tells when all have let go.

    segment: a descriptor, which stays the caller's. HandleError, UnavailableError.
    """
    taken: list[int] = []
    try:
        taken += os.pipe()
        taken.append(os.dup(segment))
    except OSError as error:
        _close_all(taken)
        raise UnavailableError(
            f"cannot lend shared memory: {error.strerror}; raise the limit with 'ulimit -n'"
        ) from error
    reading, telling, copy = taken
    try:
        return Parcel(handles, copy, reading), telling
    except BaseException:
        os.close(telling)
        raise


def decode(body: bytes | memoryview, descriptors: Sequence[int]) -> Parcel:
    """The parcel of `Parcel.body` and the descriptors that came with it, which it takes over.

    HandleError, and the descriptors are closed, where that is none.
    """
    try:
        handles = _decoder.decode(body)
        if len(descriptors) != DESCRIPTORS:
            raise HandleError(f"cannot use handles with {len(descriptors)} descriptors: two belong")
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        _close_all(descriptors)
        raise HandleError(f"cannot read these handles: {e}") from None
    except HandleError:
        _close_all(descriptors)
        raise
    return Parcel(handles, *descriptors)


def send(link: socket.socket, parcel: Parcel, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> None:
    """Send over a connected unix socket, stream or sequenced packets.

    OSError as the socket has it (the other end is gone); DeadlineError when it takes nothing for
    `timeout_s`: of a stream, part of the parcel may be in it, so close it.
    """
    body = parcel.body
    waiting = memoryview(LENGTH.pack(len(body)) + body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", parcel.descriptors))]
    end = time.monotonic() + timeout_s
    while waiting:
        try:
            sent = link.sendmsg([waiting], rights, socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(link, select.POLLOUT, end)
            continue
        waiting, rights = waiting[sent:], []


def receive(link: socket.socket, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> Parcel | None:
    """The next parcel from a connected unix socket; None when the other end has closed it.

    HandleError for anything else than a parcel (nothing is left open then): close the socket.
    DeadlineError when none comes within `timeout_s`. UnavailableError when this process may open
    no more files.
    """
    end = time.monotonic() + timeout_s
    packets = link.type == socket.SOCK_SEQPACKET
    first = LENGTH.size + (limits.PARCEL_BYTES_MAX if packets else 0)
    data, descriptors = _take(link, first, end)
    try:
        if not data and not descriptors:
            return None
        while len(data) < LENGTH.size and not packets:
            data += _more(link, LENGTH.size - len(data), end)
        if len(data) < LENGTH.size:
            raise HandleError("cannot read this parcel: it is cut")
        (length,) = LENGTH.unpack_from(data)
        if length > limits.PARCEL_BYTES_MAX:
            raise HandleError(f"cannot read a parcel of {length} bytes: too long")
        while len(data) - LENGTH.size < length and not packets:
            data += _more(link, length + LENGTH.size - len(data), end)
        if len(data) - LENGTH.size != length:
            raise HandleError("cannot read this parcel: it is cut")
    except BaseException:
        _close_all(descriptors)
        raise
    return decode(memoryview(data)[LENGTH.size :], descriptors)


def _take(link: socket.socket, size: int, end: float) -> tuple[bytearray, list[int]]:
    """What comes next, with descriptors; those are not inherited by programs."""
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    while True:
        try:
            # Not socket.recv_fds, which forgets the flags before Python 3.12.
            data, ancillary, said, _ = link.recvmsg(size, socket.CMSG_LEN(4 * _TAKEN_MAX), flags)
        except BlockingIOError:
            _wait(link, select.POLLIN, end)
            continue
        descriptors = _rights(ancillary)
        if said & socket.MSG_CTRUNC:
            _close_all(descriptors)
            raise UnavailableError(
                "cannot take over shared memory: this process has too many files open; "
                "raise the limit with 'ulimit -n'"
            )
        return bytearray(data), descriptors


def _rights(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _more(link: socket.socket, size: int, end: float) -> bytes:
    """More of a stream. Descriptors that hang on it are closed by the kernel."""
    while True:
        try:
            data = link.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(link, select.POLLIN, end)
            continue
        if not data:
            raise HandleError("cannot read this parcel: it is cut")
        return data


def _wait(link: socket.socket, events: int, end: float) -> None:
    poll = select.poll()
    poll.register(link, events)
    left_s = end - time.monotonic()
    if left_s <= 0 or not poll.poll(1000 * left_s):
        raise DeadlineError("cannot pass shared memory in time: the other end doesn't keep up")


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _forget() -> None:
    """In a fork: what the parent has not sent yet is not this process' to keep."""
    for parcel in list(_open):
        parcel.close()


os.register_at_fork(after_in_child=_forget)
