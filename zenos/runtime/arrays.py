"""numpy arrays and torch tensors in shared memory; importing this registers both with the bus.

torch is imported only where a tensor is asked for: programs that use numpy alone don't pay for it.

What is written is C-contiguous whatever the strides were: the elements are copied once, straight
into shared memory. What is read is not copied. A numpy array is read-only. torch has no read-only
tensors, and a write to memory that is mapped read-only would end the process; so tensors lie in
memory that is private once it is written: a write is seen by this process alone (and by other
arrays of the same view), and costs it memory for each page that it touches.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zenos.bus import sharing
from zenos.bus.handle import ITEM_BYTES, Layout
from zenos.bus.memory import Buffer
from zenos.bus.sharing import Memory
from zenos.core.errors import InvalidError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
_NUMPY: Final = frozenset(ITEM_BYTES) - {"bfloat16"}


class NumpyCodec:
    """numpy.ndarray."""

    def takes(self, value: object) -> bool:
        return isinstance(value, np.ndarray)

    def describe(self, value: Array) -> tuple[str, tuple[int, ...]]:
        if value.dtype.name not in _NUMPY or isinstance(value, np.ma.MaskedArray):
            raise InvalidError(
                f"cannot share a {type(value).__name__} of {value.dtype}: "
                f"use an array of one of {', '.join(sorted(_NUMPY))}"
            )
        return value.dtype.name, value.shape

    def write(self, value: Array, memory: memoryview, layout: Layout) -> None:
        np.copyto(_numpy(memory, layout), value)

    def make(self, memory: memoryview, layout: Layout) -> Array:
        return _numpy(memory, layout)

    def read(self, view: Memory, index: int) -> Array:
        return _numpy(view.memory(index), view.handles[index].layout)


class TorchCodec:
    """torch.Tensor, on any device; it is read on the CPU."""

    def takes(self, value: object) -> bool:
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(value, torch.Tensor)

    def describe(self, value: torch.Tensor) -> tuple[str, tuple[int, ...]]:
        import torch

        name = str(value.dtype).removeprefix("torch.")
        if name not in ITEM_BYTES or value.layout != torch.strided or value.is_quantized:
            raise InvalidError(
                f"cannot share a {value.layout} tensor of {name}: "
                f"use a dense one of one of {', '.join(sorted(ITEM_BYTES))}"
            )
        if value.is_meta:
            raise InvalidError(
                "cannot share a tensor on the device 'meta': it has no values; send its shape"
            )
        return name, tuple(value.shape)

    def write(self, value: torch.Tensor, memory: memoryview, layout: Layout) -> None:
        _torch(memory, layout).copy_(value.detach())

    def make(self, memory: memoryview, layout: Layout) -> torch.Tensor:
        return _torch(memory, layout)

    def read(self, view: Memory, index: int) -> torch.Tensor:
        return _torch(view.private_memory(index), view.handles[index].layout)


def numpy_in(buffer: Buffer, layout: Layout) -> Array:
    """A writable array in a buffer, to fill in place. Nothing may be written to it after `lend`;
    while it lives the memory is not used again. InvalidError where it doesn't lie in the buffer."""
    return _numpy(_within(buffer, layout), layout)


def torch_in(buffer: Buffer, layout: Layout) -> torch.Tensor:
    """The same as a tensor on the CPU."""
    return _torch(_within(buffer, layout), layout)


def _within(buffer: Buffer, layout: Layout) -> memoryview:
    if layout.end > buffer.bytes:
        raise InvalidError(
            f"cannot put {layout.bytes} bytes at {layout.offset} into a buffer of {buffer.bytes}"
        )
    return buffer.memory[layout.offset : layout.end]


def _numpy(memory: memoryview, layout: Layout) -> Array:
    if layout.dtype not in _NUMPY:
        raise InvalidError(
            f"cannot make a numpy array of {layout.dtype}, which it has no type for: "
            "read it as a torch tensor, or as bytes"
        )
    if not memory:
        return np.empty(layout.shape, layout.dtype)
    # Not np.ndarray(buffer=…), whose arrays can be made writable again.
    return np.frombuffer(memory, layout.dtype).reshape(layout.shape)


def _torch(memory: memoryview, layout: Layout) -> torch.Tensor:
    import torch

    dtype = getattr(torch, layout.dtype)
    if not memory:
        return torch.empty(layout.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype).view(layout.shape)


sharing.register("numpy", NumpyCodec())
sharing.register("torch", TorchCodec())
