"""Bodies with arrays in them, and large ones of bytes: in shared memory, or in their message.

A value with arrays is MessagePack in which each array is an extension that holds its number. The
arrays themselves, of all libraries, lie one behind the other: in a buffer that the message lends,
or, where they are small or have to be stored, in the body, as they would lie there. A body begins
with the length of its *sheet*, which tells what is where.

Nothing is pickled, and what came is checked before it is used: handles against the memory that came
with them (view.py), the others against the body's length.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from zenos.bus import checks, parcel, segment, sharing
from zenos.bus.envelope import close_all
from zenos.bus.handle import Handle, Layout, pack
from zenos.bus.memory import Buffer, Pool
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.contents import ARRAY_EXTENSION, LENGTH
from zenos.core.contents import ARRAYS as ARRAYS
from zenos.core.contents import SHARED as SHARED
from zenos.core.errors import ConflictError, HandleError, InvalidError, TooLargeError
from zenos.core.wording import shown

_encoder: Final = msgspec.msgpack.Encoder()


class Sheet(msgspec.Struct, frozen=True, array_like=True):
    """What a body holds. value: MessagePack, with an extension for each array. libraries: whose
    arrays they were."""

    value: bytes
    libraries: tuple[str, ...]
    handles: tuple[Handle, ...]


class Encoded(NamedTuple):
    """A value as it is sent. descriptors: open files that go along; the bus closes them."""

    body: bytes | bytearray | memoryview
    content_type: str = ""
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """It won't be sent."""
        close_all(self.descriptors)


class ArrayBuffer:
    """Memory for one array, to be written in place and then sent, as often as wanted.

    It is given back when it is closed or let go, all who got it have let go, and nothing that was
    made of it here is left. Nothing may be written to it once it was sent.
    """

    def __init__(self, buffer: Buffer, layout: Layout) -> None:
        self.layout = layout
        self._buffer = buffer
        self._lent: parcel.Parcel | None = None
        self._library = "torch" if layout.dtype == "bfloat16" else "numpy"
        self.is_small = False

    def __enter__(self) -> ArrayBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bytes(self) -> int:
        """What the array takes."""
        return self.layout.bytes

    @property
    def memory(self) -> memoryview:
        """Its bytes, writable. ConflictError once it was sent."""
        if self._lent is not None:
            raise ConflictError("cannot write to what was sent: ask for another buffer")
        return self._buffer.memory[: self.layout.bytes]

    def array(self) -> Any:
        """A numpy array to fill; whoever receives it gets one. ConflictError once it was sent."""
        return self._made("numpy")

    def tensor(self) -> Any:
        """The same as a torch tensor on the CPU."""
        return self._made("torch")

    def close(self) -> None:
        """Let go of it."""
        self._buffer.release()
        if self._lent is not None:
            self._lent.close()

    def _made(self, library: str) -> Any:
        made = sharing.codec_for(library).make(self.memory, self.layout)
        self._library = library
        return made

    def share(self, pool: Pool, wait_s: float) -> Encoded:
        """As `Draft.share`; nothing is copied."""
        if self._lent is None:
            self._lent = self._buffer.lend(self.layout)
        sheet = Sheet(_extension(0), (self._library,), self._lent.handles)
        return Encoded(_body_of(sheet), ARRAYS, self._lent.copies())

    def inline(self) -> Encoded:
        """As `Draft.inline`. ConflictError once it was sent."""
        sheet = Sheet(_extension(0), (self._library,), (_handle(self.layout),))
        return Encoded(_body_of(sheet, self.memory), ARRAYS)


class Draft:
    """A value with arrays in it, before they are copied."""

    def __init__(self, value: Any) -> None:
        """InvalidError when it can't be sent. Raises TypeError like msgspec does."""
        self._arrays: list[Any] = []
        self._codecs: list[sharing.ArrayCodec] = []
        self._libraries: list[str] = []
        encoder = msgspec.msgpack.Encoder(enc_hook=self._take)
        self._value = encoder.encode(value)
        described = [c.describe(a) for c, a in zip(self._codecs, self._arrays, strict=True)]
        self._layouts, self.bytes = pack(*described)

    @property
    def is_small(self) -> bool:
        """Whether it should go in its message."""
        return self.bytes <= limits.SHARED_ARRAYS_BYTES_MIN

    def _take(self, value: Any) -> msgspec.msgpack.Ext:
        found = sharing.find(value)
        if found is None:
            if isinstance(value, ArrayBuffer):
                raise InvalidError("cannot send a buffer within a value: send it by itself")
            raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
        number = len(self._arrays)
        self._libraries.append(found[0])
        self._codecs.append(found[1])
        self._arrays.append(value)
        return msgspec.msgpack.Ext(ARRAY_EXTENSION, _encoder.encode(number))

    def share(self, pool: Pool, wait_s: float) -> Encoded:
        """Copy the arrays into the pool, once. Errors as `Pool.allocate`."""
        with pool.allocate(self.bytes, wait_s=wait_s) as buffer:
            self._write(buffer.memory)
            lent = buffer.lend(*self._layouts)
        with lent:
            body = _body_of(self._sheet(lent.handles))
            return Encoded(body, ARRAYS, lent.detach())

    def inline(self) -> Encoded:
        """The arrays in the body itself."""
        data = bytearray(self.bytes)
        self._write(memoryview(data))
        return Encoded(_body_of(self._sheet([*map(_handle, self._layouts)]), data), ARRAYS)

    def _sheet(self, handles: Sequence[Handle]) -> Sheet:
        return Sheet(self._value, tuple(self._libraries), tuple(handles))

    def _write(self, memory: memoryview) -> None:
        for codec, array, at in zip(self._codecs, self._arrays, self._layouts, strict=True):
            codec.write(array, memory[at.offset : at.end], at)


class BytesDraft:
    """Many bytes, before they are copied."""

    is_small = False

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        """InvalidError for a memoryview that is no row of bytes."""
        self._value = value
        self.bytes = memoryview(value).nbytes

    def share(self, pool: Pool, wait_s: float) -> Encoded:
        """As `Draft.share`; what never fits into the pool goes in its message, if it may."""
        try:
            buffer = pool.allocate(self.bytes, wait_s=wait_s)
        except TooLargeError:
            if self.bytes > limits.FRAME_BYTES_MAX // 2:
                raise
            return self.inline()
        with buffer:
            view = memoryview(self._value)
            buffer.memory[:] = view.cast("B") if view.c_contiguous else view.tobytes()
            lent = buffer.lend()
        with lent:
            return Encoded(_body_of(Sheet(b"", (), lent.handles)), SHARED, lent.detach())

    def inline(self) -> Encoded:
        """The bytes as they are."""
        value = self._value
        return Encoded(value if isinstance(value, bytes) else bytes(value))


AnyDraft = Draft | BytesDraft | ArrayBuffer


def stored(draft: AnyDraft) -> Encoded:
    """As it is kept by a durable topic. InvalidError for more than that holds."""
    if draft.bytes > limits.MESSAGE_BYTES_MAX:
        raise InvalidError(
            f"cannot send a message of {draft.bytes} bytes: at most {limits.MESSAGE_BYTES_MAX} in "
            "a durable one; use a transient topic, or send where the data lies"
        )
    return draft.inline()


class Own:
    """A program's shared memory for what it sends: a pool, made when it is first needed."""

    def __init__(self, bytes_max: int) -> None:
        least = segment.HEADER_BYTES + limits.SEGMENT_BYTES_MIN
        most = limits.SEGMENT_BYTES_MAX
        self._bytes_max = checks.whole("shared_bytes_max", bytes_max, least, most)
        self._pool: Pool | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def pool(self) -> Pool:
        """ConflictError when it was closed."""
        with self._lock:
            if self._is_closed:
                raise ConflictError("cannot send shared memory: the bus was closed")
            if self._pool is None:
                self._pool = Pool(self._bytes_max)
            return self._pool

    def buffer(self, shape: Sequence[int], dtype: str, wait_s: float) -> ArrayBuffer:
        """Memory for an array. InvalidError for a type or shape; else as `Pool.allocate`."""
        layout = Layout(checks.text("dtype", dtype), checks.shape(shape))
        return ArrayBuffer(self.pool.allocate(layout.bytes, wait_s=wait_s), layout)

    def close(self) -> None:
        """Give it back; who reads keeps what it has."""
        with self._lock:
            self._is_closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


class Inline:
    """Arrays that lie in their message: of a copy, for who reads the same message twice."""

    def __init__(self, handles: tuple[Handle, ...], data: memoryview) -> None:
        """HandleError unless they lie within the data."""
        for handle in handles:
            handle.check(len(data))
        self.handles: Sequence[Handle] = handles
        self._data = bytes(data)
        self._private: bytearray | None = None

    def memory(self, index: int = 0) -> memoryview:
        return self._part(memoryview(self._data), index)

    def private_memory(self, index: int = 0) -> memoryview:
        if self._private is None:
            self._private = bytearray(self._data)
        return self._part(memoryview(self._private), index)

    def _part(self, memory: memoryview, index: int) -> memoryview:
        handle = self.handles[index]
        return memory[handle.offset : handle.offset + handle.bytes]


UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError)


def unreadable(error: Exception, type_: Any) -> InvalidError:
    """A body is something else, or there is no such type: one of UNREADABLE."""
    if isinstance(error, TypeError):
        said = f"cannot read a body as {shown(type_)}: {error}; give a type that msgspec knows"
        return InvalidError(said)
    return InvalidError(f"cannot read a body: {error}")


class Opened:
    """A body that came, and the memory that came with it, which is let go with the last of this
    and of what was made of it."""

    def __init__(self, body: memoryview, descriptors: tuple[int, ...]) -> None:
        """Takes the descriptors. HandleError (none is left open) when it makes no sense."""
        self._memory: View | Inline
        try:
            self._sheet, rest = _sheet_in(body)
            if len(descriptors) not in (0, parcel.DESCRIPTORS):
                raise HandleError(f"cannot use {len(descriptors)} descriptors as shared memory")
        except BaseException:
            close_all(descriptors)
            raise
        if descriptors:
            with parcel.Parcel(self._sheet.handles, *descriptors) as came:
                self._memory = View(came)
        else:
            self._memory = Inline(self._sheet.handles, rest)

    @property
    def memory(self) -> memoryview:
        """Of its first array, in place, read-only."""
        return self._memory.memory()

    def bytes(self) -> bytes:
        """A copy of that."""
        return bytes(self.memory)

    def read(self, type_: Any) -> Any:
        """The value, with arrays in place. type_: as for msgspec, or a library's type of arrays,
        for arrays of that library. InvalidError."""
        library = sharing.library_of(type_)

        def array(code: int, data: memoryview) -> Any:
            number = msgspec.msgpack.decode(data, type=int) if code == ARRAY_EXTENSION else -1
            if not 0 <= number < min(len(self._sheet.handles), len(self._sheet.libraries)):
                raise HandleError("cannot read a body: it names an array that didn't come")
            whose = library or self._sheet.libraries[number]
            return sharing.codec_for(whose).read(self._memory, number)

        try:
            return msgspec.msgpack.decode(self._sheet.value, type=type_, ext_hook=array)
        except UNREADABLE as error:
            raise unreadable(error, type_) from None


def _extension(number: int) -> bytes:
    return _encoder.encode(msgspec.msgpack.Ext(ARRAY_EXTENSION, _encoder.encode(number)))


def _handle(layout: Layout) -> Handle:
    """Of an array in its message."""
    return Handle(0, 0, layout.offset, layout.bytes, layout.dtype, layout.shape)


def _body_of(sheet: Sheet, data: bytes | bytearray | memoryview = b"") -> bytes:
    head = _encoder.encode(sheet)
    return b"".join((LENGTH.pack(len(head)), head, data))


def _sheet_in(body: memoryview) -> tuple[Sheet, memoryview]:
    """The sheet, and what follows it. HandleError."""
    try:
        (length,) = LENGTH.unpack_from(body)
        sheet = msgspec.msgpack.decode(body[LENGTH.size : LENGTH.size + length], type=Sheet)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandleError(f"cannot read a body with arrays: {error}") from None
    return sheet, body[LENGTH.size + length :]
