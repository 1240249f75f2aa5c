"""The pool as a state machine: in whatever order buffers are allocated, lent, sent, read, dropped
and cut off, nobody's bytes change under them, and all that was let go can be used again."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import TypeVar

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from tests.bus.memory_peers import held
from zenos.bus import parcel, segment
from zenos.bus.memory import Buffer, Pool, size_class
from zenos.bus.parcel import Parcel
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import BusyError, TooLargeError

BYTES_MAX = 1 * limits.MIB
SIZES = st.sampled_from([0, 8, 4096, 65536, 65537, 90_000, 200_000, 400_000, BYTES_MAX])
PICK = st.integers(0, 99)
Stamped = tuple[memoryview, int]  # and the number that must be at its end
T = TypeVar("T")


def chosen(of: Collection[T], pick: int) -> T:
    """One of those there are."""
    return list(of)[pick % len(of)]


def is_intact(memory: memoryview, number: int) -> bool:
    return not memory or bytes(memory[-8:]) == number.to_bytes(8, "little")


class Reader:
    """A process that reads, as far as the kernel knows: a socket, and views."""

    def __init__(self) -> None:
        self.sending, self.receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stamps: list[int] = []  # of what is in its socket
        self.views: list[Stamped] = []


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.before = held()
        self.pool = Pool(BYTES_MAX, prefault=False)
        self.count = 0
        self.written: dict[Buffer, Stamped] = {}
        self.given: dict[Parcel, int] = {}
        self.readers = [Reader(), Reader()]

    def lent(self) -> int:
        """Buffers that somebody can still read, or get to read."""
        stamps = set(self.given.values())
        for reader in self.readers:
            stamps |= {*reader.stamps, *(stamp for _, stamp in reader.views)}
        return len(stamps)

    @rule(size=SIZES)
    def allocate(self, size: int) -> None:
        cost = segment.HEADER_BYTES + size_class(size)
        state = self.pool.state
        in_use = state.bytes - state.idle_bytes
        try:
            buffer = self.pool.allocate(size)
        except TooLargeError:
            assert cost > BYTES_MAX
            return
        except BusyError:
            assert in_use + cost > BYTES_MAX, "refused, though there was room"
            return
        self.count += 1
        memory = buffer.memory
        if size:
            memory[-8:] = self.count.to_bytes(8, "little")
        self.written[buffer] = (memory, self.count)

    @precondition(lambda self: self.written)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        buffer = chosen(self.written, pick)
        buffer.release()
        del self.written[buffer]

    @precondition(lambda self: self.written)
    @rule(pick=PICK)
    def lend(self, pick: int) -> None:
        buffer = chosen(self.written, pick)
        given = buffer.lend()
        _, stamp = self.written.pop(buffer)
        self.given[given] = stamp

    @precondition(lambda self: self.given)
    @rule(pick=PICK, to=PICK)
    def send(self, pick: int, to: int) -> None:
        given, reader = chosen(self.given, pick), chosen(self.readers, to)
        parcel.send(reader.sending, given)
        reader.stamps.append(self.given[given])

    @rule(size=SIZES, to=PICK)
    def give(self, size: int, to: int) -> None:
        """Write, lend, send and forget, as most do; then the reader reads."""
        before = set(self.written)
        self.allocate(size)
        for buffer in set(self.written) - before:
            self.lend(list(self.written).index(buffer))
            self.send(len(self.given) - 1, to)
            self.close(len(self.given) - 1)

    @precondition(lambda self: self.given)
    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        given = chosen(self.given, pick)
        given.close()
        del self.given[given]

    @precondition(lambda self: any(reader.stamps for reader in self.readers))
    @rule(pick=PICK)
    def receive(self, pick: int) -> None:
        reader = chosen([reader for reader in self.readers if reader.stamps], pick)
        got = parcel.receive(reader.receiving)
        assert got is not None
        with got, View(got) as view:
            memory, stamp = view.memory(), reader.stamps.pop(0)
        assert is_intact(memory, stamp)
        reader.views.append((memory, stamp))

    @precondition(lambda self: any(reader.views for reader in self.readers))
    @rule(pick=PICK, newest=st.booleans())
    def let_go(self, pick: int, newest: bool) -> None:
        chosen([reader for reader in self.readers if reader.views], pick).views.pop(
            -1 if newest else 0
        )

    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        reader = chosen(self.readers, pick)
        self.readers.remove(reader)
        self.cut(reader)
        self.readers.append(Reader())

    def cut(self, reader: Reader) -> None:
        """All that the kernel does for a process that ends."""
        reader.sending.close()
        reader.receiving.close()
        reader.views.clear()
        reader.stamps.clear()

    @rule()
    def trim(self) -> None:
        self.pool.trim()
        assert self.pool.state.idle_bytes == 0

    @invariant()
    def bounded_and_counted(self) -> None:
        state = self.pool.state
        assert state.bytes <= BYTES_MAX
        distinct = self.lent()
        assert (state.lent, state.written) == (distinct, len(self.written))
        assert state.segments >= distinct + len(self.written)

    @invariant()
    def nobodys_bytes_change(self) -> None:
        views = [view for reader in self.readers for view in reader.views]
        stamped = [*self.written.values(), *views]
        assert all(is_intact(memory, number) for memory, number in stamped)

    def teardown(self) -> None:
        for reader in self.readers:
            self.cut(reader)
        for given in self.given:
            given.close()
        for buffer in self.written:
            buffer.release()
        self.written.clear()
        self.pool.close()
        del self.pool
        assert held() == self.before


TestPool = PoolMachine.TestCase
TestPool.settings = hypothesis_settings(max_examples=50, stateful_step_count=40, deadline=None)
