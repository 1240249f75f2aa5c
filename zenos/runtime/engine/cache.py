"""Keys and values of all sequences, in rows that are reserved once and filled as they are used."""

from __future__ import annotations

import mmap
import sys
from typing import Final

import torch
from torch import Tensor

_PAGE: Final = mmap.PAGESIZE
# Private: shared pages would stay when given back. Not reserved: most are never used.
_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE


class RowCache:
    """One layer: a tensor of shape (rows, heads, context, head size), zero at first.

    heads: keys' and values' together, keys first. On a CPU the memory is mapped, so that a page
    costs nothing until it is written, and can be given back.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._map: mmap.mmap | None = None
        rows, heads, context, size = shape
        self._row_bytes = heads * context * size * dtype.itemsize
        if device.type == "cpu":
            self._map = mmap.mmap(-1, rows * self._row_bytes, flags=_FLAGS)
            self.tensor = torch.frombuffer(self._map, dtype=dtype).view(shape)
        else:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.keys: Tensor = self.tensor[:, : heads // 2]
        self.values: Tensor = self.tensor[:, heads // 2 :]

    @torch.inference_mode()
    def exchange(self, first: int, second: int, first_length: int, second_length: int) -> None:
        """Swap the first positions of two rows."""
        kept = self.tensor[first, :, :first_length].clone()
        self.copy(second, first, second_length)
        self.tensor[second, :, :first_length] = kept

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        if length:
            self.tensor[target, :, :length] = self.tensor[source, :, :length]

    def release(self, row: int) -> None:
        """Give the whole pages of a row back; they read as zero afterwards."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-row * self._row_bytes // _PAGE) * _PAGE
        end = (row + 1) * self._row_bytes // _PAGE * _PAGE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)
