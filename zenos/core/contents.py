"""How bodies of messages are encoded, as their header `content-type` says, and how they are shown
to people. Who reads them is another's: zenos/bus/codec.py."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from zenos.core import limits

CONTENT_TYPE: Final = "content-type"
MESSAGEPACK: Final = "application/msgpack"
ARRAYS: Final = "application/x-zenos-arrays"  # zenos/bus/bodies.py tells how
SHARED: Final = "application/octet-stream"  # bytes that lie in shared memory
ARRAY_EXTENSION: Final = 1  # of MessagePack: an array's number
LENGTH: Final = struct.Struct(">I")  # of the sheet, with which a body with arrays begins
SHOWN_BYTES_MAX: Final = 64 * limits.KIB
_BAD: Final = (msgspec.MsgspecError, struct.error, ValueError, TypeError, RecursionError)


class _Array(msgspec.Struct, frozen=True, array_like=True):
    """What is shown of a Handle."""

    segment: int
    generation: int
    offset: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]


class _Sheet(msgspec.Struct, frozen=True, array_like=True):
    value: bytes
    libraries: tuple[str, ...]
    handles: tuple[_Array, ...]


def described(headers: Mapping[str, str], content: bytes) -> str | None:
    """A body that is MessagePack, as JSON, each array as its type and shape. None for another one,
    for one that can't be read, and for a value of more than SHOWN_BYTES_MAX bytes."""
    kind = headers.get(CONTENT_TYPE)
    try:
        if kind == MESSAGEPACK:
            return _json(content, ())
        if kind == ARRAYS:
            (length,) = LENGTH.unpack_from(content)
            head = content[LENGTH.size : LENGTH.size + min(length, 2 * SHOWN_BYTES_MAX)]
            sheet = msgspec.msgpack.decode(head, type=_Sheet)
            return _json(sheet.value, sheet.handles)
    except _BAD:
        pass
    return None


def _json(value: bytes, arrays: tuple[_Array, ...]) -> str | None:
    if len(value) > SHOWN_BYTES_MAX:
        return None

    def array(code: int, data: memoryview) -> Any:
        if code != ARRAY_EXTENSION or not arrays:
            return f"<extension {code}>"
        found = arrays[msgspec.msgpack.decode(data, type=int)]
        return f"<{found.dtype}{list(found.shape)}>"

    decoded = msgspec.msgpack.decode(value, ext_hook=array)
    if arrays and isinstance(decoded, str):
        return decoded  # an array by itself
    return msgspec.json.encode(decoded).decode()
