"""What a program has still to write to its host. Nothing here waits for a host that doesn't read:
whoever writes may hold a lock that others need, also those who read."""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import suppress
from typing import Any, Final

from zenos.calls import wire

STUCK_LOOK_MS: Final = 1000.0  # between two looks at a host that doesn't read
_NOW: Final = int(socket.MSG_DONTWAIT)


class Outgoing:
    """Frames on their way over a connection. Belongs to who has its link's lock, but for `wait`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._fd = link.fileno()
        self._parts: deque[memoryview] = deque()

    @property
    def is_stuck(self) -> bool:
        """Whether the socket took no more the last time."""
        return bool(self._parts)

    def add(self, message: Any) -> None:
        """After what waits already."""
        self._parts.append(memoryview(wire.frame(message)))

    def write(self) -> bool:
        """Write what the socket takes; whether that is all. OSError when the connection is over."""
        parts = self._parts
        while parts:
            try:
                sent = self._link.send(parts[0], _NOW)
            except BlockingIOError:
                return False
            if sent < len(parts[0]):
                parts[0] = parts[0][sent:]
            else:
                parts.popleft()
        return True

    def wait(self) -> None:
        """Without the lock: until it may take more, or has ended, for STUCK_LOOK_MS at most."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(STUCK_LOOK_MS)

    def end(self) -> None:
        """End the connection: who reads it sees that."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
