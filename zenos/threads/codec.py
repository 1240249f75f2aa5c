"""Frames between a pool and a lane's process, and what stands in them.

A frame is the length of its header (4 bytes, big-endian), the header (MessagePack), and as many
bytes as the header's sizes say: a pickle, then the buffers that it refers to (pickle protocol 5,
PEP 574), which are sent from where they lie and received where they are used.

Pickles are loaded here and nowhere else in zenos, and only from the other end of a socket pair: of
that which a pool made for the process that it started, or of those between a program, its host of
calls and a lane there (see zenos/calls, which loads through here). Whoever could write there runs
as the same user's program already, and executes its functions.
"""

from __future__ import annotations

import pickle
import socket
import struct
import traceback
from collections.abc import Sequence
from typing import Any, Final, Literal

import cloudpickle
import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, WorkerError

PICKLER: Final = f"cloudpickle {cloudpickle.__version__}"
LENGTH: Final = struct.Struct(">I")
REASON_SHOWN_CHARS: Final = 200
_BUFFERS_AT_ONCE: Final = 512  # sendmsg takes 1024 on Linux
_BYTES: Final = (bytes, bytearray)
Buffer = bytes | bytearray | memoryview


class FrameError(InvalidError):
    """cannot read what a lane's process sent: it is malformed"""


class Header(msgspec.Struct, array_like=True):
    """What a frame is about.

    kind: `hello` (to a lane: text is its sys.path in JSON), `function` (to a lane: keep it as key),
    `forget` (key), `run` (to a lane), `ready` and `ended` (from a lane). sizes: of what follows;
    writable: which of these are to be writable memory.
    """

    kind: Literal["hello", "function", "forget", "run", "ready", "ended"]
    serial: int = 0
    key: int = 0
    sizes: list[int] = []
    writable: list[bool] = []
    text: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


def dump(value: object) -> list[Buffer]:
    """The pickle of a value and the buffers beside it. Raises whatever pickling raises."""
    beside: list[pickle.PickleBuffer] = []
    body = cloudpickle.dumps(value, protocol=5, buffer_callback=beside.append)
    return [body, *(buffer.raw() for buffer in beside)]


def dumps(value: object, *, simple: bool = False) -> bytes:
    """The pickle of a value in one piece. simple: of built-in types that refer to nothing.

    Raises whatever pickling raises.
    """
    make = pickle.dumps if simple else cloudpickle.dumps
    made: bytes = make(value, protocol=5)
    return made


def load(parts: Sequence[Buffer]) -> Any:
    """The value. Raises whatever unpickling raises."""
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - see the module's words


def sendable(error: BaseException, what: str) -> BaseException:
    """The error of a thread or call, if it comes through unharmed; else one that tells of it."""
    try:
        copy = load(dump(error))
        if type(copy) is type(error) and isinstance(error, Exception):
            return error
    except BaseException:  # noqa: BLE001, S110 - it is told below, in words
        pass
    said = traceback.format_exception_only(error)[-1].strip()
    return WorkerError(f"cannot finish the {what}: its function raised {said}")


def unsendable(reason: Exception) -> InvalidError:
    """What is told in place of a result that can't be pickled."""
    return InvalidError(
        f"cannot send the result back ({type(reason).__name__}: "
        f"{str(reason)[:REASON_SHOWN_CHARS]}): return something that can be pickled"
    )


def aside(items: Sequence[Any]) -> list[Any]:
    """The items, with large bytes among them marked to go beside the pickle.

    Only where the first is of that kind: to look at each of many small ones costs too much.
    """
    if not items or type(items[0]) not in _BYTES:
        return list(items)
    return [
        pickle.PickleBuffer(item)
        if type(item) in _BYTES and len(item) >= limits.BUFFER_BYTES_MIN
        else item
        for item in items
    ]


def check(parts: Sequence[Buffer]) -> None:
    """InvalidError for what is too large for one frame."""
    size = sum(len(memoryview(part).cast("B")) for part in parts)
    if len(parts) > limits.LANE_BUFFERS_MAX or size > limits.LANE_FRAME_BYTES_MAX:
        raise InvalidError(
            f"cannot send {size} bytes in {len(parts)} buffers at once: use smaller chunks"
        )


def send(link: socket.socket, header: Header, parts: Sequence[Buffer] = ()) -> int:
    """Send a frame; its size in bytes. InvalidError for one that is too large."""
    views = [memoryview(part).cast("B") for part in parts]
    header.sizes = [len(view) for view in views]
    header.writable = [not view.readonly for view in views]
    check(views)
    encoded = _encoder.encode(header)
    rest: list[memoryview] = [memoryview(LENGTH.pack(len(encoded)) + encoded), *views]
    size, first = sum(map(len, rest)), 0
    while first < len(rest):
        sent = link.sendmsg(rest[first : first + _BUFFERS_AT_ONCE])
        while first < len(rest) and sent >= len(rest[first]):
            sent -= len(rest[first])
            first += 1
        if sent:
            rest[first] = rest[first][sent:]
    return size


def receive(link: socket.socket) -> tuple[Header, list[Buffer]] | None:
    """The next frame; None at the end of the stream. FrameError when it is none."""
    start = _exactly(link, LENGTH.size)
    if start is None:
        return None
    (length,) = LENGTH.unpack(start)
    if length > limits.LANE_HEADER_BYTES_MAX:
        raise FrameError(f"cannot read a header of {length} bytes: too long")
    encoded = _exactly(link, length)
    if encoded is None:
        return None
    try:
        header = _decoder.decode(encoded)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise FrameError(f"cannot read a frame: {error}") from None
    if (
        len(header.sizes) != len(header.writable)
        or min(header.sizes, default=0) < 0
        or sum(header.sizes) > limits.LANE_FRAME_BYTES_MAX
    ):
        raise FrameError(f"cannot read a frame with parts of {header.sizes[:10]} bytes")
    parts: list[Buffer] = []
    for size, writable in zip(header.sizes, header.writable, strict=True):
        part = _into(link, size) if writable else _exactly(link, size)
        if part is None:
            return None
        parts.append(part)
    return header, parts


def _exactly(link: socket.socket, size: int) -> bytes | None:
    """So many bytes, uncopied where they come at once; None at the end of the stream."""
    if size == 0:
        return b""
    got = link.recv(size, socket.MSG_WAITALL)
    if len(got) == size:
        return got
    parts = [got]
    missing = size - len(got)
    while missing:
        if not parts[-1]:
            return None
        parts.append(link.recv(missing, socket.MSG_WAITALL))
        missing -= len(parts[-1])
    return b"".join(parts)


def _into(link: socket.socket, size: int) -> bytearray | None:
    memory = bytearray(size)
    view = memoryview(memory)
    while view:
        count = link.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return memory
