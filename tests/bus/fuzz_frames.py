"""Bytes of any kind at the bus's decoders: no crash, no hang, no unbounded memory. See fuzz.py."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zenos.bus.bodies import ARRAYS, SHARED, BytesDraft
from zenos.bus.codec import MESSAGEPACK, decode_value
from zenos.bus.envelope import CHUNK_BYTES, Decoder, Envelope, FrameError, Hello, body_of, encode
from zenos.bus.several import body_of_envelopes, body_of_numbers, numbers_of, parts_of
from zenos.bus.stream import Heartbeat, Welcome
from zenos.bus.terms import Nacked, Taken, Terms, Want
from zenos.core.errors import ZenosError

FRAME_BYTES_MAX: Final = 1 << 16
SECONDS_MAX: Final = 5.0  # for one input
BODIES: Final = (Hello, Welcome, Want, Nacked, Taken, Terms)
SEEDS: Final = tuple(
    encode(Envelope(id=number, verb="send", topic="orders", sender="t1.1", body=body))
    for number, body in enumerate(
        [
            b"",
            bytes(300),
            msgspec.msgpack.encode(Hello(task="t1", generation=1, token="x", beats=True)),
            msgspec.msgpack.encode(Welcome(name="user.1", heartbeat=Heartbeat())),
            msgspec.msgpack.encode(Want(count=10, lease_s=3.0)),
            msgspec.msgpack.encode(Nacked(reason="no")),
            msgspec.msgpack.encode({"k": [1, 2.5, None, "text", b"bytes"]}),
            bytes(BytesDraft(b"x" * 100).inline().body),
            body_of_envelopes([Envelope(verb="send", durable=True, key="m1", body=b"x")] * 3),
            body_of_numbers([1, 2, 70_000]),
        ]
    )
)


def check(data: bytes) -> int:
    """Read it as a peer's bytes, cut somewhere; how many frames were in it.

    Anything but the errors that are said of such input goes through.
    """
    if not data:
        return 0
    decoder, cut, found = Decoder(FRAME_BYTES_MAX), data[0] * 3 + 1, 0
    rest = data[1:]
    with suppress(FrameError):
        for start in range(0, len(rest), cut):
            for envelope in decoder.feed(rest[start : start + cut]):
                found += 1
                read(envelope)
    assert len(decoder.room()) <= max(CHUNK_BYTES, FRAME_BYTES_MAX)
    assert decoder.waiting_bytes <= FRAME_BYTES_MAX + 8
    return found


def read(envelope: Envelope) -> None:
    """Its body, as everything that it may be."""
    for kind in BODIES:
        with suppress(FrameError):
            body_of(envelope, kind)
    with suppress(FrameError):
        parts_of(encode(envelope))
    with suppress(FrameError):
        numbers_of(encode(envelope))
    for content_type in ("", MESSAGEPACK, ARRAYS, SHARED):
        with suppress(ZenosError):
            decode_value(memoryview(envelope.body), content_type)


def mutations(seed: int) -> Iterator[bytes]:
    """Real frames, several together, with bytes changed, cut out and put in; for ever."""
    chance = random.Random(seed)  # noqa: S311
    while True:
        data = bytearray(chance.choices(range(256)))
        for _ in range(chance.randint(1, 4)):
            data += chance.choice(SEEDS)
        for _ in range(chance.choice((0, 1, 1, 2, 4, 16))):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDF, 0xFF))
                case 1:
                    del data[at : at + chance.randint(1, 8)]
                case 2:
                    data[at:at] = chance.randbytes(chance.randint(1, 8))
                case _:
                    data[at] ^= 1 << chance.randrange(8)
            if not data:
                data = bytearray(1)
        yield bytes(data)


def mutate_for(seconds: float, seed: int) -> int:
    """Try mutations for so long; how many."""
    end, count = time.monotonic() + seconds, 0
    for data in mutations(seed):
        begun = time.monotonic()
        try:
            check(data)
            assert time.monotonic() - begun < SECONDS_MAX, "it hangs"
        except BaseException:
            Path("crash-frames").write_bytes(data)
            sys.stderr.write(f"seed {seed}, input {count}: written to crash-frames\n")
            raise
        count += 1
        if time.monotonic() > end:
            return count
    return count
