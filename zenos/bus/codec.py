"""Bodies: bytes as they are, everything else as MessagePack, or by a codec of its own.

A message says in its header `content-type` how its body is to be read. Other types come in by
`register`: a codec that makes descriptors of a value sends them with the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from zenos.bus.envelope import close_all
from zenos.core.errors import InvalidError

CONTENT_TYPE: Final = "content-type"
MESSAGEPACK: Final = "application/msgpack"


class Encoded(NamedTuple):
    """A value as it is sent. descriptors: open files that go along; the bus closes them."""

    body: bytes | bytearray | memoryview
    content_type: str = ""
    descriptors: tuple[int, ...] = ()


class Codec(NamedTuple):
    """How values of some types travel.

    encode: None for a value that isn't its. decode: takes the body and the descriptors that came
    with it, which are its to close.
    """

    content_type: str
    encode: Callable[[Any], Encoded | None]
    decode: Callable[[memoryview, tuple[int, ...]], Any]


_codecs: dict[str, Codec] = {}
_encoder = msgspec.msgpack.Encoder()


def register(codec: Codec) -> None:
    """Let values travel by this codec, before MessagePack is tried; the last one of a type wins."""
    _codecs.pop(codec.content_type, None)
    _codecs[codec.content_type] = codec


def encode_value(value: Any) -> Encoded:
    """A value as it is sent. InvalidError when it can't be."""
    if isinstance(value, bytes | bytearray | memoryview):
        return Encoded(value if isinstance(value, bytes) else bytes(value))
    for codec in reversed(_codecs.values()):
        encoded = codec.encode(value)
        if encoded is not None:
            return encoded._replace(content_type=codec.content_type)
    try:
        return Encoded(_encoder.encode(value), MESSAGEPACK)
    except (TypeError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidError(
            f"cannot send a body of type {type(value).__name__}: {error}; give bytes, or what "
            "MessagePack can hold"
        ) from None


def decode_value(
    body: memoryview, content_type: str, descriptors: tuple[int, ...] = (), type_: Any = Any
) -> Any:
    """The value of a body; takes the descriptors. InvalidError when it can't be read."""
    codec = _codecs.get(content_type)
    if codec is not None:
        return codec.decode(body, descriptors)
    close_all(descriptors)
    if not content_type:
        return bytes(body)
    if content_type != MESSAGEPACK:
        raise InvalidError(
            f"cannot read a body of type {content_type[:100]!r}: nothing here knows it; import "
            "what registers it"
        )
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"cannot read a body: {error}") from None
