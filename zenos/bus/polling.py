"""What a thread waits for that reads for all, and how others wake it."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from zenos.bus.end import End

_RUNG: Final = (1).to_bytes(8, sys.byteorder)  # as an eventfd counts


class Polling:
    """Sockets to be read. Belongs to its owner's lock, but for `wait`."""

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        """on_stuck: a direct socket took not all that was written to it."""
        self._on_stuck = on_stuck
        self._read, self._write = socket.socketpair()
        # As a file, which is closed once, however often that is asked for.
        self._bell = os.fdopen(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+b", 0)
        self._poll = select.poll()
        self.is_woken = False  # there is a byte to be read there
        self.begin()

    def begin(self) -> None:
        """Wait for nothing, but for being woken."""
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def add(self, one: socket.socket) -> None:
        """Wait for that, too."""
        self._poll.register(one, select.POLLIN)

    def opened(self, end: End) -> None:
        """See Watching."""
        self.add(end.socket)

    def closing(self, end: End) -> None:
        """See Watching."""
        with suppress(KeyError, ValueError):
            self._poll.unregister(end.socket)

    def stuck(self, end: End) -> None:
        """See Watching."""
        self._on_stuck()

    def wait(self, left_s: float | None) -> list[int]:
        """The descriptors of those that can be read; none when time is over."""
        return [found for found, _ in _polled(self._poll, left_s)]

    def rest(self, left_s: float) -> None:
        """Wait for nothing, but for being woken; for so long."""
        ready([self._read], left_s)

    def wake(self) -> None:
        """End the wait of whoever waits, or of who does next."""
        if not self.is_woken:
            self.is_woken = True
            self._write.send(b"x")

    def calm(self) -> None:
        """Whoever waited has been woken: others wait later."""
        if self.is_woken:
            self.is_woken = False
            self._read.recv(1)

    def writable(self, late: list[socket.socket], left_s: float) -> None:
        """Wait until one of them takes more, or somebody rings: then there are others."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        with suppress(OSError, ValueError):  # closed meanwhile
            for one in late:
                poll.register(one, select.POLLOUT)
            _polled(poll, left_s)

    def ring(self) -> None:
        """End the wait of whoever waits there, or of who does next."""
        self._bell.write(_RUNG)

    def hush(self) -> None:
        """Who rang has been heard."""
        self._bell.read(len(_RUNG))

    def close(self) -> None:
        """Nobody waits any more."""
        self._read.close()
        self._write.close()
        self._bell.close()


def ready(sockets: list[socket.socket], left_s: float | None, event: int = select.POLLIN) -> bool:
    """Wait until one of them can be read (or what `event` says); False when none can in time."""
    poll = select.poll()
    try:
        for one in sockets:
            poll.register(one, event)
    except (OSError, ValueError):
        return True  # closed meanwhile
    return bool(_polled(poll, left_s))


def _polled(poll: select.poll, left_s: float | None) -> list[tuple[int, int]]:
    return poll.poll(None if left_s is None else max(0.0, left_s * 1000))
