"""What this machine has."""

from __future__ import annotations

import functools
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from zenos.core import limits, shim
from zenos.core.cgroups import all_directories, cpus_usable
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.resources import Resources, parse_share, parse_size
from zenos.workers.limits import Cgroups

log = logging.getLogger(__name__)
MEMORY_SHARE = 0.9  # of the machine's memory is given out, unless the settings say how much

start_time = shim.start_time


class Devices(msgspec.Struct, frozen=True):
    """GPUs: their number, and the memory of the smallest in bytes.

    numbers: as the system counts them (NVML, nvidia-smi, CUDA in the order of the PCI bus), where
    they are real.
    """

    count: int
    memory_each: int
    numbers: tuple[int, ...] = ()


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine has, or that our own cgroups allow where that is less."""
    total = int(psutil.virtual_memory().total)
    for directory in all_directories(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                total = min(total, int((directory / name).read_text()))
    return total


def real_gpus() -> Devices:
    """GPUs by NVML; none where there is no driver, or no nvidia-ml-py (the extra `gpu`)."""
    try:
        import pynvml
    except ImportError:
        return Devices(0, 0)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Devices(0, 0)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        numbers = visible(
            os.environ.get("CUDA_VISIBLE_DEVICES"), [_uuid(pynvml, handle) for handle in handles]
        )
        sizes = [int(pynvml.nvmlDeviceGetMemoryInfo(handles[n]).total) for n in numbers]
        return Devices(len(numbers), min(sizes, default=0), tuple(numbers))
    except pynvml.NVMLError as error:
        log.warning("the GPUs cannot be read: %s", error)
        return Devices(0, 0)
    finally:
        pynvml.nvmlShutdown()


def visible(said: str | None, uuids: list[str]) -> list[int]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` leaves, by number, in its order; all where it is unset.

    Numbers count in the order of the PCI bus. As for CUDA, what comes after an entry that names no
    GPU, or one again, doesn't count (CUDA C++ Programming Guide, CUDA Environment Variables).
    """
    if said is None:
        return list(range(len(uuids)))
    found: list[int] = []
    if said.strip() in ("", "-1", "NoDevFiles"):  # how one says: none
        return found
    for entry in map(str.strip, said.split(",")):
        if entry.isdecimal():
            named = [int(entry)] if int(entry) < len(uuids) else []
        else:
            named = [n for n, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(named) != 1 or named[0] in found:
            log.warning(
                "CUDA_VISIBLE_DEVICES=%r: %r names no one GPU, nor what follows", said, entry
            )
            break
        found += named
    return found


def _uuid(pynvml: Any, handle: Any) -> str:
    """Such as GPU-5f…; older versions of the library give bytes."""
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


@functools.cache
def device_numbers() -> tuple[int, ...]:
    """The numbers of this daemon's real GPUs, looked up once; empty without any."""
    return real_gpus().numbers


def detect(config: Config, cgroups: Cgroups) -> Node:
    """This node: what the settings say, else what is there. Declared GPUs count if none is real."""
    devices, virtual = real_gpus(), False
    if devices.count == 0 and config.gpus:
        devices, virtual = Devices(config.gpus, parse_size(config.gpu_memory, "gpu_memory")), True
    elif config.gpus is not None:
        count = min(config.gpus, devices.count)
        devices = Devices(count, devices.memory_each, devices.numbers[:count])
    memory = parse_size(config.memory) if config.memory else int(MEMORY_SHARE * memory_limit())
    cpu = config.cpus if config.cpus is not None else cpus_usable()
    return Node(
        name=config.node,
        capacity=Resources(
            cpu=parse_share(cpu, "cpus", limits.CPU_MILLI_MAX),
            gpu=devices.count * 1000,
            memory=memory,
            gpu_memory=devices.count * devices.memory_each,
        ),
        gpus=devices.count,
        virtual_gpus=virtual,
        gpu_memory_each=devices.memory_each,
        labels=sorted(f"{key}={value}" for key, value in config.labels.items()),
        enforcement={"memory": cgroups.method, "cpu": cgroups.cpu_method},
    )
