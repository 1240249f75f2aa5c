"""Handles: where an array lies in shared memory, and what it is an array of. No numpy here: types
are names, shapes are integers; zenos/runtime/arrays.py makes arrays and tensors of them."""

from __future__ import annotations

from typing import Final

import msgspec

from zenos.core import limits
from zenos.core.errors import HandleError, InvalidError

ITEM_BYTES: Final = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
ALIGNMENT_BYTES: Final = 64  # of arrays within a segment: a cache line


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """An array in C order. dtype: a name from ITEM_BYTES; shape: () has one element; offset: bytes
    from the beginning of its buffer, a multiple of the element's size."""

    dtype: str = "uint8"
    shape: tuple[int, ...] = (0,)
    offset: int = 0

    @property
    def bytes(self) -> int:
        """What it takes. InvalidError where there is no such array."""
        item = ITEM_BYTES.get(self.dtype)
        if item is None:
            known = ", ".join(ITEM_BYTES)
            raise InvalidError(f"cannot share elements of type {self.dtype!r}: use one of {known}")
        if len(self.shape) > limits.ARRAY_DIMENSIONS_MAX:
            raise InvalidError(
                f"cannot share an array of {len(self.shape)} dimensions: "
                f"at most {limits.ARRAY_DIMENSIONS_MAX}"
            )
        strides, size = item, item
        for length in self.shape:
            strides *= max(length, 1)
            size *= length
            # Empty arrays, too: who makes one computes its strides.
            if length < 0 or strides > limits.SEGMENT_BYTES_MAX:
                raise InvalidError(f"cannot share an array of shape {list(self.shape)}")
        return size

    @property
    def end(self) -> int:
        """The first byte after it. InvalidError where it may not lie there."""
        size = self.bytes
        if self.offset < 0 or self.offset % ITEM_BYTES[self.dtype]:
            raise InvalidError(
                f"cannot share {self.dtype} at byte {self.offset}: "
                f"use a multiple of {ITEM_BYTES[self.dtype]}"
            )
        return self.offset + size


class Handle(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies: what a message carries instead of the array.

    segment: the memory's inode number. generation: how often a pool had given that memory out.
    bytes: the array's size, from `offset` on in the buffer.
    """

    segment: int
    generation: int
    offset: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """The array without its place."""
        return Layout(self.dtype, self.shape, self.offset)

    def check(self, room: int) -> None:
        """HandleError unless it describes an array within a buffer of `room` bytes."""
        try:
            layout = self.layout
            fits = layout.bytes == self.bytes and layout.end <= room
        except InvalidError as error:
            raise HandleError(error.message) from None
        if not fits:
            raise HandleError(
                f"cannot use this handle: {self.dtype} of shape {list(self.shape)} are not "
                f"{self.bytes} bytes at {self.offset} within {room}"
            )


def pack(*arrays: tuple[str, tuple[int, ...]]) -> tuple[list[Layout], int]:
    """Lay arrays, each by dtype and shape, one behind the other, each on a cache line of its own:
    their layouts, and the bytes that they take together. InvalidError."""
    layouts: list[Layout] = []
    end = 0
    for dtype, shape in arrays:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        layouts.append(Layout(dtype, tuple(shape), start))
        end = layouts[-1].end
    return layouts, end
