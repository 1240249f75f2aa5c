"""How a program that runs in a task tells the daemon what it shows of itself.

A connection beside those of `zenos.bus.connect()`, for a thread that has nothing else to do: it is
never in anybody's way, and never raises. What is told belongs to the connection: the daemon forgets
it with that.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from typing import Final

from zenos.bus import address
from zenos.bus.envelope import WELCOME, Envelope, FrameError, encode
from zenos.bus.stream import FrameReader, greet
from zenos.core.errors import ZenosError

TIMEOUT_S: Final = 1.0
BACKOFF_S: Final = 0.5
BACKOFF_S_MAX: Final = 10.0


class Teller:
    """Tells as a program of the task in which this runs. Belongs to one thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._generation = 0
        self._backoff_s = BACKOFF_S
        self._again_at = 0.0

    def is_connected(self) -> bool:
        """Whether the daemon that was told last is still there."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(0):
            return True
        with suppress(OSError):
            if self._socket.recv(4096):
                return True
        self.close()
        return False

    def tell(self, topic: str, body: bytes) -> bool:
        """Say it; whether a daemon was there to hear. Waits a few seconds at most."""
        if not self.is_connected() and not self._connect():
            return False
        connection = self._socket
        assert connection is not None  # noqa: S101 - connected
        try:
            connection.sendall(
                encode(
                    Envelope(
                        kind="state",
                        topic=topic,
                        generation=self._generation,
                        sent=time.time(),
                        body=body,
                    )
                )
            )
        except (OSError, ZenosError):
            self.close()  # a frame of which a part is gone can't be taken up again
            return False
        return True

    def close(self) -> None:
        """End the connection, and with it what was told."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.forget()

    def forget(self) -> None:
        """In a fork: let the parent's connection be."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> bool:
        if time.monotonic() < self._again_at:
            return False
        self._again_at = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)
        try:
            where, hello = address.find()
            if not hello.task:
                return False  # it went to a home of its own, where it is no task
            connection = greet(os.fspath(where()), hello, TIMEOUT_S)
        except (OSError, ZenosError):
            return False
        if not _is_welcome(connection):
            connection.close()
            return False
        self._socket, self._generation = connection, hello.generation
        self._backoff_s, self._again_at = BACKOFF_S, 0.0
        return True


def _is_welcome(connection: socket.socket) -> bool:
    """Whether the broker's first message is the welcome."""
    reader = FrameReader(connection)
    try:
        while (frames := reader.read()) is not None:
            if frames:
                return frames[0][0].topic == WELCOME
    except (OSError, FrameError):
        pass
    finally:
        reader.close()
    return False
