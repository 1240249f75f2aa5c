"""What a training of several workers can ask for."""

from __future__ import annotations

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.resources import Resources, show_units
from zenos.core.specs import TrainSpec


def check_gang(work: TrainSpec, wants: Resources) -> None:
    """Raises InvalidError unless each worker has a core, and a GPU of its own if any."""
    count = work.workers
    if wants.cpu < 1000 * count:
        raise InvalidError(
            f"cannot train with {count} workers on {show_units(wants.cpu, 'core')}: each needs "
            "one; ask for more cores or fewer workers"
        )
    if 0 < wants.memory < limits.MEMORY_BYTES_MIN * count:
        raise InvalidError(
            f"cannot train with {count} workers in so little memory: at least 4 MiB for each; or 0 "
            "for no limit"
        )
    if wants.gpu and wants.gpu != 1000 * count:
        raise InvalidError(
            f"cannot train with {count} workers on {show_units(wants.gpu, 'GPU')}: each needs "
            "one of its own, or none"
        )
    if work.is_elastic and wants.gpu:
        raise InvalidError(
            "cannot change the number of workers of a training on GPUs: leave workers_min out"
        )
    if work.backend == "nccl" and not wants.gpu:
        raise InvalidError("cannot use nccl without GPUs: leave backend at auto")
    if work.backend == "shared" and wants.gpu:
        raise InvalidError("cannot use shared memory between GPUs: leave backend at auto")
