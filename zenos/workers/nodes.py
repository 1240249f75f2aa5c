"""What this machine has."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from zenos.core import limits, shim
from zenos.core.config import Config
from zenos.core.groups import cpus_usable, own_directories
from zenos.core.resources import Resources, parse_share, parse_size
from zenos.core.task import Node
from zenos.workers.limits import Cgroups

log = logging.getLogger(__name__)
MEMORY_SHARE = 0.9  # of the machine's memory is given out, unless the settings say how much

start_time = shim.start_time


class Devices(msgspec.Struct, frozen=True):
    """GPUs: their number, and the memory of the smallest in bytes."""

    count: int
    memory_each: int


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine has, or that our own cgroups allow where that is less."""
    total = int(psutil.virtual_memory().total)
    for directory in own_directories(root, "memory"):
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
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        sizes = [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
        return Devices(count, min(sizes, default=0))
    except pynvml.NVMLError as error:
        log.warning("the GPUs cannot be read: %s", error)
        return Devices(0, 0)
    finally:
        pynvml.nvmlShutdown()


def detect(config: Config, cgroups: Cgroups) -> Node:
    """This node: what the settings say, else what is there. Declared GPUs count if none is real."""
    devices, virtual = real_gpus(), False
    if devices.count == 0 and config.gpus:
        devices, virtual = Devices(config.gpus, parse_size(config.gpu_memory, "gpu_memory")), True
    elif config.gpus is not None:
        devices = Devices(min(config.gpus, devices.count), devices.memory_each)
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
        enforcement={"memory": cgroups.method, "cpu": cgroups.cpu_method},
    )
