"""Bytes with descriptors over a unix socket, stream or sequenced packets: one length, then so many
bytes, the descriptors with the first of them. For sockets that carry nothing else."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, HandleError, UnavailableError

LENGTH: Final = struct.Struct(">I")
# A peer may attach more than it should: they must be taken to be closed. As many as Linux passes.
_TAKEN_MAX: Final = 253


def send(
    link: socket.socket,
    body: bytes,
    descriptors: Sequence[int],
    *,
    timeout_s: float = limits.PASS_TIMEOUT_S,
) -> None:
    """Send; the descriptors stay open here.

    OSError as the socket has it (the other end is gone); BusyError when the system carries no more
    descriptors for this user (`ulimit -n` of them) until some are received; DeadlineError when the
    socket takes nothing for `timeout_s`: of a stream, a part may be in it, so close it.
    """
    waiting = memoryview(LENGTH.pack(len(body)) + body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    end = time.monotonic() + timeout_s
    while waiting:
        try:
            sent = link.sendmsg([waiting], rights, socket.MSG_DONTWAIT)
        except BlockingIOError:
            _wait(link, select.POLLOUT, end)
            continue
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            raise BusyError(
                "cannot send more descriptors: too many of this user's are on their way, "
                "since receivers don't keep up"
            ) from None
        waiting, rights = waiting[sent:], []


def receive(
    link: socket.socket, *, timeout_s: float = limits.PASS_TIMEOUT_S
) -> tuple[bytes, list[int]] | None:
    """The next bytes and descriptors, which are the caller's now; None when the other end has
    closed the socket.

    HandleError for what is cut or too long: close the socket. DeadlineError when nothing comes
    within `timeout_s`. UnavailableError when this process may open no more files.
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
            raise HandleError("cannot read this packet: it is cut")
        (length,) = LENGTH.unpack_from(data)
        if length > limits.PARCEL_BYTES_MAX:
            raise HandleError(f"cannot read a packet of {length} bytes: too long")
        while len(data) - LENGTH.size < length and not packets:
            data += _more(link, length + LENGTH.size - len(data), end)
        if len(data) - LENGTH.size != length:
            raise HandleError("cannot read this packet: it is cut")
    except BaseException:
        close_all(descriptors)
        raise
    return bytes(data[LENGTH.size :]), descriptors


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
            close_all(descriptors)
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
            raise HandleError("cannot read this packet: it is cut")
        return data


def _wait(link: socket.socket, events: int, end: float) -> None:
    poll = select.poll()
    poll.register(link, events)
    left_s = end - time.monotonic()
    if left_s <= 0 or not poll.poll(1000 * left_s):
        raise DeadlineError("cannot pass shared memory in time: the other end doesn't keep up")


def close_all(descriptors: Sequence[int]) -> None:
    """Close them all, also where one was closed already."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
