"""A program, as its host has it: what it says, and what is to be told to it."""

from __future__ import annotations

import itertools
import math
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

from zenos.calls import wire
from zenos.core import limits

READ_BYTES: Final = 256 * limits.KIB
ACCEPTED_S: Final = 0.05  # at most, until a program hears of what it doesn't ask for
RESULTS_AT_ONCE: Final = 4096
FRAMES_AT_ONCE: Final = 64  # in one call of the system, and so mostly one wake of the program
RESULT_BYTES_AT_ONCE: Final = limits.MIB
UNREAD_BYTES_MAX: Final = 64 * limits.MIB  # of results that one program doesn't read
RESULT_BYTES: Final = 256  # of each, beside its payload


class Caller:
    """A connection. name: the program's own, once it has said it."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.setblocking(False)
        wire.widen(link)
        self.fd = link.fileno()
        self.name = b""
        self.functions = wire.Said()
        self.asks = False  # it waits until its calls are on the disk
        self.is_closing = False
        self.is_writing = False  # its socket took no more
        self._frames = wire.Frames(wire.from_program)
        self._results: list[wire.Result] = []
        self._results_bytes = 0
        self._unheard: deque[wire.Result | None] = deque()  # all that it was told and hasn't taken
        self._unheard_ids: set[int] = set()  # of the calls whose results are kept
        self._heard = 0  # how many it has
        self._accepted: list[int] = []
        self._due = math.inf  # when it is to be told of those
        self._out: deque[memoryview] = deque()

    def read(self, memory: bytearray) -> list[Any] | None:
        """What it says; None at its end. Raises FrameError. memory: where it is received."""
        try:
            size = self.link.recv_into(memory)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._frames.take(memoryview(memory)[:size]) if size else None

    def has_news(self) -> bool:
        """Whether something is to be told now."""
        return bool(self._results or self._out) or self.wake <= time.monotonic()

    @property
    def wake(self) -> float:
        """When it is to be told of what is on the disk; monotonic. Not while it doesn't read."""
        if self.is_writing:
            return math.inf
        return -math.inf if self._accepted and self.asks else self._due

    def tell(self, result: wire.Result, *, keep: bool = False) -> None:
        """A call of its has ended; it is told with the others of this turn.

        keep: until it has heard that.
        """
        self._results.append(result)
        self._results_bytes += len(result.payload) + RESULT_BYTES
        self._unheard.append(result if keep else None)
        if keep:
            self._unheard_ids.add(result.id)

    def hear(self, count: int) -> None:
        """It has taken so many results. FrameError when it wasn't told as many."""
        if count > self._heard + len(self._unheard):
            raise wire.FrameError("cannot have heard more results than were told")
        while self._heard < count:
            result = self._unheard.popleft()
            if result is not None:
                self._unheard_ids.discard(result.id)
            self._heard += 1

    def is_told(self, id_: int) -> bool:
        """Whether the result of a call is on its way, and kept until it has taken that."""
        return id_ in self._unheard_ids

    @property
    def unheard(self) -> list[wire.Result]:
        """Results that are kept, since it has not taken them."""
        return [result for result in self._unheard if result is not None]

    @property
    def reads_too_little(self) -> bool:
        """Whether so much waits for it that nothing more should be run for it."""
        return self.is_writing and self._results_bytes > UNREAD_BYTES_MAX

    def accept(self, id_: int) -> None:
        """A call of its is on the disk. Unless it asks, that is told with results, or later."""
        if not self._accepted:
            self._due = time.monotonic() + ACCEPTED_S
        self._accepted.append(id_)

    def say(self, message: Any) -> None:
        """After what is to be told already."""
        self._encode()
        self._out.append(memoryview(wire.frame(message)))

    def flush(self) -> bool:
        """Write; whether all of it could be. Raises OSError when it is gone."""
        while True:
            while self._out:
                try:
                    sent = self.link.sendmsg(itertools.islice(self._out, FRAMES_AT_ONCE))
                except BlockingIOError:
                    return False
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                if sent:
                    self._out[0] = self._out[0][sent:]
            self._encode()  # not before: what is encoded already isn't counted as unread
            if not self._out:
                return True

    def _encode(self) -> None:
        if self._accepted:
            accepted, self._accepted, self._due = self._accepted, [], math.inf
            self._out.append(memoryview(wire.frame(wire.Accepted(accepted))))
        if not self._results:
            return
        results, self._results, self._results_bytes = self._results, [], 0
        part: list[wire.Result] = []
        size = 0
        for result in results:
            part.append(result)
            size += len(result.payload)
            if len(part) >= RESULTS_AT_ONCE or size >= RESULT_BYTES_AT_ONCE:
                self._out.append(memoryview(wire.frame(wire.Results(part))))
                part, size = [], 0
        if part:
            self._out.append(memoryview(wire.frame(wire.Results(part))))

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
