"""Matrix products with weights that stay the same: laid out once for the processor's units.

A plain `linear` on a CPU lays a weight out anew in each call, which for a handful of rows costs
more than the product. oneDNN's layout is made once here and used ever after: 1.5 to 3 times faster.
"""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

_PROBE_ROWS: Final = 8
_PROBE_SIZE: Final = 512
_PROBE_ROUNDS: Final = 5


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes a weight of this device and type."""
    mkldnn: Any = torch.backends.mkldnn
    if weight.device.type != "cpu" or not mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class Linear:
    """y = x Wᵀ + b for x of shape (rows, in); weight: (out, in).

    The weight given isn't kept where it could be packed.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._packed = can_pack(weight)
        weight = weight.detach()
        self._weight: Any = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self._packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The product, shape (rows, out)."""
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def onto(self, x: Tensor, base: Tensor) -> Tensor:
        """base + the product, in one go where that is possible."""
        if not self._packed:
            return base + functional.linear(x, self._weight, self._bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, base, self._weight, self._bias, "add"
        )
        return y


@torch.inference_mode()
def faster_dtype(wanted: torch.dtype, device: torch.device) -> torch.dtype:
    """The type to compute in: `wanted`, or float32 where a bfloat16 product is slower than that.

    Processors without bfloat16 units emulate it. A float32 product of the same bfloat16 weights is
    the more exact one, so only memory is lost. Decided by a measurement of some milliseconds.
    """
    if wanted != torch.bfloat16 or device.type != "cpu":
        return wanted
    return wanted if _seconds(torch.bfloat16) <= _seconds(torch.float32) else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    product = Linear(torch.zeros(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype))
    x = torch.zeros(_PROBE_ROWS, _PROBE_SIZE, dtype=dtype)
    product(x)
    best = float("inf")
    for _ in range(_PROBE_ROUNDS):
        begun = time.perf_counter()
        product(x)
        best = min(best, time.perf_counter() - begun)
    return best
