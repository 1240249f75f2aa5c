"""The first lines of a worker for torch work: threads, seeds, bus, signals, then the work."""

from __future__ import annotations

import logging
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, StorageError, WorkerError, ZenosError
from zenos.core.home import Home
from zenos.core.resources import parse_size
from zenos.core.specs import CallSpec, CreateSpec, ProgramSpec, ServeSpec, TrainSpec
from zenos.core.task import Task
from zenos.runtime import space
from zenos.runtime.context import EXIT_SUSPENDED, WorkerContext

if TYPE_CHECKING:
    from zenos.runtime.train.gang import Follower, Leader

__all__ = ["EXIT_SUSPENDED", "main", "thread_count"]

log = logging.getLogger(__name__)


class _StartFile(msgspec.Struct):
    """What this module needs of the spec file that the executor wrote beside the run directory."""

    token: str = ""
    cache_bytes_max: int = parse_size(limits.CACHE_SIZE)


def main(task: Task, home: Home, run_dir: Path) -> int:
    """Do a task's work in this process; returns the exit code.

    0: done, `result.json` says what came of it. 75: told to stop, state saved. 1: failed, with the
    reason in `error.json`.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    from zenos.bus.channel import Channel
    from zenos.models.registry import Registry

    gang = form_gang(task)
    use_threads(thread_count(task))
    use_devices(task)
    reseed()
    if gang is not None:
        from zenos.runtime.train import gang as gangs
        from zenos.runtime.train.ranks import main as follow

        if isinstance(gang, gangs.Follower):
            return follow(task, home, run_dir, gang)
    start = _start_file(run_dir)
    channel = Channel(lambda: home.bus, task.id, task.generation, start.token)
    registry = Registry(home.models, thread_count(task))
    context = WorkerContext(task, home, run_dir, channel, registry)
    context.cache_bytes_max = start.cache_bytes_max
    context.gang = gang
    try:
        return run(context, entry(task))
    finally:
        if gang is not None:
            gang.close()
        channel.close()


def form_gang(task: Task) -> Leader | Follower | None:
    """The other processes of a training that has several; this returns in each of them.

    The first thing of all: a process that has threads, or has run torch, must not be forked.
    """
    work = task.spec.work
    if not isinstance(work, TrainSpec) or work.workers == 1:
        return None
    from zenos.runtime.train.gang import form

    return form(task.workers, work.workers)


def run(context: WorkerContext, work: Callable[[WorkerContext], int | None]) -> int:
    """Run `work` under this context's signal handlers; every failure ends in `error.json`."""
    context.install_signal_handlers()
    try:
        return work(context) or 0
    except ZenosError as error:
        log.error("%s", error)  # noqa: TRY400 - a clear message, no traceback
        failure = error
    except MemoryError as error:
        log.exception("out of memory")
        failure = WorkerError("cannot allocate more memory: ask for more with --memory")
        failure.__cause__ = error
    except Exception as error:
        log.exception("failed")
        failure = _failure(context, error)
    try:
        context.write_error(failure)
    except OSError as error:
        log.error("cannot write error.json: %s", error)  # noqa: TRY400
    return 1


def _failure(context: WorkerContext, error: Exception) -> ZenosError:
    """What is said of an error that nobody has put into words."""
    if space.is_lacking(error):
        where = getattr(error, "filename", None) or context.home.root
        return StorageError(
            f"cannot finish: the disk on which {where} lies is full; free space there, and do it "
            "again"
        )
    if isinstance(error, OSError):
        return StorageError(f"cannot finish: {error}")
    return _gpu_failure(error) or WorkerError(
        f"cannot finish: {type(error).__name__}: {_shorten(str(error))}; "
        f"'zenos logs {context.task.id}' has the details"
    )


def _gpu_failure(error: Exception) -> WorkerError | None:
    """What to do about a GPU without room; None for other errors."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return None
    return WorkerError(
        "cannot allocate more GPU memory: ask for a larger share with --gpu, or for more with "
        f"--gpu-memory ({_shorten(str(error), 200)})"
    )


def entry(task: Task) -> Callable[[WorkerContext], int | None]:
    """The function that does this kind of work; imported only now, since each pulls in much."""
    match task.spec.work:
        case TrainSpec():
            from zenos.runtime.train.main import main as train

            return train
        case CreateSpec():
            from zenos.runtime.create import main as create

            return create
        case ServeSpec():
            from zenos.runtime.engine.serve import main as serve

            return serve
        case ProgramSpec() | CallSpec():
            raise InvalidError("cannot run a program in a torch worker")


def thread_count(task: Task) -> int:
    """Threads of each of its processes for this task's allocation: cores rounded up, at least 1."""
    held = task.allocation.resources if task.allocation is not None else task.granted
    work = task.spec.work
    processes = task.workers if isinstance(work, TrainSpec) else 1
    if processes > 1:
        return max(1, held.cpu // (1000 * processes))
    return max(1, math.ceil(held.cpu / 1000))


def use_threads(count: int) -> None:
    """Set the threads of torch, of BLAS under it, and of the tokenizers library.

    The environment variables have no effect on torch by now (it was imported before the fork), but
    libraries loaded later and child processes read them.
    """
    import torch

    torch.set_num_threads(count)
    os.environ["ZENOS_CPU"] = str(count)  # for pools of zenos.threads
    for name in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        os.environ[f"{name}_NUM_THREADS"] = str(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if count > 1 else "false"


def use_devices(task: Task) -> None:
    """Let this process see the GPUs of its allocation alone; CUDA is not started yet.

    The daemon has said which they are, as the system numbers them; a process without any must not
    see those of whoever started it.
    """
    shares = task.allocation.shares if task.allocation is not None else {}
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if not shares or "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, sorted(shares)))


def reseed() -> None:
    """Give this process generators of its own: a fork has copies of its parent's.

    Work that must be repeatable seeds them again from its specification.
    """
    import numpy as np
    import torch

    seed = int.from_bytes(os.urandom(8), "little") >> 1
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the legacy generator is what libraries use
    torch.manual_seed(seed)


def _start_file(run_dir: Path) -> _StartFile:
    """The worker's token for the bus, and so on, from `runs/TASK/GENERATION.json`."""
    path = run_dir.with_name(f"{run_dir.name}.json")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_StartFile)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def _shorten(text: str, chars_max: int = 500) -> str:
    first = text.strip()
    return first if len(first) <= chars_max else first[:chars_max] + "…"
