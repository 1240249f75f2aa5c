"""What processes outside zenos use of this machine, so that no more is given out than is there.

    foreign = total - available - used by our workers        left = total - foreign - margin

Measured here every few seconds, steadied, and posted as an event. The kernel gives out no more than
`left` in all. `total` is the daemon's own control group's limit where that is lower. The daemon,
its zygote and everything that has left a worker's processes count as foreign: no task may have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from zenos.core import cgroups, limits, processes
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.node import Measured
from zenos.core.resources import parse_size
from zenos.workers import nodes, runs

log = logging.getLogger(__name__)
# A change counts once it has lasted for so many looks: sooner where it leaves less.
LOOKS_LESS: Final = 2
LOOKS_MORE: Final = 4
STEP_SHARE: Final = 1 / 512  # of the total: less than that is noise


class Sample(NamedTuple):
    """Bytes there are in all, and bytes that processes outside zenos use of them."""

    total: int
    foreign: int


class Steady:
    """A measured number without its noise: it follows what has lasted for some looks.

    It rises to the least of the newest `LOOKS_LESS` samples and falls to the greatest of the newest
    `LOOKS_MORE`, in both cases only by more than `step`. So what comes and goes between two looks
    changes nothing, and what swings around a value by less than a step neither.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._newest: deque[int] = deque(maxlen=LOOKS_MORE)
        self.value: int | None = None

    def take(self, sample: int) -> int:
        """The value after one more sample."""
        self._newest.append(sample)
        newest = list(self._newest)
        if self.value is None:
            self.value = sample
        elif len(newest) >= LOOKS_LESS and min(newest[-LOOKS_LESS:]) > self.value + self._step:
            self.value = min(newest[-LOOKS_LESS:])
        elif len(newest) == LOOKS_MORE and max(newest) < self.value - self._step:
            self.value = max(newest)
        return self.value


class Measuring:
    """Looks at the memory of this machine and of its GPUs. Blocks; not for several threads at once.

    runs_of: the run directories of the workers that run.
    """

    def __init__(
        self,
        config: Config,
        runs_of: Callable[[], Sequence[Path]],
        root: Path = cgroups.ROOT,
    ) -> None:
        self._margin = parse_size(config.memory_margin, "memory_margin")
        self._runs_of = runs_of
        self._root = root
        self._steady: dict[str, Steady] = {}

    def look(self) -> Measured:
        """What is to be told now."""
        # First what all use: what a worker takes in between is not taken for somebody else's.
        machine = memory(self._root)
        gpus = gpu_processes()
        ours = of_workers(self._runs_of())
        used = sum(anonymous_bytes(pid) for pid in ours)
        found = least(level_left(level, used) for level in machine)
        foreign = self._take("memory", found)
        each = [
            self._take(f"gpu {device}", Sample(total, of_others(all_used, by_pid, ours)))
            for device, (total, all_used, by_pid) in enumerate(gpus)
        ]
        return Measured(
            memory=foreign,
            memory_left=found.total - foreign - self._margin,
            gpu_memory=each,
            gpu_memory_left=[gpu.total - used for gpu, used in zip(gpus, each, strict=True)],
        )

    def _take(self, name: str, sample: Sample) -> int:
        step = max(limits.FOREIGN_STEP_BYTES, int(STEP_SHARE * sample.total))
        return self._steady.setdefault(name, Steady(step)).take(sample.foreign)


class Level(NamedTuple):
    """The machine, or a control group that we are in and that has a limit: bytes."""

    total: int
    available: int


def memory(root: Path) -> list[Level]:
    """The machine and every limited group of ours; the machine first.

    Available is what can be had without swapping: what is free, and files that can be read again.
    """
    machine = psutil.virtual_memory()
    found = [Level(int(machine.total), int(machine.available))]
    for directory in cgroups.all_directories(root, "memory"):
        for most, now, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            with suppress(OSError, ValueError):  # ValueError for "max"
                total = int((directory / most).read_text())
                if total < machine.total:
                    used = int((directory / now).read_text())
                    found.append(Level(total, total - used + _files(directory, prefix)))
    return found


def _files(group: Path, prefix: str) -> int:
    """Bytes of a group that are files in the page cache."""
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    names = ("inactive_file", "active_file")
    return sum(int(rows.get(prefix + name, 0)) for name in names)


def level_left(level: Level, ours: int) -> Sample:
    """What others use at that level."""
    return Sample(level.total, max(0, level.total - level.available - ours))


def least(samples: Iterable[Sample]) -> Sample:
    """Of several levels the one that leaves the least, as a share of the smallest total."""
    found = list(samples)
    total = min(sample.total for sample in found)
    left = min(sample.total - sample.foreign for sample in found)
    return Sample(total, max(0, total - left))


def of_workers(directories: Sequence[Path]) -> set[int]:
    """The processes of these runs: their shims, and all below those."""
    shims = {pid for at in directories if (pid := runs.process(at, "shim")) is not None}
    return shims | processes.below(shims) if shims else shims


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file, its part of what it shares with others.

    What a worker shares with the zygote that forked it counts for both in parts. 0 for one that has
    ended.
    """
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as file:
            rows = dict(line.split(":", 1) for line in file if ":" in line)
        if "Pss_Anon" in rows:
            parts = (rows["Pss_Anon"], rows.get("Pss_Shmem", "0"))
            return sum(int(part.split()[0]) for part in parts) * limits.KIB
    except (OSError, ValueError, IndexError):
        pass
    return processes.resident_bytes([pid])


class GpuUse(NamedTuple):
    """Of one device, in bytes. by_pid: None where it can't be told whose it is."""

    total: int
    used: int
    by_pid: dict[int, int] | None


def gpu_processes() -> list[GpuUse]:
    """Our real GPUs, in our order; none where there are none, or the driver says nothing."""
    numbers = nodes.device_numbers()
    if not numbers:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number)) for number in numbers]
    except pynvml.NVMLError as error:
        log.warning("the memory of the GPUs cannot be read: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: Any, handle: Any) -> GpuUse:
    """NVML counts what the driver keeps for itself as used, except in the second version."""
    try:
        said = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (AttributeError, TypeError, pynvml.NVMLError):
        said = pynvml.nvmlDeviceGetMemoryInfo(handle)
    rows = [
        *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
        *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
    ]
    by_pid: dict[int, int] | None = {row.pid: int(row.usedGpuMemory or 0) for row in rows}
    # In a container NVML says pids of outside; of a process that isn't here nobody knows whose.
    if any(not Path(f"/proc/{row.pid}").exists() for row in rows):
        by_pid = None
    return GpuUse(int(said.total), int(said.used), by_pid)


def of_others(used: int, by_pid: dict[int, int] | None, ours: set[int]) -> int:
    """Bytes of a GPU that others use; 0 where that can't be told."""
    if by_pid is None:
        return 0
    return max(0, used - sum(held for pid, held in by_pid.items() if pid in ours))


def start(
    config: Config, runs_of: Callable[[], Sequence[Path]], post: Callable[[ev.Event], None]
) -> asyncio.Task[None]:
    """Look once, so that nothing starts before it is known, and go on until that is cancelled."""
    measuring = Measuring(config, runs_of)
    found = measuring.look()
    post(ev.Measured(node=config.node, measured=found))
    return asyncio.create_task(_keep_measuring(measuring, found, post, config.node))


async def _keep_measuring(
    measuring: Measuring,
    told: Measured,
    post: Callable[[ev.Event], None],
    node: str,
    look_s: float = limits.MEMORY_LOOK_S,
) -> None:
    """Look every `look_s` seconds, and post what has changed since `told`. Until cancelled."""
    while True:
        await asyncio.sleep(look_s)
        try:
            found = await asyncio.to_thread(measuring.look)
        except (OSError, ValueError) as error:
            log.warning("the memory cannot be measured: %s", error)
            continue
        # What is left follows from what others use, and that is steadied.
        if (found.memory, found.gpu_memory) != (told.memory, told.gpu_memory):
            told = found
            post(ev.Measured(node=node, measured=found))
