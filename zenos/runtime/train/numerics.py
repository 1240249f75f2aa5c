"""What the bits of a result depend on besides the specification: device, threads, build, compiler.

The fingerprint stands in each checkpoint; a resume under another one would end in other weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from zenos.core.errors import NumericsError
from zenos.runtime import precision

log = logging.getLogger(__name__)

# Instruction sets that oneDNN, MKL and ATen choose their kernels by.
_INSTRUCTION_SETS: Final = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)
_VARIABLES: Final = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


def choose_device(gpu_milli: int) -> torch.device:
    """The GPU if the task holds one and there is a real one, else the CPU."""
    if gpu_milli > 0 and torch.cuda.is_available():
        # Read by cuBLAS when it is first used; needed for sums in a fixed order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        return torch.device("cuda")
    return torch.device("cpu")


def fingerprint(
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    shards: int = 1,
    backend: str = "auto",
) -> dict[str, str]:
    """Names and values of all that the bits of a training run depend on.

    shards: into how many parts each batch is cut, whose gradients are added up in their order,
    however many processes share them; backend: by what.
    """
    build = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:12]
    found = {
        "torch": f"{torch.__version__} {build}",
        "transformers": transformers.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": "inductor" if compiled else "eager",
        "shards": str(shards),
    }
    if shards > 1:
        found["sums"] = resolve_backend(backend, device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        major, minor = torch.cuda.get_device_capability(device)
        found["device"] = f"{name} sm_{major}{minor} CUDA {torch.version.cuda}"
        return found
    found["device"] = "cpu"
    found["threads"] = str(torch.get_num_threads())
    found["instruction set"] = _instruction_set()
    settings = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if settings:
        found["variables"] = " ".join(f"{k}={v}" for k, v in sorted(settings.items()))
    return found


def resolve_backend(backend: str, device: torch.device) -> str:
    """What `auto` means there: NCCL between GPUs, shared memory between CPUs."""
    if backend != "auto":
        return backend
    return "nccl" if device.type == "cuda" else "shared"


def check_same(saved: dict[str, str], now: dict[str, str], *, inexact: bool) -> str:
    """Raises NumericsError when a resume would change the numerics, unless `inexact`.

    Returns a note about what changes then; empty when nothing does.
    """
    names = sorted({*saved, *now})
    changed = [
        f"{name} was {saved.get(name, 'unset')!r} and is {now.get(name, 'unset')!r}"
        for name in names
        if saved.get(name) != now.get(name)
    ]
    if not changed:
        return ""
    what = "; ".join(changed)
    if inexact:
        return f"resumed inexactly: {what}"
    raise NumericsError(
        f"cannot resume bit for bit: {what}; run it where these are as they were, "
        "or let it go on as it is with 'zenos resume TASK --inexact'"
    )


def try_compile(function: Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """The compiled function, or the function itself with a note where no compiler works."""
    try:
        probe = torch.compile(lambda x: x * 2 + 1)
        probe(torch.zeros(8))
    except Exception as error:  # noqa: BLE001 - whatever a missing compiler raises
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        log.warning("torch.compile does not work here: %s", error)
        return function, f"training without compilation: no working C++ compiler ({reason})"
    return torch.compile(function), ""


def _instruction_set() -> str:
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "cpu family", "model") and model.count(" ") < 3:
                model += f"{value.strip()} "
    except OSError:
        pass
    flags = precision.flags()
    known = [name for name in _INSTRUCTION_SETS if name in flags]
    capability = torch.backends.cpu.get_cpu_capability()
    return " ".join([capability, *known, model.strip().replace(" ", "/")]).strip()
