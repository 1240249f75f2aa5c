"""The envelope of every message, and its framing on a stream.

A frame is a length (4 bytes, big-endian, of what follows) and a MessagePack array of the envelope's
fields in order. `version` is the first: a reader knows from it whether it can read the rest.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError

VERSION: Final = 1
HEADER: Final = struct.Struct(">I")
Kind = Literal["data", "state", "command"]
WELCOME: Final = "welcome"  # the topic of the broker's first message


class FrameError(InvalidError):
    """cannot read this frame: it is malformed, and its connection is closed"""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message.

    id: counts in its sender; generation: of the sending worker; sent and deadline: wall seconds
    (deadline 0: none); body: MessagePack of one of the types in core/wire.py.
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
    body: bytes = b""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a connection's first message: who it is."""

    task: str
    generation: int
    token: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(envelope: Envelope) -> bytes:
    """The frame of an envelope. InvalidError when it is larger than FRAME_BYTES_MAX."""
    payload = _encoder.encode(envelope)
    if len(payload) > limits.FRAME_BYTES_MAX:
        raise InvalidError(
            f"cannot send a message of {len(payload)} bytes: at most {limits.FRAME_BYTES_MAX}"
        )
    return HEADER.pack(len(payload)) + payload


def decode(payload: bytes | memoryview) -> Envelope:
    """The envelope in a frame's payload. FrameError when it isn't one, or of another version."""
    try:
        envelope = _decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        raise FrameError(f"cannot read this frame: {e}") from None
    if envelope.version != VERSION:
        raise FrameError(f"cannot read version {envelope.version} of the envelope, only {VERSION}")
    return envelope


def body_of(envelope: Envelope, kind: Any) -> Any:
    """The body, decoded and checked. FrameError when it is something else."""
    try:
        return msgspec.msgpack.decode(envelope.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        raise FrameError(f"cannot read the body of a message on {envelope.topic!r}: {e}") from None


class Decoder:
    """Turns a stream of bytes, cut anywhere, into envelopes.

    Holds at most one frame of at most FRAME_BYTES_MAX and what was fed after it; a length beyond
    that is refused before anything of it is kept.
    """

    def __init__(self, frame_bytes_max: int = limits.FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self.frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> list[Envelope]:
        """Envelopes that are complete now. FrameError: close the connection."""
        self._buffer += data
        found: list[Envelope] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, start)
            if length > self.frame_bytes_max:
                raise FrameError(f"cannot read a frame of {length} bytes: too long")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append(decode(bytes(self._buffer[start + HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return found

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)
