"""A bounded pool of shared memory, written in place and read in place without a copy.

    pool = Pool(2 * GIB)
    buffer = pool.allocate(1 << 20, wait_s=5)
    buffer.memory[:4] = b"data"
    with buffer.lend() as parcel:
        send(link, parcel)              # any number of times
    ...
    with receive(link) as parcel, View(parcel) as view:
        view.memory()[:4]

The segments (segment.py) are in size classes, four to each doubling, and are used again: fresh
memory costs the zeroing of its pages and a page fault for each, several times a copy. One is used
again when nobody can see it any more: every reader has let go (parcel.py says how that is known),
the parcel is closed, and no memoryview or array of the writer's is left.

There is no thread here. What was let go is noticed when the pool is next asked for something; an
event loop may watch `fileno` and call `collect`.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import Any, Final, Self

import msgspec

from zenos.bus import segment
from zenos.bus.handle import Handle, Layout
from zenos.bus.parcel import Parcel, tie
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    InvalidError,
    TooLargeError,
    UnavailableError,
)

_LARGER: Final = 2  # an idle segment so many times larger is used, rather than a new one made
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def size_class(size: int) -> int:
    """The least of the classes 4, 5, 6 and 7 times a power of two that holds `size` bytes: at most
    a quarter more."""
    if size <= limits.SEGMENT_BYTES_MIN:
        return limits.SEGMENT_BYTES_MIN
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """bytes: of all segments, at most bytes_max; idle_bytes: of those that can be used again at
    once. lent: buffers out with readers; written: buffers with their writers."""

    bytes: int
    bytes_max: int
    idle_bytes: int
    segments: int
    lent: int
    written: int


class _Segment:
    """One segment and its owner's mapping."""

    def __init__(self, size: int, prefault: bool) -> None:
        self.size = size
        self.fd = segment.create(size)
        self.generation = 0
        try:
            self.number = os.fstat(self.fd).st_ino
            self.mapping = segment.Mapping(self.fd, size, writable=True)
            segment.close_to_writers(self.fd)
            if prefault:
                self.mapping.populate()
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Unmapped, and freed, once nothing made of it is left."""
        os.close(self.fd)
        del self.mapping


class _Use:
    """A segment given out: until nobody uses it."""

    def __init__(self, held: _Segment, room: int) -> None:
        self.segment = held
        self.room = room
        self.lifeline = -1  # the end that tells, while lent
        self.written: weakref.ref[Any] | None = None  # what the writer's views hang on


class _Bell:
    """Wakes who waits for the pool; may be rung anywhere, also while garbage is collected. Closed
    with its last reference, so that nobody rings what has become another descriptor."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        self.close()

    def ring(self) -> None:
        if self.fd >= 0:
            with suppress(BlockingIOError):
                os.eventfd_write(self.fd, 1)

    def quiet(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


class Pool:
    """Segments of at most `bytes_max` bytes together, in this process. Thread-safe.

    prefault: take a new segment's pages in before it is first given out. A fork gets no pool: there
    it is closed, and memory that was given out may not be touched.
    """

    def __init__(self, bytes_max: int, *, prefault: bool = True) -> None:
        """UnavailableError when this process may open no more files."""
        if not bytes_max >= segment.HEADER_BYTES + limits.SEGMENT_BYTES_MIN:
            least = segment.HEADER_BYTES + limits.SEGMENT_BYTES_MIN
            raise InvalidError(f"cannot make a pool of {bytes_max} bytes: at least {least}")
        self.bytes_max = bytes_max
        self._prefault = prefault
        self._bytes = 0
        self._closed = False
        self._idle: list[_Segment] = []  # the longest idle first
        self._uses: set[_Use] = set()
        self._lent: dict[int, _Use] = {}  # by their lifelines
        self._gone: deque[_Use] = deque()  # uses whose writer has let go
        self._waiting: deque[object] = deque()
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        try:
            self._bell = _Bell()
            self._poll = select.epoll()
        except OSError as error:
            raise UnavailableError(f"cannot make a pool: {error.strerror}") from error
        self._poll.register(self._bell.fd, select.EPOLLIN)
        _pools.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_poll"):
            self.close()

    def allocate(self, size: int, *, wait_s: float = 0.0) -> Buffer:
        """A buffer of `size` bytes; what is in it before it is written is anything.

        A full pool is waited for up to `wait_s` seconds, in the order of asking: nobody is
        overtaken, so a small request may wait behind a large one. TooLargeError: it will never
        fit. BusyError: full, and not to wait; or the machine has no memory. DeadlineError: full
        for all that time.
        """
        if size < 0:
            raise InvalidError(f"cannot allocate {size} bytes")
        wanted = segment.HEADER_BYTES + size_class(size)
        if wanted > self.bytes_max:
            raise TooLargeError(
                f"cannot allocate {size} bytes: with header and size class that takes {wanted}, "
                f"and the pool has {self.bytes_max}"
            )
        ticket, end = object(), time.monotonic() + wait_s
        with self._lock:
            self._check_open()
            self._waiting.append(ticket)
        try:
            held = self._wait_for(ticket, wanted, wait_s, end)
        finally:
            with self._lock:
                self._waiting.remove(ticket)
                self._turn.notify_all()
        return self._give_out(held or self._make(wanted), size)

    def collect(self) -> int:
        """Take back what was let go; how many buffers that were."""
        with self._lock:
            self._check_open()
            return self._collect()

    def trim(self) -> int:
        """Give memory that is not in use back to the system; how many bytes that were."""
        with self._lock:
            self._check_open()
            self._collect()
            before = self._bytes
            while self._idle:
                self._drop(self._idle.pop())
            self._ring_if_waiting()
            return before - self._bytes

    @property
    def state(self) -> PoolState:
        """As it is now."""
        with self._lock:
            self._check_open()
            self._collect()
            return PoolState(
                bytes=self._bytes,
                bytes_max=self.bytes_max,
                idle_bytes=sum(held.size for held in self._idle),
                segments=len(self._idle) + len(self._uses),
                lent=len(self._lent),
                written=len(self._uses) - len(self._lent),
            )

    def fileno(self) -> int:
        """Readable when there may be something to collect."""
        return self._poll.fileno()

    def close(self) -> None:
        """Give everything back. Readers keep what they have; so do writers, who can't lend it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._bell.ring()
            self._turn.notify_all()
            # Descriptors under those who wait are closed when they have heard it.
            self._turn.wait_for(lambda: not self._waiting)
            for held in self._idle:
                held.close()
            for use in self._uses:
                use.segment.close()
                use.written = None
            for lifeline in self._lent:
                os.close(lifeline)
            self._poll.close()
            del self._bell
            self._idle, self._uses, self._lent = [], set(), {}
        _pools.discard(self)

    # -- giving out

    def _wait_for(self, ticket: object, wanted: int, wait_s: float, end: float) -> _Segment | None:
        """An idle segment; None once a new one of `wanted` bytes is paid for."""
        while True:
            with self._lock:
                self._check_open()
                self._collect(waking=self._waiting[0] is not ticket)
                first = self._waiting[0] is ticket
                if first:
                    there, held = self._take(wanted)
                    if there:
                        return held
                left_s = end - time.monotonic()
                used = self._bytes - sum(held.size for held in self._idle)
                if wait_s <= 0:
                    raise BusyError(
                        f"cannot allocate {wanted} bytes of shared memory: "
                        f"{used} of {self.bytes_max} are in use; wait, or make the pool larger"
                    )
                if left_s <= 0:
                    raise DeadlineError(
                        f"cannot allocate {wanted} bytes of shared memory: "
                        f"{used} of {self.bytes_max} were in use for {wait_s:g} s"
                    )
                if not first:
                    self._turn.wait(left_s)
                    continue
            self._poll.poll(left_s, 1)

    def _take(self, wanted: int) -> tuple[bool, _Segment | None]:
        """Whether there is one, and an idle segment if it is to be that."""
        fitting = [held for held in self._idle if wanted <= held.size <= _LARGER * wanted]
        best = min(fitting, key=lambda held: held.size, default=None)
        has_room = self._bytes + wanted <= self.bytes_max
        if best is not None and (best.size == wanted or not has_room):
            self._idle.remove(best)
            return True, best
        idle = sum(held.size for held in self._idle)
        if self._bytes - idle + wanted > self.bytes_max:
            return False, None
        while self._bytes + wanted > self.bytes_max:
            self._drop(self._idle.pop(0))
        self._bytes += wanted
        return True, None

    def _make(self, size: int) -> _Segment:
        """A new segment, which is paid for. Without the lock: its pages take their time."""
        try:
            return _Segment(size, self._prefault)
        except BaseException:
            with self._lock:
                self._bytes -= size
                self._ring_if_waiting()
            raise

    def _give_out(self, held: _Segment, size: int) -> Buffer:
        exporter = held.mapping.exporter()
        use = _Use(held, size)
        gone, bell = self._gone, self._bell

        def let_go(_: object) -> None:
            gone.append(use)
            bell.ring()

        use.written = weakref.ref(exporter, let_go)
        held.generation += 1
        segment.write_header(held.mapping.memory, held.generation, 0)
        with self._lock:
            if self._closed:
                held.close()
                self._check_open()
            self._uses.add(use)
        return Buffer(self, use, exporter)

    def _lend(self, use: _Use, layouts: tuple[Layout, ...]) -> Parcel:
        """Put the segment under a lifeline. ConflictError, UnavailableError."""
        held = use.segment
        handles = [
            Handle(held.number, held.generation, at.offset, at.bytes, at.dtype, at.shape)
            for at in layouts
        ]
        with self._lock:
            self._check_open()
            parcel, lifeline = tie(handles, held.fd)
            try:
                number = os.fstat(lifeline).st_ino
                segment.write_header(held.mapping.memory, held.generation, number)
                self._poll.register(lifeline, 0)  # an end without readers is reported unasked
            except BaseException:
                os.close(lifeline)
                raise
            use.lifeline = lifeline
            self._lent[lifeline] = use
        return parcel

    # -- taking back; all under the lock

    def _collect(self, *, waking: bool = True) -> int:
        """waking: whoever is first in the queue is to look, since this may take its event away."""
        found = 0
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._bell.fd:
                self._bell.quiet()
                continue
            self._poll.unregister(descriptor)
            os.close(descriptor)
            use = self._lent.pop(descriptor)
            use.lifeline = -1
            found += self._take_back(use)
        while self._gone:
            found += self._take_back(self._gone.popleft())
        if found and waking:
            self._ring_if_waiting()
        return found

    def _take_back(self, use: _Use) -> bool:
        """Whether nobody uses it any more, neither readers nor the writer."""
        in_use = use.lifeline >= 0 or (use.written is not None and use.written() is not None)
        if in_use or use not in self._uses:
            return False
        self._uses.remove(use)
        use.written = None
        self._idle.append(use.segment)
        return True

    def _drop(self, held: _Segment) -> None:
        held.close()
        self._bytes -= held.size

    def _ring_if_waiting(self) -> None:
        if self._waiting and not self._closed:
            self._bell.ring()

    def _check_open(self) -> None:
        if self._closed:
            raise ConflictError("cannot use a pool that was closed")

    def _forget(self) -> None:
        """In a fork: hold nothing of it."""
        self._lock = threading.Lock()  # the other threads, which may have held it, are not here
        self._turn = threading.Condition(self._lock)
        self._waiting.clear()
        for held in [*self._idle, *(use.segment for use in self._uses)]:
            held.mapping.forget()
        bell = self._bell
        self.close()
        bell.close()


class Buffer:
    """Memory to write in place, then to lend or to release. In `with`, released at the end unless
    it was lent."""

    def __init__(self, pool: Pool, use: _Use, exporter: Any) -> None:
        self._pool = pool
        self._use = use
        self._exporter = exporter
        self.bytes = use.room

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def memory(self) -> memoryview:
        """All its bytes, writable. ConflictError once it was lent or released."""
        if self._exporter is None:
            raise ConflictError("cannot write to a buffer that was lent or released")
        start = segment.HEADER_BYTES
        return memoryview(self._exporter).cast("B")[start : start + self.bytes]

    def lend(self, *layouts: Layout) -> Parcel:
        """Seal it and hand it out: the arrays that lie in it, by default all of it as bytes.

        From now on its content stays as it is: `memory` is refused, and nothing may be written
        through what was made of it before. The memory comes back to the pool when the parcel is
        closed, all that it was sent to have let go, and no array of the writer's is left.
        InvalidError: such arrays don't lie in it. UnavailableError: too many files are open; the
        buffer is as before.
        """
        if self._exporter is None:
            raise ConflictError("cannot lend a buffer that was lent or released")
        layouts = layouts or (Layout("uint8", (self.bytes,)),)
        if (end := max(layout.end for layout in layouts)) > self.bytes:
            raise InvalidError(f"cannot lend {end} bytes of a buffer of {self.bytes}")
        parcel = self._pool._lend(self._use, layouts)
        self._exporter = None
        return parcel

    def release(self) -> None:
        """Give it back unlent; after `lend` this does nothing."""
        self._exporter = None


def _forget() -> None:
    for pool in list(_pools):
        pool._forget()


os.register_at_fork(after_in_child=_forget)
