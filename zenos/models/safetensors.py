"""Weight files, checked before they are believed. Standard library only; no tensor is read.

The format (github.com/huggingface/safetensors): 8 bytes of header length, little-endian, a JSON
object of `name: {dtype, shape, data_offsets}`, then the tensors' bytes. Declared offsets and
sizes are checked against the file: a lying header must not make anybody read outside it.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError

HEADER_BYTES_MAX: Final = 100_000_000  # the format's own bound
DIMENSIONS_MAX: Final = 32
BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
PICKLE_NAMES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy")
PICKLE_MAGIC: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class Header(msgspec.Struct, frozen=True):
    """What a file declares: shapes by tensor name, and the number of values in all of them."""

    shapes: dict[str, tuple[int, ...]]
    parameters: int


def refuse_pickle(path: Path) -> None:
    """Raises InvalidError for a pickled weight file, told by its name or its first bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in PICKLE_NAMES or start.startswith(PICKLE_MAGIC):
        raise InvalidError(
            f"cannot take {path.name}: it is a pickle, and loading one runs whatever code its "
            "author put into it; convert it to safetensors"
        )


def check(path: Path) -> Header:
    """The header of a safetensors file; InvalidError says what is wrong with it."""
    try:
        return _check(path)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise InvalidError(f"cannot read {path.name}: its header is malformed ({error})") from error


def _check(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise InvalidError(f"cannot read {path.name}: it is truncated")
        (length,) = struct.unpack("<Q", first)
        if length > HEADER_BYTES_MAX or length > size - 8:
            refuse_pickle(path)
            raise InvalidError(f"cannot read {path.name}: its header is longer than the file")
        raw = json.loads(file.read(length), object_pairs_hook=_unique)
    if not isinstance(raw, dict):
        raise InvalidError(f"cannot read {path.name}: its header is no object")
    raw.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in raw.items():
        shapes[name], start, end = _tensor(path, name, entry)
        spans.append((start, end, name))
    place = 0
    for start, end, name in sorted(spans):
        if start != place:
            raise InvalidError(f"cannot read {path.name}: {name!r} overlaps or leaves a gap")
        place = end
    if place != size - 8 - length:
        raise InvalidError(
            f"cannot read {path.name}: its tensors take {place} bytes, the file has "
            f"{size - 8 - length}; it is truncated or damaged"
        )
    return Header(shapes, sum(math.prod(shape) for shape in shapes.values()))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], int, int]:
    bits = BITS.get(entry["dtype"])
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    numbers = [start, end, *shape]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise InvalidError(f"cannot read {path.name}: {name[:64]!r} has a number that isn't one")
    if bits is None:
        kind = str(entry["dtype"])[:32]
        raise InvalidError(f"cannot read {path.name}: {name[:64]!r} has the unknown dtype {kind!r}")
    if len(shape) > DIMENSIONS_MAX or max(numbers) > limits.MEMORY_BYTES_MAX:
        raise InvalidError(f"cannot read {path.name}: {name[:64]!r} has an absurd shape")
    wanted = -(-math.prod(shape) * bits // 8)
    if end - start != wanted:
        raise InvalidError(
            f"cannot read {path.name}: {name[:64]!r} of shape {shape} wants {wanted} bytes, "
            f"its offsets give {end - start}"
        )
    return tuple(shape), start, end
