"""Bodies: bytes as they are, everything else as MessagePack, or by a codec of its own.

A message says in its header `content-type` how its body is to be read. Values with arrays in them,
and many bytes, are another module's (bodies.py): they go through shared memory, and that may have
to be waited for. Other types come in by `register`: a codec that makes descriptors of a value sends
them with the body.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from zenos.bus.bodies import (
    ARRAYS,
    SHARED,
    UNREADABLE,
    AnyDraft,
    ArrayBuffer,
    BytesDraft,
    Draft,
    Encoded,
    Opened,
    unreadable,
)
from zenos.bus.envelope import close_all
from zenos.core import limits
from zenos.core.contents import CONTENT_TYPE as CONTENT_TYPE
from zenos.core.contents import MESSAGEPACK as MESSAGEPACK
from zenos.core.errors import InvalidError


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


def encode_value(value: Any) -> Encoded | AnyDraft:
    """A value as it is sent, or a draft of that: where its arrays or bytes go is to be decided.
    InvalidError when it can't be sent."""
    if isinstance(value, bytes | bytearray | memoryview):
        if memoryview(value).nbytes >= limits.SHARED_BODY_BYTES_MIN:
            return BytesDraft(value)
        return Encoded(value if isinstance(value, bytes) else bytes(value))
    if isinstance(value, ArrayBuffer):
        return value
    for codec in reversed(_codecs.values()):
        encoded = codec.encode(value)
        if encoded is not None:
            return encoded._replace(content_type=codec.content_type)
    try:
        return Encoded(_encoder.encode(value), MESSAGEPACK)
    except (TypeError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        try:
            if isinstance(error, TypeError) and _arrays_may_be_there():
                return Draft(value)
        except (TypeError, OverflowError, RecursionError, UnicodeEncodeError) as other:
            error = other
        raise InvalidError(
            f"cannot send a body of type {type(value).__name__}: {error}; give bytes, arrays, or "
            "what MessagePack can hold"
        ) from None


def _arrays_may_be_there() -> bool:
    """Whether the program knows any arrays: nothing is imported for one that has none."""
    return "numpy" in sys.modules or "torch" in sys.modules


def decode_value(
    body: memoryview, content_type: str, descriptors: tuple[int, ...] = (), type_: Any = Any
) -> Any:
    """The value of a body; takes the descriptors. InvalidError when it can't be read."""
    if content_type in (ARRAYS, SHARED):
        return opened_value(Opened(body, descriptors), content_type, type_)
    codec = _codecs.get(content_type)
    if codec is not None:
        return codec.decode(body, descriptors)
    close_all(descriptors)
    if not content_type:
        return bytes_as(bytes(body), type_)
    if content_type != MESSAGEPACK:
        raise InvalidError(
            f"cannot read a body of type {content_type[:100]!r}: nothing here knows it; import "
            "what registers it"
        )
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except UNREADABLE as error:
        raise unreadable(error, type_) from None


def opened_value(opened: Opened, content_type: str, type_: Any = Any) -> Any:
    """The value of a body with arrays, or of one that is many bytes."""
    return bytes_as(opened.bytes(), type_) if content_type == SHARED else opened.read(type_)


def bytes_as(body: bytes, type_: Any) -> Any:
    """A body that is bytes, if that is what is asked for; else InvalidError."""
    if type_ is Any or type_ is bytes:
        return body
    try:
        return msgspec.convert(body, type_)
    except UNREADABLE as error:
        raise unreadable(error, type_) from None
