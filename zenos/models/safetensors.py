"""Weight files, checked before they are believed. Standard library only; no tensor is read.

The format (github.com/huggingface/safetensors): 8 bytes of header length, little-endian, a JSON
object of `name: {dtype, shape, data_offsets}`, then the tensors' bytes. Declared offsets and
sizes are checked against the file: a lying header must not make anybody read outside it.
"""

from __future__ import annotations

import json
import math
import os
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
    """What a file declares: shapes by tensor name, the number of values in all of them, and the
    dtypes of tensors that are not real numbers: integers, booleans, complex ones."""

    shapes: dict[str, tuple[int, ...]]
    parameters: int
    unreal: dict[str, str] = {}


def is_pickle(path: Path, name: str | None = None) -> bool:
    """Whether a file is a pickled weight file, told by its name or its first bytes.

    What is no plain file, or cannot be read, is told by its name alone.
    """
    if Path(path.name if name is None else name).suffix.lower() in PICKLE_NAMES:
        return True
    if not path.is_file():  # a pipe would wait for whoever writes into it
        return False
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(PICKLE_MAGIC)
    except OSError:
        return False


def refuse_pickle(path: Path, name: str | None = None) -> None:
    """Raises InvalidError for a pickled weight file."""
    name = path.name if name is None else name
    if is_pickle(path, name):
        raise InvalidError(
            f"cannot take {name[:128]!a}: it is a pickle, and loading one runs whatever code its "
            "author put into it; convert it to safetensors"
        )


def check(path: Path, name: str | None = None) -> Header:
    """The header of a safetensors file; InvalidError says what is wrong with it.

    name: what the messages call it, if not by its path.
    """
    name = (path.name if name is None else name)[:128]
    try:
        return _check(path, name)
    except RecursionError:
        raise InvalidError(
            f"cannot read {name}: its header is malformed (nested too deeply)"
        ) from None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = str(error)[:200]
        raise InvalidError(f"cannot read {name}: its header is malformed ({reason})") from error
    except OSError as error:
        raise InvalidError(f"cannot read {name}: {error.strerror or error}") from error


def _check(path: Path, file_name: str) -> Header:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        if len(first) < 8:
            raise InvalidError(f"cannot read {file_name}: it is truncated")
        (length,) = struct.unpack("<Q", first)
        if length > HEADER_BYTES_MAX or length > size - 8:
            refuse_pickle(path, file_name)
            raise InvalidError(
                f"cannot read {file_name}: its header is longer than the file or than any real one"
            )
        text = file.read(length).decode()
    if not text.startswith("{"):
        raise InvalidError(f"cannot read {file_name}: its header is no object")
    raw = json.loads(text, object_pairs_hook=_unique)
    notes = raw.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(n, str) for n in notes.values()):
        raise InvalidError(f"cannot read {file_name}: its metadata is no map of texts")
    spans: list[tuple[int, int, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    unreal: dict[str, str] = {}
    for name, entry in raw.items():
        shapes[name], start, end = _tensor(file_name, name, entry)
        spans.append((start, end, name))
        if not entry["dtype"].startswith(("F", "BF")):
            unreal[name] = entry["dtype"]
    place = 0
    for start, end, name in sorted(spans):
        if start != place:
            raise InvalidError(f"cannot read {file_name}: {name[:64]!a} overlaps or leaves a gap")
        place = end
    if place != size - 8 - length:
        raise InvalidError(
            f"cannot read {file_name}: its tensors take {place} bytes, the file has "
            f"{size - 8 - length}; it is truncated or damaged"
        )
    return Header(shapes, sum(math.prod(shape) for shape in shapes.values()), unreal)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(file_name: str, name: str, entry: Any) -> tuple[tuple[int, ...], int, int]:
    where = f"cannot read {file_name}: {name[:64]!a}"
    bits = BITS.get(entry["dtype"])
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    numbers = [start, end, *shape]
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in numbers):
        raise InvalidError(f"{where} has a number that isn't one")
    if bits is None:
        raise InvalidError(f"{where} has the unknown dtype {str(entry['dtype'])[:32]!a}")
    if len(shape) > DIMENSIONS_MAX or max(numbers) > limits.MEMORY_BYTES_MAX:
        raise InvalidError(f"{where} has an absurd shape")
    wanted, rest = divmod(math.prod(shape) * bits, 8)
    if rest or end - start != wanted:
        raise InvalidError(
            f"{where} of shape {shape} wants {wanted} bytes, its offsets give {end - start}"
        )
    return tuple(shape), start, end
