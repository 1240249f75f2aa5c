"""The seam between shared memory and the libraries whose arrays lie in it.

The bus knows bytes, type names and shapes. What turns these into arrays registers here: see
zenos/runtime/arrays.py, which knows numpy and torch.
"""

from __future__ import annotations

from typing import Any, Protocol

from zenos.bus.handle import Layout, pack
from zenos.bus.memory import Pool
from zenos.bus.parcel import Parcel
from zenos.bus.view import View
from zenos.core.errors import InvalidError


class Codec(Protocol):
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

    def read(self, view: View, index: int) -> Any:
        """Array number `index` of the view, without a copy; it keeps the memory while it lives.
        InvalidError where the library has no such type."""
        ...


_codecs: dict[str, Codec] = {}


def register(library: str, codec: Codec) -> None:
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
    codec = _codecs.get(library)
    if codec is None:
        known = ", ".join(sorted(_codecs)) or "none yet"
        raise InvalidError(f"cannot make arrays of {library!r}: known are {known}")
    return [codec.read(view, index) for index in range(len(view.handles))]


def codec_of(value: object) -> Codec:
    """Whose array that is. InvalidError when it is nobody's."""
    for codec in _codecs.values():
        if codec.takes(value):
            return codec
    kind = type(value)
    raise InvalidError(
        f"cannot share a {kind.__module__}.{kind.__qualname__}: "
        f"arrays of {', '.join(sorted(_codecs)) or 'no library'} can be"
    )
