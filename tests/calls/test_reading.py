"""Who reads a connection: those who wait, and its thread where nobody does. Without any host."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.processes import until
from zenos.calls import reading, wire
from zenos.calls.reading import Connection, Turns
from zenos.core.errors import ConflictError


class Program:
    """A connection with its thread, and what has come over it."""

    def __init__(self) -> None:
        self.host, ours = socket.socketpair()
        self.turns = Turns()
        self.connection = Connection(ours, self.turns.wake_fd)
        self.came: dict[int, threading.Thread] = {}  # who has read it
        self.on_take: Callable[[], None] = lambda: None
        self._arrived = threading.Condition()
        self.thread = threading.Thread(target=self.turns.serve, args=(self.connection, self.take))
        self.thread.start()

    def take(self, message: object) -> bool:
        self.on_take()
        with self._arrived:
            if isinstance(message, wire.Accepted):
                self.came |= dict.fromkeys(message.ids, threading.current_thread())
            self._arrived.notify_all()
        return isinstance(message, wire.Bye)

    def say(self, *ids: int) -> None:
        self.host.sendall(wire.frame(wire.Accepted(list(ids))))

    def wait(self, id_: int, end: float | None = None) -> None:
        """As a future's `result` does."""

        def is_done() -> bool:
            return id_ in self.came

        self.turns.lead(self.connection, self.take, is_done, end)
        if not is_done() and end is None:
            with self.turns.following(is_done), self._arrived:
                assert self._arrived.wait_for(is_done, 60)


@pytest.fixture
def program() -> Iterator[Program]:
    made = Program()
    try:
        yield made
    finally:
        made.host.close()
        made.thread.join(60)
        made.connection.link.close()
        assert not made.thread.is_alive()


@contextmanager
def waiting(program: Program, id_: int) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=program.wait, args=(id_,))
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()


def lead(program: Program) -> int:
    """Be asked so often that the thread stands aside; the first that nobody has said yet."""
    for id_ in range(1, 1000):
        program.say(id_)
        program.wait(id_)
        if program.came[id_] is threading.current_thread():
            return id_ + 1
    raise AssertionError("the thread reads all by itself")


def test_what_nobody_waits_for_is_read_by_the_thread(program: Program) -> None:
    program.say(1)
    until(lambda: 1 in program.came)
    lead(program)
    program.say(2000)
    until(lambda: 2000 in program.came)
    assert program.came[2000] is program.thread


def test_who_waits_again_and_again_reads_itself(program: Program) -> None:
    assert lead(program) > 1


def test_the_thread_stays_aside_after_a_long_wait(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next call, made right after it, would be read by the thread and wait for that."""
    first = lead(program)
    with waiting(program, first):
        until(lambda: program.turns._sleeps)
        monkeypatch.setattr(reading, "ASIDE_S", 60)
        program.say(first)
    until(lambda: not program.turns._sleeps)
    program.say(first + 1)
    program.wait(first + 1)
    assert program.came[first + 1] is threading.current_thread()
    program.turns.attend()


def test_all_who_wait_hear_whoever_reads(program: Program) -> None:
    first = lead(program)
    with waiting(program, first), waiting(program, first + 1), waiting(program, first + 2):
        program.say(first)
        program.say(first + 1)
        program.say(first + 2)
    # The one that leads has its own, and leaves: the other must not wait for somebody to lead.
    with waiting(program, first + 4):
        with waiting(program, first + 3) as leader:
            program.say(first + 3)
        assert not leader.is_alive()
        program.say(first + 4)


def test_who_is_told_otherwise_stops_reading(program: Program) -> None:
    first = lead(program)
    with waiting(program, first):
        until(lambda: program.turns.is_led)
        program.came[first] = threading.current_thread()  # as a cancelled future
        program.turns.wake()


def test_the_end_reaches_who_leads_and_the_thread(program: Program) -> None:
    first = lead(program)
    program.host.sendall(wire.frame(wire.Accepted([first])) + wire.frame(wire.Bye()))
    program.wait(first)
    program.thread.join(60)
    assert program.connection.over
    assert program.connection.left


def test_a_frame_that_makes_no_sense_ends_it(program: Program) -> None:
    program.host.sendall(b"\0\0\0\1\xc1")
    program.thread.join(60)
    assert program.connection.over
    assert not program.connection.left


@pytest.mark.parametrize("led", [False, True])
def test_who_is_called_back_by_the_reader_is_told_not_to_wait(program: Program, led: bool) -> None:
    """It could wait for ever: nobody else reads meanwhile."""
    said: list[str] = []

    def call_back() -> None:
        program.on_take = lambda: None
        try:
            program.wait(3000, time.monotonic() + 0.5)
        except ConflictError as error:
            said.append(error.message)

    first = lead(program) if led else 1
    program.on_take = call_back
    program.say(first)
    if led:
        program.wait(first)
    until(lambda: first in program.came)
    assert ["in a callback" in text for text in said] == [True]
