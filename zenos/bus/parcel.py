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

import os
import socket
import weakref
from collections.abc import Sequence
from typing import Final, Self

import msgspec

from zenos.bus import passing
from zenos.bus.handle import Handle
from zenos.core import limits
from zenos.core.errors import ConflictError, HandleError, UnavailableError

DESCRIPTORS: Final = 2  # of a parcel
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
        self._close = weakref.finalize(self, passing.close_all, self._descriptors)
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

    def detach(self) -> tuple[int, int]:
        """Its descriptors, which are the caller's now: as `close`, but that nobody lets go yet."""
        descriptors = self.descriptors
        self._close.detach()
        return descriptors

    def copies(self) -> tuple[int, int]:
        """Its descriptors once more, for the caller. ConflictError, UnavailableError."""
        made: list[int] = []
        try:
            for descriptor in self.descriptors:
                made.append(os.dup(descriptor))  # noqa: PERF401 - what was made must be known
        except OSError as error:
            passing.close_all(made)
            raise UnavailableError(
                f"cannot lend shared memory: {error.strerror}; raise the limit with 'ulimit -n'"
            ) from error
        segment, lifeline = made
        return segment, lifeline

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
        passing.close_all(taken)
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
        passing.close_all(descriptors)
        raise HandleError(f"cannot read these handles: {e}") from None
    except HandleError:
        passing.close_all(descriptors)
        raise
    return Parcel(handles, *descriptors)


def send(link: socket.socket, parcel: Parcel, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> None:
    """Send over a connected unix socket; errors as `passing.send`."""
    passing.send(link, parcel.body, parcel.descriptors, timeout_s=timeout_s)


def receive(link: socket.socket, *, timeout_s: float = limits.PASS_TIMEOUT_S) -> Parcel | None:
    """The next parcel from a connected unix socket; None when the other end has closed it.

    Errors as `passing.receive`, and HandleError for anything else than a parcel (nothing is left
    open then): close the socket.
    """
    got = passing.receive(link, timeout_s=timeout_s)
    return None if got is None else decode(*got)


def _forget() -> None:
    """In a fork: what the parent has not sent yet is not this process' to keep."""
    for parcel in list(_open):
        parcel.close()


os.register_at_fork(after_in_child=_forget)
