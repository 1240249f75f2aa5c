"""The seam between shared memory and the libraries whose arrays lie in it.

The bus knows bytes, type names and shapes. What turns these into arrays registers here: see
zenos/runtime/arrays.py, which knows numpy and torch. It is imported when the first array is sent or
read, and never by a program that has none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

from zenos.bus.handle import Handle, Layout, pack
from zenos.bus.memory import Pool
from zenos.bus.parcel import Parcel
from zenos.bus.view import View
from zenos.core.errors import InvalidError

# By name, so that nobody imports these libraries who has no arrays.
_REGISTERED_BY: Final = {"numpy": "zenos.runtime.arrays", "torch": "zenos.runtime.arrays"}


class Memory(Protocol):
    """Where arrays lie: a view of shared memory, or a message that holds them itself."""

    @property
    def handles(self) -> Sequence[Handle]:
        """What lies there."""
        ...

    def memory(self, index: int = 0) -> memoryview:
        """The bytes of one array, read-only."""
        ...

    def private_memory(self, index: int = 0) -> memoryview:
        """The same, writable: what is written is seen by this process alone."""
        ...


class ArrayCodec(Protocol):
    """The arrays of one library."""

    def takes(self, value: object) -> bool:
        """Whether it is one of them. Imports nothing."""
        ...

    def describe(self, value: Any) -> tuple[str, tuple[int, ...]]:
        """Type name (see ITEM_BYTES) and shape. InvalidError for what cannot be shared."""
        ...

    def write(self, value: Any, memory: memoryview, layout: Layout) -> None:
        """Write its elements into `memory`, of `layout.bytes` bytes, in C order."""
        ...

    def make(self, memory: memoryview, layout: Layout) -> Any:
        """An array in that memory, of `layout.bytes` bytes, as writable as it is."""
        ...

    def read(self, view: Memory, index: int) -> Any:
        """Array number `index` of the view, without a copy; it keeps the memory while it lives.
        InvalidError where the library has no such type."""
        ...


_codecs: dict[str, ArrayCodec] = {}


def register(library: str, codec: ArrayCodec) -> None:
    """Make a library's arrays known; a second one of the same name takes its place."""
    _codecs[library] = codec


def share(pool: Pool, *values: object, wait_s: float = 0.0) -> Parcel:
    """Copy arrays into one buffer of the pool, once, and lend it.

    InvalidError for what is no array, or has a type that cannot be shared; else as
    `Pool.allocate`.
    """
    found = [codec_of(value) for value in values]
    described = [codec.describe(value) for codec, value in zip(found, values, strict=True)]
    layouts, size = pack(*described)
    with pool.allocate(size, wait_s=wait_s) as buffer:
        memory = buffer.memory
        for codec, value, layout in zip(found, values, layouts, strict=True):
            codec.write(value, memory[layout.offset : layout.end], layout)
        return buffer.lend(*layouts)


def read(view: View, library: str) -> list[Any]:
    """All arrays of a view, as that library's, without a copy."""
    codec = codec_for(library)
    return [codec.read(view, index) for index in range(len(view.handles))]


def codec_for(library: str) -> ArrayCodec:
    """What makes that library's arrays. InvalidError where nothing does, or it isn't installed."""
    if library not in _codecs and library in _REGISTERED_BY:
        try:
            importlib.import_module(_REGISTERED_BY[library])
        except ImportError as error:
            raise InvalidError(
                f"cannot make arrays of {library}: {error}; install it, or send bytes"
            ) from None
    codec = _codecs.get(library)
    if codec is None:
        known = ", ".join(sorted(_codecs)) or "none yet"
        raise InvalidError(f"cannot make arrays of {library[:100]!r}: known are {known}")
    return codec


def find(value: object) -> tuple[str, ArrayCodec] | None:
    """Whose array that is, by name; None when it is nobody's."""
    for library in _REGISTERED_BY:
        if library in sys.modules:
            codec_for(library)
    for library, codec in _codecs.items():
        if codec.takes(value):
            return library, codec
    return None


def library_of(type_: object) -> str:
    """Whose arrays are of that type; empty when they are nobody's."""
    library = getattr(type_, "__module__", "").partition(".")[0]
    return library if library in _REGISTERED_BY else ""


def codec_of(value: object) -> ArrayCodec:
    """Whose array that is. InvalidError when it is nobody's."""
    found = find(value)
    if found is not None:
        return found[1]
    kind = type(value)
    raise InvalidError(
        f"cannot share a {kind.__module__}.{kind.__qualname__}: "
        f"arrays of {', '.join(sorted(_codecs)) or 'no library'} can be"
    )
