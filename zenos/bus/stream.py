"""Frames on a connected unix socket, in both directions, with the descriptors that accompany them.

Both ends of the bus read and write through here, whether they wait for the socket or not.
Descriptors go with the first byte of their frame (SCM_RIGHTS). Whoever reads a frame owns what came
with it; what no frame has claimed is closed with the connection.
"""

from __future__ import annotations

import array
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.bus.envelope import (
    HELLO,
    WELCOME,
    Data,
    Decoder,
    Envelope,
    FrameError,
    Hello,
    body_of,
    close_all,
    encode,
    with_body,
)
from zenos.bus.order import Policy, SendQueue
from zenos.core import limits

Frame = tuple[Envelope, Data, tuple[int, ...]]  # the header, the whole frame, its descriptors

BATCH_BYTES: Final = 256 * limits.KIB  # that are written at once
JOINED_BYTES_MAX: Final = 16 * limits.KIB  # of one frame that is copied into a batch
# As numbers: to compare enumerations takes longer than to read.
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * limits.FRAME_DESCRIPTORS_MAX)


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """How often each end of a connection is heard, and after what silence the other gives it up."""

    every_s: float = limits.HEARTBEAT_S
    silent_s: float = limits.SILENT_S


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the broker's first message: how to order what is sent, and one's name.

    heartbeat: none of a broker of an older version, which would not understand a beat. several: it
    takes frames of several, as no older version does.
    """

    policy: Policy = Policy()
    name: str = ""
    heartbeat: Heartbeat | None = None
    several: bool = False


def hello_of(
    hello: Hello, *, beats: bool = False, direct: bool = False, several: bool = False
) -> bytes:
    """The first frame of a connection. beats, direct, several: see Hello."""
    said = replace(hello, beats=beats, direct=direct, several=several)
    body = msgspec.msgpack.encode(said)
    return encode(Envelope(kind="command", topic=HELLO, generation=hello.generation, body=body))


def greet(
    path: str,
    hello: Hello,
    timeout_s: float | None = None,
    *,
    beats: bool = False,
    direct: bool = False,
    several: bool = False,
) -> socket.socket:
    """Connect to the broker at `path` and say who one is. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(hello_of(hello, beats=beats, direct=direct, several=several))
    except OSError:
        connection.close()
        raise
    return connection


def enter(
    path: str, hello: Hello, timeout_s: float, *, direct: bool
) -> tuple[socket.socket, FrameReader, Welcome]:
    """Greet the broker, and be welcomed: a connection that doesn't block any more. OSError;
    FrameError when it doesn't let us in."""
    connection = greet(path, hello, timeout_s, beats=True, direct=direct, several=True)
    reader = FrameReader(connection, takes_direct=direct)
    try:
        # The welcome is all that is said before something is asked for.
        frames = reader.read()
        while frames is not None and not frames:
            frames = reader.read()
        if frames is None or frames[0][0].topic != WELCOME:
            raise FrameError("cannot get in: the connection was closed")
        welcome: Welcome = body_of(with_body(*frames[0][:2]), Welcome)
        connection.setblocking(False)
    except BaseException:
        reader.close()
        connection.close()
        raise
    return connection, reader, welcome


class FrameReader:
    """Reads frames from a socket, blocking or not.

    takes_direct: direct sockets may come unasked for; one for which this process may not open
    enough files comes without its descriptors.
    """

    def __init__(
        self,
        connection: socket.socket,
        frame_bytes_max: int = limits.FRAME_BYTES_MAX,
        *,
        takes_direct: bool = False,
    ) -> None:
        self._socket = connection
        self.decoder = Decoder(frame_bytes_max)
        self._descriptors: deque[int] = deque()  # that came, in the order of their frames
        self._takes_direct = takes_direct
        self.is_full = False  # as much came as there was room: there may be more
        self._is_lacking = False  # those of the next frame that has any could not be taken

    def read(self) -> list[Frame] | None:
        """Frames that are whole after one read of the socket; None at its end.

        Raises FrameError (close the connection), BlockingIOError when nothing is there, OSError.
        """
        room = self.decoder.room()
        count, ancillary, flags, _ = self._socket.recvmsg_into(
            [room], _ANCILLARY_BYTES, _CLOSE_ON_EXEC
        )
        self.is_full = count == len(room)
        if ancillary:
            self._take_descriptors(ancillary)
        if flags & _TRUNCATED:
            if not self._takes_direct:
                raise FrameError("cannot take that many descriptors at once")
            close_all(self._descriptors)
            self._descriptors.clear()
            self._is_lacking = True
        if count == 0:
            return None
        frames = self.decoder.received(count)
        if (
            self._descriptors
            or self._is_lacking
            or any(envelope.descriptors for envelope, _ in frames)
        ):
            return self._with_descriptors(frames)
        return [(envelope, frame, ()) for envelope, frame in frames]

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = array.array("i")
                whole.frombytes(data[: len(data) - len(data) % whole.itemsize])
                self._descriptors.extend(whole)

    def _with_descriptors(self, frames: list[tuple[Envelope, Data]]) -> list[Frame]:
        found: list[Frame] = []
        for envelope, frame in frames:
            if self._is_lacking and envelope.verb == "direct" and envelope.descriptors:
                self._is_lacking = False
                found.append((envelope, frame, ()))
                continue
            if envelope.descriptors > len(self._descriptors):
                for *_, taken in found:
                    close_all(taken)
                raise FrameError(f"cannot find the {envelope.descriptors} descriptors of a frame")
            fds = tuple(self._descriptors.popleft() for _ in range(envelope.descriptors))
            found.append((envelope, frame, fds))
        most = limits.FRAME_DESCRIPTORS_MAX if self.decoder.waiting_bytes else 0
        if len(self._descriptors) > most:  # those of the frame that isn't whole yet
            for *_, taken in found:
                close_all(taken)
            raise FrameError("cannot take descriptors that belong to no frame")
        return found

    def close(self) -> None:
        """Close the descriptors that no frame has claimed. The socket is its owner's."""
        close_all(self._descriptors)
        self._descriptors.clear()


class FrameWriter:
    """Writes what a queue holds, in its order; frames that are there together go together.

    How fast that goes is what the queue's link learns. clock: the queue's.
    """

    def __init__(
        self,
        connection: socket.socket,
        waiting: SendQueue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = connection
        self.waiting = waiting
        self._clock = clock
        self._batch: deque[tuple[Data, tuple[int, ...]]] = deque()
        self._begun = 0.0
        self._batch_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether everything is written."""
        return not self._batch and not self.waiting

    def write(self) -> bool:
        """Write until nothing is left, or the socket takes no more; whether nothing is left.

        Raises OSError when the connection has ended.
        """
        while self.flush():
            if not self.fill():
                return True
        return False

    def fill(self) -> bool:
        """Take the next batch from the queue, after the one before is written; whether there was
        one."""
        self.written()  # also of a link that is never idle
        items = self.waiting.take(self._begun, BATCH_BYTES)
        if not items:
            return False
        if len(items) == 1:
            self._batch_bytes += len(items[0].frame)
            self._batch.append((items[0].frame, items[0].descriptors))
            return True
        small: list[Data] = []
        for item in items:
            self._batch_bytes += len(item.frame)
            if item.descriptors or len(item.frame) > JOINED_BYTES_MAX:
                self._add(small)
                self._batch.append((item.frame, item.descriptors))
            else:
                small.append(item.frame)
        self._add(small)
        return True

    def flush(self) -> bool:
        """Write what was taken; whether all of it could be (a socket that blocks takes it all)."""
        while self._batch:
            data, fds = self._batch[0]
            try:
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = self._socket.sendmsg([data], rights)
                else:
                    sent = self._socket.send(data)
            except BlockingIOError:
                return False
            if fds:
                close_all(fds)
            if sent < len(data):
                self._batch[0] = (memoryview(data)[sent:], ())
            else:
                self._batch.popleft()
        return True

    def send_now(self, frame: Data, descriptors: tuple[int, ...]) -> bool:
        """Write one frame, when nothing waits; whether all of it could be. Raises as `write`."""
        self._batch.append((frame, descriptors))
        return self.flush()

    def written(self) -> None:
        """All that was taken is written by now: what that says of the link's speed."""
        now = self._clock()
        self.waiting.link.observe(self._batch_bytes, now - self._begun)
        self._begun, self._batch_bytes = now, 0

    def _add(self, small: list[Data]) -> None:
        if small:
            self._batch.append((b"".join(small) if len(small) > 1 else small[0], ()))
            small.clear()

    def close(self) -> None:
        """Drop what was taken from the queue, and close its descriptors."""
        for _, fds in self._batch:
            close_all(fds)
        self._batch.clear()
