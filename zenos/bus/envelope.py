"""The envelope of every message, and its framing on a stream.

A frame is two lengths (4 bytes each, big-endian: of the header and of the body), the header and the
body. The header is a MessagePack array of the envelope's fields in order, `version` first: a reader
knows from it whether it can read the rest. The body stands apart, so that whoever passes a message
on reads the header, and neither decodes nor copies the body.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import force_setattr

from zenos.core import limits
from zenos.core.errors import InvalidError

VERSION: Final = 2
LENGTHS: Final = struct.Struct(">II")
Kind = Literal["data", "state", "command"]
Data = bytes | bytearray | memoryview
HELLO: Final = "hello"  # the topic of a peer's first message
WELCOME: Final = "welcome"  # the topic of the broker's first message

# What a message asks for. Of the peers: `tell` concerns the daemon itself; `send`, `call` and
# `publish` are for one receiver of the topic, for one that answers, and for all subscribers;
# `reply` answers a call; `beat` says that a peer is there (to: 1 when it wants an answer); the rest
# is about topics and leases (see exchange.py). Of the broker: `answer` ends a request, `answers`
# several that went well, `taken` says how many messages a topic has taken, `missed` how many a
# subscriber was too slow for. Of both: `several` are durable messages, or acknowledgements, of one
# topic, kind and priority in one frame (see several.py). About direct sockets (see meetings.py):
# `direct` brings one, `indirect` ends it, `waits` tells its server what is to be had from the
# broker.
Verb = Literal[
    "tell",
    "send",
    "call",
    "publish",
    "reply",
    "open",
    "want",
    "withdraw",
    "subscribe",
    "unsubscribe",
    "ack",
    "nack",
    "extend",
    "beat",
    "several",
    "answer",
    "answers",
    "taken",
    "missed",
    "direct",
    "indirect",
    "waits",
]


class FrameError(InvalidError):
    """cannot read this frame: it is malformed, and its connection is closed"""

    request: tuple[int, str] | None = None  # its id and topic, as far as they can be read


class Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message.

    id: counts in its sender; generation: of the sending worker; sent and deadline: wall seconds
    (deadline 0: none). to: the id of what this answers or withdraws; of a call on a direct socket
    its place in the marks. key: the message's own id on its topic, or the caller to whom a reply
    goes. delivery: of a durable message, the number by which it is acknowledged; failures: of its
    deliveries before this one. delay_s: not to be delivered before so many seconds. descriptors:
    how many come with the frame. credit: with a reply, how many more messages of its topic may
    come; with a durable message, how many were given to its request together, if all of them are
    sure to come (else 0).

    On the wire the header ends here; body: bytes, for the daemon's own messages MessagePack of one
    of the types in core/wire.py.
    """

    version: int = VERSION
    id: int = 0
    kind: Kind = "data"
    topic: str = ""
    sender: str = ""
    generation: int = 0
    sequence: int = 0
    priority: int = limits.PRIORITY_NORMAL
    sent: float = 0.0
    deadline: float = 0.0
    headers: dict[str, str] = {}
    verb: Verb = "tell"
    to: int = 0
    key: str = ""
    durable: bool = False
    delivery: int = 0
    failures: int = 0
    delay_s: float = 0.0
    descriptors: int = 0
    credit: int = 0
    body: bytes = b""

    @property
    def left_s(self) -> float:
        """Seconds from its sending to its deadline; 0 without one."""
        return self.deadline - self.sent if self.deadline else 0.0


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a connection's first message: who it is.

    A task and its token, or no task and the home's token. program: it is one of the task's
    programs, of which there may be several; else the task's worker, which the daemon talks to.
    beats: it says so often as the welcome wants that it is there. direct: it takes direct sockets.
    several: it takes frames of several, as no older version does.
    """

    task: str
    generation: int
    token: str
    program: bool = False
    beats: bool = False
    direct: bool = False
    several: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
BAD: Final = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)


def encode(e: Envelope) -> bytes:
    """The frame of an envelope. InvalidError when it is larger than FRAME_BYTES_MAX."""
    return frame_of(
        e.body,
        e.id,
        e.kind,
        e.topic,
        e.sender,
        e.generation,
        e.sequence,
        e.priority,
        e.sent,
        e.deadline,
        e.headers,
        e.verb,
        e.to,
        e.key,
        e.durable,
        e.delivery,
        e.failures,
        e.delay_s,
        e.descriptors,
        e.credit,
    )


def frame_of(body: Data, *fields: Any) -> bytes:
    """The frame of a body and the envelope's fields from `id` on. InvalidError: too large."""
    header = _encoder.encode((VERSION, *fields))
    header_bytes, body_bytes = len(header), len(body)
    if header_bytes > limits.FRAME_HEADER_BYTES_MAX:
        raise InvalidError(
            f"cannot send a message with a header of {header_bytes} bytes: at most "
            f"{limits.FRAME_HEADER_BYTES_MAX}; put less into its headers and more into its body"
        )
    if header_bytes + body_bytes > limits.FRAME_BYTES_MAX:
        raise InvalidError(
            f"cannot send a message of {header_bytes + body_bytes} bytes: at most "
            f"{limits.FRAME_BYTES_MAX}"
        )
    return b"".join((LENGTHS.pack(header_bytes, body_bytes), header, body))


def header_of(header: Data) -> Envelope:
    """The envelope, without its body. FrameError when it isn't one, or of another version."""
    try:
        envelope = _decoder.decode(header)
    except BAD as e:
        error = FrameError(f"cannot read this frame: {e}")
        error.request = _request_in(header)
        raise error from None
    if envelope.version != VERSION:
        raise FrameError(f"cannot read version {envelope.version} of the envelope, only {VERSION}")
    if not 0 <= envelope.descriptors <= limits.FRAME_DESCRIPTORS_MAX:
        raise FrameError(f"cannot take {envelope.descriptors} descriptors with a frame")
    return envelope


def _request_in(header: Data) -> tuple[int, str] | None:
    """The id and the topic in a header that is no envelope."""
    try:
        _, number, _, topic = msgspec.msgpack.decode(header, type=list[Any])[:4]
    except (*BAD, ValueError):
        return None
    fits = isinstance(topic, str) and len(topic) <= limits.TOPIC_CHARS_MAX
    return (number, topic) if type(number) is int and fits else None


def body_in(frame: Data) -> memoryview:
    """The body of a whole frame, where it lies."""
    return memoryview(frame)[LENGTHS.size + LENGTHS.unpack_from(frame)[0] :]


def with_body(envelope: Envelope, frame: Data) -> Envelope:
    """The envelope of a whole frame with a copy of its body."""
    force_setattr(envelope, "body", bytes(body_in(frame)))
    return envelope


def body_of(envelope: Envelope, kind: Any) -> Any:
    """The body, decoded and checked. FrameError when it is something else."""
    try:
        return msgspec.msgpack.decode(envelope.body, type=kind)
    except BAD as e:
        raise FrameError(f"cannot read the body of a message on {envelope.topic!r}: {e}") from None


def close_all(descriptors: Iterable[int]) -> None:
    """Close each of them."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def bytes_in(descriptors: tuple[int, ...]) -> int:
    """How much memory they keep."""
    return sum(found.st_size for found in map(os.fstat, descriptors) if stat.S_ISREG(found.st_mode))


def copied(descriptors: tuple[int, ...]) -> tuple[int, ...]:
    """The same files once more; OSError when this process may open no more, and then none."""
    made: list[int] = []
    try:
        for descriptor in descriptors:
            made.append(os.dup(descriptor))  # noqa: PERF401 - what was made must be known
    except OSError:
        close_all(made)
        raise
    return tuple(made)


FIRST_BYTES: Final = 8 * limits.KIB  # of a connection that says little
CHUNK_BYTES: Final = 64 * limits.KIB  # read at once; between two of them everybody else has a turn
LARGE_BYTES: Final = CHUNK_BYTES // 2  # a frame above that is received where it stays
READ_BYTES: Final = limits.MIB  # at most, of a large frame, at once


class Decoder:
    """Turns a stream of bytes, cut anywhere, into frames.

    Bytes are received into `room()`, then counted by `received()`. Holds one chunk, and at most one
    frame of at most `frame_bytes_max` bytes; a length beyond that is refused before anything of it
    is kept.
    """

    def __init__(self, frame_bytes_max: int = limits.FRAME_BYTES_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._chunk = bytearray(FIRST_BYTES)
        self._view = memoryview(self._chunk)
        self._end = 0
        self._large: bytearray | None = None  # a frame that is larger than the chunk
        self._filled = 0

    def room(self) -> memoryview:
        """Where the next bytes go."""
        if self._large is None:
            return self._view[self._end :]
        end = min(self._filled + READ_BYTES, len(self._large))
        return memoryview(self._large)[self._filled : end]

    def received(self, count: int) -> list[tuple[Envelope, Data]]:
        """So many bytes are in the room: frames that are whole now, headers decoded.

        FrameError: close the connection.
        """
        if self._large is not None:
            self._filled += count
            if self._filled < len(self._large):
                return []
            frame, self._large = self._large, None
            header_bytes, _ = LENGTHS.unpack_from(frame)
            view = memoryview(frame)
            return [(header_of(view[LENGTHS.size : LENGTHS.size + header_bytes]), frame)]
        self._end += count
        return self._split()

    def _split(self) -> list[tuple[Envelope, Data]]:
        found: list[tuple[Envelope, Data]] = []
        chunk, view, start, filled = self._chunk, self._view, 0, self._end
        size = LENGTHS.size
        while filled - start >= size:
            header_bytes, body_bytes = LENGTHS.unpack_from(chunk, start)
            end = start + size + header_bytes + body_bytes
            if (
                header_bytes + body_bytes > self.frame_bytes_max
                or header_bytes > limits.FRAME_HEADER_BYTES_MAX
            ):
                raise FrameError(
                    f"cannot read a frame of {header_bytes} and {body_bytes} bytes: too long"
                )
            if end > filled:
                if end - start > LARGE_BYTES:
                    self._large = bytearray(end - start)
                    self._filled = filled - start
                    self._large[: self._filled] = view[start:filled]
                    start = filled
                break
            envelope = header_of(view[start + size : start + size + header_bytes])
            found.append((envelope, bytes(view[start:end])))
            start = end
        if filled == len(chunk) < CHUNK_BYTES:
            self._chunk = bytearray(CHUNK_BYTES)
            self._view = memoryview(self._chunk)
            self._chunk[: filled - start] = view[start:filled]
        elif start:
            self._chunk[: filled - start] = chunk[start:filled]
        self._end = filled - start
        return found

    def feed(self, data: Data) -> list[Envelope]:
        """Envelopes with their bodies that are complete with `data`. FrameError, as above."""
        found: list[Envelope] = []
        rest = memoryview(data)
        while rest:
            room = self.room()
            part, rest = rest[: len(room)], rest[len(room) :]
            room[: len(part)] = part
            found += [with_body(*pair) for pair in self.received(len(part))]
        return found

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return self._end if self._large is None else self._filled
