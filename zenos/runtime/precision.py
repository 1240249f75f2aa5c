"""What to compute in: bfloat16 where the processor has units for it, else float32."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

import torch

from zenos.core.specs import DType

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Flags in /proc/cpuinfo of processors that multiply bfloat16 (x86, and ARM's last one).
_UNITS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPUINFO: Final = Path("/proc/cpuinfo")


def resolve(wanted: DType, device: torch.device) -> tuple[torch.dtype, str]:
    """The type to compute in, and a note where what was asked for is slow.

    A CPU without units for bfloat16 emulates it, up to a hundred times slower than float32 (AVX2,
    products of 512 x 256 x 1024). Decided by what the processor says it has, not by a measurement:
    the same machine computes the same way each time.
    """
    if wanted == "auto":
        return (torch.bfloat16 if has_bfloat16(device) else torch.float32), ""
    note = ""
    if wanted == "bfloat16" and not has_bfloat16(device):
        note = f"this {device.type} emulates bfloat16, which is slow: dtype auto uses float32"
    return DTYPES[wanted], note


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device itself multiplies bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(_UNITS & flags()) and library_has_bfloat16()


def library_has_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 products for this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def flags() -> set[str]:
    """What the first processor says it can (x86: flags, ARM: Features); empty where unknown."""
    name = "Features" if platform.machine().startswith(("arm", "aarch")) else "flags"
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return set(value.split())
    return set()
