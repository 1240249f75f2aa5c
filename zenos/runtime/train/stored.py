"""The tensors of a checkpoint's file, read into memory that a model and its optimiser take over.

Mapped, each page would be copied when it is first written to, in the first step. Here each is read
once, into huge pages where the system has them, and hashed on the way.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

DTYPES: Final = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME: Final = {name: dtype for dtype, name in DTYPES.items()}
_ALIGNED_BYTES: Final = 64  # as torch's own memory is
_BLOCK_BYTES: Final = 1024 * 1024  # read and hashed while it is in the processor's cache


class Stored:
    """A safetensors file of `size` bytes. Its header is read at once; `read` reads the rest."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises OSError, and ValueError for a file of another size, or without a header."""
        self._path = path
        found = path.stat().st_size
        if found != size:
            raise ValueError(f"{path.name} has {found} bytes instead of {size}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size:
                raise ValueError(f"{path.name} has no header")
            self._header: dict[str, Any] = json.loads(file.read(length))
        # The tensors begin at a multiple of _ALIGNED_BYTES.
        whole = np.empty(size + _ALIGNED_BYTES, dtype=np.uint8)
        first = -(whole.ctypes.data + 8 + length) % _ALIGNED_BYTES
        self._memory = whole[first : first + size]
        self._first = 8 + length

    def read(self) -> str:
        """Read all of it; its SHA-256 (hex). Runs no torch operation. Raises OSError."""
        digest = hashlib.sha256()
        left = self._memory.data
        with self._path.open("rb", buffering=0) as file:
            while left:
                count = file.readinto(left[:_BLOCK_BYTES])
                if not count:
                    raise OSError(f"{self._path.name} has become shorter")
                digest.update(left[:count])
                left = left[count:]
        return digest.hexdigest()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, over that memory; ValueError for a header that can't be one."""
        return {name: self._tensor(of) for name, of in self._header.items()}

    def _tensor(self, of: dict[str, Any]) -> torch.Tensor:
        try:
            dtype, shape = _BY_NAME[of["dtype"]], tuple(of["shape"])
            begin, end = of["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path.name} has a damaged header: {error}") from error
        part = self._memory[self._first + begin : self._first + end]
        if not part.size:
            return torch.empty(shape, dtype=dtype)
        return torch.from_numpy(part).view(dtype).reshape(shape)
