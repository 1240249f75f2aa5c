"""One end of a direct socket; see direct.py."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from zenos.bus.envelope import CHUNK_BYTES, FrameError, close_all
from zenos.bus.marks import Marks
from zenos.bus.order import Item, Link, SendQueue
from zenos.bus.stream import Frame, FrameReader, FrameWriter
from zenos.core import limits

if TYPE_CHECKING:
    from zenos.bus.direct import Directs


LENDING_MAX: Final = 64  # frames that wait for a reader, beyond which none has descriptors
READS_MAX: Final = limits.DIRECT_BYTES_MAX // CHUNK_BYTES  # at once; then others have a turn


class Watching(Protocol):
    """What waits for sockets."""

    def opened(self, end: End) -> None:
        """There is one more to read from."""
        ...

    def closing(self, end: End) -> None:
        """It will be closed right now."""
        ...

    def stuck(self, end: End) -> None:
        """It took not all that was written: to be flushed when it takes more."""
        ...


class End:
    """The socket, what comes over it and what goes.

    number: the broker's, of the whole socket. is_over: nothing new goes over it. is_stuck: its
    other end doesn't keep up.
    """

    frame_bytes_max = limits.FRAME_BYTES_MAX  # of what comes

    def __init__(
        self,
        directs: Directs,
        number: int,
        topic: str,
        peer: str,
        connection: socket.socket,
        marks: Marks,
    ) -> None:
        self.directs = directs
        self.session = directs.session
        self.number = number
        self.topic = topic
        self.peer = peer  # the name of who is at the other end
        self.socket = connection
        self.marks = marks
        self.used = time.monotonic()
        self.is_over = False
        self.is_closed = False
        self.is_stuck = False
        self._reader = FrameReader(connection, self.frame_bytes_max)
        self._waiting = SendQueue(self.session.output.policy, Link())
        self._writer = FrameWriter(connection, self._waiting)

    # -- what comes

    def read(self) -> bool:
        """Take all that is there: the most urgent may be the last. False: there was nothing."""
        try:
            for _ in range(READS_MAX):
                frames = self._reader.read()
                if frames is None:
                    self.lost()
                    break
                self._take_all(frames)
                if self.is_closed or not self._reader.is_full:
                    break
        except BlockingIOError:
            return False
        except (OSError, FrameError):
            self.lost()
        return True

    def _take_all(self, frames: list[Frame]) -> None:
        rest = iter(frames)
        try:
            for frame in rest:
                self.take(frame)
        finally:
            for *_, descriptors in rest:
                close_all(descriptors)

    def take(self, frame: Frame) -> None:
        """A frame; its descriptors are taken, whatever comes of it. FrameError."""
        raise NotImplementedError

    def give_up(self) -> None:
        """The other end has gone. What it said before counts."""
        for _ in range(READS_MAX):  # each ends at a frame with descriptors
            if self.is_closed or not self.read():
                break
        if not self.is_closed:
            self.lost()

    def lost(self) -> None:
        """The other end has gone, or makes no sense."""
        raise NotImplementedError

    # -- what goes

    def has_room(self, size: int, descriptors: int) -> bool:
        """Whether so many bytes and descriptors more may wait for the other end."""
        if not self.is_stuck:
            return True
        return self._waiting.has_room(size) and (
            not descriptors or self._waiting.count < LENDING_MAX
        )

    def send(self, item: Item) -> None:
        """Write a frame; what the socket doesn't take waits. Its descriptors are taken."""
        try:
            if self._writer.is_idle:
                done = self._writer.send_now(item.frame, item.descriptors)
            elif self._waiting.count >= limits.SEND_QUEUE_FRAMES_MAX:
                close_all(item.descriptors)
                self.lost()  # it asks and asks, and reads nothing
                return
            else:
                self._waiting.put(item, time.monotonic(), always=True)
                done = self._writer.write()
        except OSError:
            self.give_up()
            return
        self._wrote(done)

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        try:
            done = self._writer.write()
        except OSError:
            self.give_up()
            return
        self._wrote(done)

    def _wrote(self, done: bool) -> None:
        was_stuck, self.is_stuck = self.is_stuck, not done
        if self.is_stuck and not was_stuck and self.directs.watching is not None:
            self.directs.watching.stuck(self)
        if done and was_stuck:
            self.flushed()

    def flushed(self) -> None:
        """All that waited has gone."""

    def close(self) -> None:
        """Let go of everything."""
        if self.is_closed:
            return
        self.is_over = self.is_closed = True
        self.is_stuck = False
        self.directs.closing(self)
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.forget()
        self._reader.close()
        self._writer.close()
        for item in self._waiting.clear():
            close_all(item.descriptors)

    def forget(self) -> None:
        """Close the socket here, without a word to the other end."""
        self.socket.close()
