"""How many CPUs this program may use, and so how many lanes a pool has by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

from zenos.core import cgroups, limits


def cpus(environment: Mapping[str, str] = os.environ) -> float:
    """CPUs of this task's allocation, in cores.

    1. `ZENOS_CPU`, in cores.
    2. In a task's program, `OMP_NUM_THREADS`: zenos sets it to the cores of the allocation.
    3. What affinity and control groups leave this process.
    """
    told = _positive(environment.get("ZENOS_CPU"))  # 1
    if told is None and "ZENOS_TASK" in environment:  # 2
        told = _positive(environment.get("OMP_NUM_THREADS"))
    return told if told is not None else cgroups.cpus_usable()  # 3


def lanes_for(cores: float) -> int:
    """Lanes for so many cores: one each, one at least."""
    return max(1, min(round(cores), limits.LANES_MAX))


def lane_environment(cores: float, lanes: int) -> dict[str, str]:
    """What tells a lane's libraries, and pools inside it, their share of the cores."""
    share = max(1, int(cores) // lanes)
    threads = {
        f"{name}_NUM_THREADS": str(share)
        for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON", "VECLIB")
    }
    parallel = "true" if share > 1 else "false"
    return {**threads, "ZENOS_CPU": str(share), "TOKENIZERS_PARALLELISM": parallel}


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < limits.CPU_MILLI_MAX / 1000 else None
