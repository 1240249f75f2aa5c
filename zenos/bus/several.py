"""Frames of several: durable messages, or acknowledgements, of one topic that go together.

The body of such a frame is a MessagePack array of envelopes with their bodies, so that they are
made and read in one go. Most of what it takes to handle a message is there once for each frame:
lengths, a decoder's call, a place in a queue, an event, an answer. They go over links whose other
end has said that it takes them (Hello, Welcome); what is alone goes as a frame of its own.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from zenos.bus.envelope import (
    BAD,
    VERSION,
    Data,
    Envelope,
    FrameError,
    Kind,
    Verb,
    body_in,
)
from zenos.core import limits

if TYPE_CHECKING:
    from zenos.bus.topic import Delivery

PART_BYTES: Final = 256  # of a part beside its headers and its body: at most about so many
SEVERAL_FRAME_BYTES_MAX: Final = 2 * limits.SEVERAL_BYTES  # of what a peer asks in one
PART_BYTES_MAX: Final = limits.SEVERAL_BYTES // 4  # what is larger goes alone
_NO_HEADERS: Final[dict[str, str]] = {}
_HEADER: Final = struct.Struct(">BI")
_ARRAY: Final = 0xDD
_encoder: Final = msgspec.msgpack.Encoder()
_Parts = Annotated[list[Envelope], msgspec.Meta(max_length=limits.SEVERAL_MAX)]
_Numbers = Annotated[list[int], msgspec.Meta(max_length=limits.SEVERAL_MAX)]
_decoder: Final = msgspec.msgpack.Decoder(_Parts)
_number_decoder: Final = msgspec.msgpack.Decoder(_Numbers)


class Lane(NamedTuple):
    """What parts of one frame have in common."""

    verb: Verb
    topic: str
    kind: Kind
    priority: int


class Part(NamedTuple):
    """One of many that are asked together: its key, its delivery, its headers and its body."""

    key: str
    delivery: int
    headers: dict[str, str]
    body: Data


class Gathering:
    """Parts that wait to be sent together, in the order in which they came."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, list[bytes]] = {}

    def add(
        self,
        number: int,
        verb: Verb,
        topic: str,
        body: Data,
        *,
        kind: Kind = "data",
        key: str = "",
        durable: bool = True,
        priority: int = limits.PRIORITY_NORMAL,
        delivery: int = 0,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> bool:
        """One more; False when it is so large that it goes alone. The fields are those of a frame
        of its own; the rest of its envelope is that of the frame in which it goes."""
        now = time.time()
        deadline = now + deadline_s if deadline_s is not None else 0.0
        given = headers or _NO_HEADERS
        head = (kind, "", "", 0, 0, priority, now, deadline)  # from kind to deadline
        end = (0, delay_s, 0, 0)  # failures, delay_s, descriptors, credit
        part = _encoder.encode(
            (VERSION, number, *head, given, verb, 0, key, durable, delivery, *end, body)
        )
        if len(part) > PART_BYTES_MAX:
            return False
        self._lanes.setdefault(Lane(verb, topic, kind, priority), []).append(part)
        return True

    def take(self) -> Iterator[tuple[Lane, bytes]]:
        """All of them, as bodies of frames; nothing waits afterwards."""
        lanes, self._lanes = self._lanes, {}
        for lane, parts in lanes.items():
            for together in cut(map(len, parts)):
                yield lane, body_of_parts(parts[together])

    def clear(self) -> None:
        """Forget them."""
        self._lanes.clear()


def sizes_of(parts: Sequence[Part]) -> list[int]:
    """How many bytes of a frame each takes, at most about."""
    return [
        PART_BYTES
        + len(body)
        + (len(_encoder.encode(headers)) if headers else 0)
        + (0 if key.isascii() and len(key) <= limits.MESSAGE_ID_CHARS_MAX else len(key.encode()))
        for key, _, headers, body in parts
    ]


def bodies_of(
    numbers: Sequence[int],
    lane: Lane,
    parts: Sequence[Part],
    sizes: Sequence[int],
    delay_s: float,
    deadline_s: float | None,
) -> list[bytes]:
    """The bodies of frames of all of these, none of which is larger than PART_BYTES_MAX."""
    (verb, _, kind, priority), now = lane, time.time()
    deadline = now + deadline_s if deadline_s is not None else 0.0
    end = (0, delay_s, 0, 0)  # failures, delay_s, descriptors, credit
    head = (kind, "", "", 0, 0, priority, now, deadline)  # from kind to deadline
    whole = [
        (VERSION, number, *head, headers, verb, 0, key, True, delivery, *end, body)
        for number, (key, delivery, headers, body) in zip(numbers, parts, strict=True)
    ]
    return [_encoder.encode(whole[part]) for part in cut(sizes)]


def body_of_parts(parts: list[bytes]) -> bytes:
    """The body of a frame of these parts."""
    return b"".join((_HEADER.pack(_ARRAY, len(parts)), *parts))


def body_of_envelopes(envelopes: list[Envelope]) -> bytes:
    """The same of envelopes that were not encoded yet."""
    return _encoder.encode(envelopes)


def body_of_deliveries(given: list[Delivery]) -> bytes:
    """The same of messages that are lent, each as an envelope that a topic's `send` has."""
    return _encoder.encode(
        [
            (
                *(VERSION, 0, "data", message.topic, message.sender, 0, 0, message.priority),
                *(message.sent, message.deadline, message.headers, "send", 0, message.id, True),
                *(delivery.number, message.failures, 0.0, 0, 0, message.body),
            )
            for delivery in given
            for message in (delivery.message,)
        ]
    )


def parts_of(frame: Data) -> list[Envelope]:
    """The envelopes in a frame of several, with their bodies. FrameError when it is none."""
    try:
        parts = _decoder.decode(body_in(frame))
    except BAD as error:
        raise FrameError(f"cannot read a frame of several: {error}") from None
    for part in parts:
        if part.version != VERSION or part.descriptors or not part.durable:
            raise FrameError("cannot take such a part of a frame")
    return parts


def body_of_numbers(numbers: list[int]) -> bytes:
    """The body of `answers`: the requests that went well."""
    return _encoder.encode(numbers)


def numbers_of(frame: Data) -> list[int]:
    """The requests in `answers`. FrameError when it is something else."""
    try:
        return _number_decoder.decode(body_in(frame))
    except BAD as error:
        raise FrameError(f"cannot read answers: {error}") from None


def cut(sizes: Iterable[int], bytes_max: int = limits.SEVERAL_BYTES) -> Iterator[slice]:
    """Which of so large ones go together: at most SEVERAL_MAX, of so many bytes, or one."""
    begin, count, together = 0, 0, 0
    for size in sizes:
        if count and (together + size > bytes_max or count == limits.SEVERAL_MAX):
            yield slice(begin, begin + count)
            begin, count, together = begin + count, 0, 0
        count += 1
        together += size
    if count:
        yield slice(begin, begin + count)
