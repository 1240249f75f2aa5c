"""Who reads a program's connection: whoever waits for a result, else a thread of the connection.

Each of both reads for all. A change of threads costs a call alone as much as a change of processes,
so a thread that waits reads itself (it leads), and the connection's own stays out of its way for a
while. It reads where nobody waits: for callbacks, coroutines, and what comes unasked.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from zenos.calls import wire
from zenos.core import limits
from zenos.core.errors import ConflictError

READ_BYTES: Final = 256 * limits.KIB
ASIDE_S: Final = 0.005  # for which the thread waits whether somebody leads again
Take = Callable[[Any], bool]
IsDone = Callable[[], bool]


class Connection:
    """A socket to a host. over: nothing comes any more; left: the host had said that it goes."""

    def __init__(self, link: socket.socket, wake: int) -> None:
        self.link = link
        self.over = False
        self.left = False
        self.poll = select.poll()
        self.poll.register(link.fileno(), select.POLLIN)
        self.poll.register(wake, select.POLLIN)
        self._frames = wire.Frames(wire.from_host)
        self._memory = memoryview(bytearray(READ_BYTES))

    def read(self, take: Take) -> None:
        """Wait for what comes and hand it on; `take` says whether that was the last."""
        whole = False
        try:
            size = self.link.recv_into(self._memory)
            for message in self._frames.take(self._memory[:size]) if size else ():
                if take(message):
                    self.left = True
                    return
            whole = bool(size)
        except (OSError, wire.FrameError):
            pass
        finally:
            # Also when a signal interrupts it: what was read is lost then.
            self.over = not whole


class Turns:
    """Who reads: one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._taken = False
        self._reader = 0  # the thread that has it
        self._aside = False  # the thread is out of the way
        self._asked = False  # somebody would have led, had the thread been so
        self._led = False  # somebody has, since the thread has looked
        self._sleeps = False  # the thread looks once it is told to
        self._following: list[IsDone] = []  # what others wait for
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self.wake_fd).atexit = False

    def lead(self, connection: Connection, take: Take, is_done: IsDone, end: float | None) -> None:
        """Read until it is done, the time `end` (monotonic) has come, or nothing comes any more;
        at once back when it isn't one's turn.

        ConflictError for who is called by what it has read, and could wait for ever.
        """
        if self._reader == threading.get_ident():
            raise ConflictError(
                "cannot wait for a call in a callback of another: what comes is read by the thread "
                "that calls back; have another thread wait, or add a callback to this one, too"
            )
        with self._changed:
            if self._taken or not self._aside or connection.over:
                self._asked = True
                return
            self._taken = self._led = True
            self._reader = threading.get_ident()
        try:
            while not is_done() and not connection.over:
                left_ms = None if end is None else 1e3 * (end - time.monotonic())
                if left_ms is not None and left_ms <= 0:
                    break
                for fd, _ in connection.poll.poll(left_ms):
                    if fd == self.wake_fd:
                        with suppress(BlockingIOError):
                            os.eventfd_read(fd)
                    else:
                        connection.read(take)
        finally:
            with self._changed:
                self._taken, self._reader = False, 0
                self._aside = not (connection.over or self._is_followed())
                if self._sleeps or not self._aside:
                    self._changed.notify_all()

    def _is_followed(self) -> bool:
        return any(not is_done() for is_done in self._following)

    @contextmanager
    def following(self, is_done: IsDone) -> Iterator[None]:
        """Wait in here for what another reads."""
        with self._changed:
            self._following.append(is_done)
            self._call_thread()
        try:
            yield
        finally:
            with self._changed:
                self._following.remove(is_done)

    def attend(self) -> None:
        """Somebody is to be told without waiting: the thread reads, if nobody leads."""
        if self._aside:
            with self._changed:
                self._call_thread()

    def _call_thread(self) -> None:
        if self._aside and not self._taken:
            self._aside = False
            self._changed.notify_all()

    @property
    def is_led(self) -> bool:
        """Whether somebody waits and reads."""
        return self._taken and self._aside

    def wake(self) -> None:
        """Let who leads look whether it is done."""
        if self.is_led:
            os.eventfd_write(self.wake_fd, 1)

    def serve(self, connection: Connection, take: Take) -> None:
        """Of the connection's thread: read until the end, and stand aside where others do."""
        while True:
            with self._changed:
                while self._taken or self._aside:
                    # Who waits long wakes it in the end; who waits often does not each time.
                    slept = self._sleeps = self._taken and not self._led
                    self._led = False
                    self._changed.wait(None if slept else ASIDE_S)
                    self._sleeps = False
                    self._aside = self._aside and (slept or self._led or self._taken)
                if connection.over:
                    return
                self._taken, self._asked = True, False
                self._reader = threading.get_ident()
            try:
                connection.read(take)
            finally:
                with self._changed:
                    self._taken, self._reader = False, 0
                    self._aside = self._asked and not (connection.over or self._is_followed())
