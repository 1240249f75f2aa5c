"""How programs come to a host: over the bus, each sends it one end of a socket."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from zenos.bus.sync import connect
from zenos.core.errors import RefusedError, ZenosError
from zenos.core.names import calls_topic

USERS: Final = "user."  # how the broker calls programs outside any task
END_S: Final = 1.0  # for its thread, at the end
AGAIN_S: Final = 0.1  # until it is tried again to hear of programs


class Door:
    """Takes connections in a thread of its own. arrived: those that nobody has taken yet."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.arrived: deque[socket.socket] = deque()
        self._wake = wake
        self._bus = connect()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="calls-door", daemon=True)

    def start(self) -> None:
        """Let programs in."""
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closing.set()
        self._bus.close()
        if self._thread.ident is not None:
            self._thread.join(END_S)

    def _serve(self) -> None:
        topic = self._bus.topic(calls_topic(self._bus.task))
        while True:
            try:
                message = topic.receive()
            # Also what a daemon says that can't have it at the moment, or no descriptor is left.
            except (ZenosError, OSError):
                if self._closing.wait(AGAIN_S):
                    return
                continue
            # An error is the program's: it hears of it as the block is left.
            with suppress(ZenosError, OSError), message:
                # The broker says who it is. A task's programs may be anybody's.
                if not message.sender.startswith(USERS):
                    raise RefusedError("cannot let a task in: calls come from users' programs")
                fds, message.received.descriptors = message.received.descriptors, ()
                self._open(fds)

    def _open(self, fds: tuple[int, ...]) -> None:
        for fd in fds[1:]:
            os.close(fd)
        if not fds:
            return
        try:
            link = socket.socket(fileno=fds[0])
        except OSError:
            os.close(fds[0])
            raise
        self.arrived.append(link)
        self._wake()
