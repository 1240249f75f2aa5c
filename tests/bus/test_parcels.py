"""Handles that lie are refused, and parcels arrive whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from msgspec.structs import replace

from tests.bus.memory_peers import held, in_fork
from tests.processes import until
from zenos.bus import parcel, passing, segment
from zenos.bus.handle import ITEM_BYTES, Handle, Layout, pack
from zenos.bus.memory import Pool
from zenos.bus.parcel import Parcel
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    HandleError,
    InvalidError,
    UnavailableError,
)

CANNOT = r"^cannot "
SMALL = limits.SEGMENT_BYTES_MIN
WHOLE = SMALL + segment.HEADER_BYTES


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Room for two of the smallest segments."""
    before = held()
    with Pool(2 * WHOLE) as made:
        yield made
    assert held() == before


def lies(handle: Handle) -> list[Handle]:
    return [
        replace(handle, segment=handle.segment + 1),
        replace(handle, generation=handle.generation + 1),
        replace(handle, offset=SMALL),
        replace(handle, offset=-8),
        replace(handle, offset=2, dtype="float32", shape=(4,)),
        replace(handle, bytes=17),
        replace(handle, bytes=-1, shape=(-1,)),
        replace(handle, dtype="object"),
        replace(handle, dtype="float64", shape=(16,)),
        replace(handle, shape=(2**62, 4)),
        replace(handle, bytes=0, shape=(0, 2**60)),
        replace(handle, shape=(1,) * 40 + (16,)),
    ]


def test_handles_that_lie_are_refused(pool: Pool) -> None:
    with pool.allocate(16).lend() as given:
        for handle in lies(given.handles[0]):
            descriptors = [os.dup(n) for n in given.descriptors]
            with Parcel([handle], *descriptors) as lie, pytest.raises(HandleError, match=CANNOT):
                View(lie)


def memfd(size: int, seals: int, allocate: bool = True) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if allocate:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


SEALED = segment.FIXED_SIZE | segment.NO_NEW_WRITER


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: memfd(WHOLE, fcntl.F_SEAL_GROW | segment.NO_NEW_WRITER), "not sealed"),
        (lambda: memfd(WHOLE, segment.FIXED_SIZE), "not sealed"),
        (lambda: memfd(WHOLE, SEALED, allocate=False), "not allocated whole"),
        (lambda: memfd(WHOLE, SEALED), "not from a pool"),
        (lambda: memfd(100, SEALED), "cannot use this handle"),
        (lambda: os.open("/proc/self/exe", os.O_RDONLY), "no memory"),
        (lambda: os.eventfd(0), "no memory"),
    ],
)
def test_other_memory_than_a_pools_is_refused(make: Callable[[], int], message: str) -> None:
    before = held()
    fd = make()
    handle = Handle(os.fstat(fd).st_ino, 1, 0, 16, "uint8", (16,))
    reading, writing = os.pipe()
    with Parcel([handle], fd, reading) as lie, pytest.raises(HandleError, match=message):
        View(lie)
    os.close(writing)
    assert held() == before


def test_a_handle_of_earlier_is_refused(pool: Pool) -> None:
    with pool.allocate(1).lend() as given:
        old, kept = given.handles[0], os.dup(given.descriptors[0])
    buffer = pool.allocate(1)
    reading, writing = os.pipe()
    with Parcel([old], kept, reading) as lie:
        with pytest.raises(HandleError, match="of generation 1, and its memory has gone on to 2"):
            View(lie)
        new = Parcel([replace(old, generation=2)], os.dup(kept), os.dup(reading))
        with new, pytest.raises(HandleError, match="the lifeline with it belongs to another"):
            View(new)
    os.close(writing)
    buffer.release()


def test_a_pipes_other_end_is_no_lifeline(pool: Pool) -> None:
    with pool.allocate(1).lend() as given:
        for wrong in (os.eventfd(0), os.open("/dev/null", os.O_RDONLY)):
            lie = Parcel(given.handles, os.dup(given.descriptors[0]), wrong)
            with lie, pytest.raises(HandleError, match="no lifeline"):
                View(lie)


# -- on the way


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_many_arrays_go_in_one_parcel(pool: Pool, kind: socket.SocketKind) -> None:
    layouts, size = pack(*((name, (3, index)) for index, name in enumerate(ITEM_BYTES)))
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with left, right:
        for turn in range(3):
            buffer = pool.allocate(size)
            for layout in layouts:
                buffer.memory[layout.offset : layout.end] = bytes([turn + 1]) * layout.bytes
            with buffer.lend(*layouts) as given:
                parcel.send(left, given)
            got = parcel.receive(right)
            assert got is not None
            with got, View(got) as view:
                assert [handle.layout for handle in view.handles] == layouts
                for index, layout in enumerate(layouts):
                    assert bytes(view.memory(index)) == bytes([turn + 1]) * layout.bytes
        left.close()
        assert parcel.receive(right) is None


@pytest.mark.parametrize(
    ("body", "count"),
    [(b"\xc1", 2), (b"\x90", 2), (b"\x91\x93\x01\x02\x03", 2), (None, 1), (None, 3), (None, 0)],
)
def test_what_is_no_parcel_is_refused_and_closed(
    pool: Pool, body: bytes | None, count: int
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right, pool.allocate(1).lend() as given:
        text = given.body if body is None else body
        rights = [*given.descriptors, *given.descriptors][:count]
        socket.send_fds(left, [passing.LENGTH.pack(len(text)) + text], rights)
        before = held()
        with pytest.raises(HandleError, match=CANNOT):
            parcel.receive(right)
        until(lambda: held() == before)


def test_arrays_outside_of_their_buffer_are_not_lent(pool: Pool) -> None:
    buffer = pool.allocate(16)
    for wrong in (Layout("float32", (5,)), Layout("uint8", (4,), 13), Layout("int16", (1,), 1)):
        with pytest.raises(InvalidError, match=CANNOT):
            buffer.lend(wrong)
    with buffer.lend(Layout("float32", (2, 2))) as given:
        assert given.handles[0].bytes == 16


def test_a_reader_without_free_descriptors_is_told_and_keeps_none(pool: Pool) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def work() -> bool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (right.fileno() + 20, 4096))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        os.close(taken.pop())  # room for one of two
        with pytest.raises(UnavailableError, match="too many files open"):
            parcel.receive(right)
        os.close(os.dup(0))
        return True

    with left, right, pool.allocate(1).lend() as given:
        parcel.send(left, given)
        assert in_fork(work) == 0


def test_a_stuck_receiver_costs_its_deadline_only(pool: Pool) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def fill(given: Parcel) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            parcel.send(left, given, timeout_s=0.01)

    with left, right, pool.allocate(1).lend() as given:
        with pytest.raises(DeadlineError, match=r"^cannot pass shared memory in time"):
            parcel.receive(left, timeout_s=0.01)
        with pytest.raises(DeadlineError):
            fill(given)


class Crowded(socket.socket):
    """A socket of a user who has too many descriptors on their way."""

    def sendmsg(self, *_: object) -> int:  # type: ignore[override]
        raise OSError(errno.ETOOMANYREFS, "Too many references")


def test_too_many_descriptors_on_their_way_are_an_error_that_says_so(pool: Pool) -> None:
    refused = pytest.raises(BusyError, match=r"^cannot send more descriptors")
    with Crowded(socket.AF_UNIX) as link, pool.allocate(1).lend() as given, refused:
        parcel.send(link, given)


def test_the_other_end_is_gone(pool: Pool) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    right.close()
    with left, pool.allocate(1).lend() as given, pytest.raises(BrokenPipeError):
        parcel.send(left, given)
