"""What is measured of others' memory, and how it is steadied."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.test_gpus import CARDS, GIB, Driver, driver
from tests.workers.test_nodes import tree
from zenos.core import cgroups, limits
from zenos.core.config import Config
from zenos.workers import measuring
from zenos.workers.measuring import LOOKS_LESS, LOOKS_MORE, Level, Measuring, Sample, Steady

__all__ = ["driver"]
MIB = limits.MIB
STEP = 64 * MIB


@given(st.lists(st.integers(0, 2**40)), st.integers(0, 2**40))
def test_what_lasts_is_followed_and_what_comes_and_goes_is_not(
    before: list[int], lasting: int
) -> None:
    steady = Steady(STEP)
    for sample in before:
        steady.take(sample)
    said = [steady.take(lasting) for _ in range(LOOKS_MORE)]
    assert abs(said[-1] - lasting) <= STEP
    # One look that is far off changes nothing.
    assert steady.take(2**41) == said[-1]
    assert steady.take(lasting) == said[-1]
    assert steady.take(0) == said[-1]


@given(st.lists(st.integers(-STEP, STEP)))
def test_noise_changes_nothing(noise: list[int]) -> None:
    steady = Steady(STEP)
    assert {steady.take(2**33), *(steady.take(2**33 + each) for each in noise)} == {2**33}


def test_less_is_believed_sooner_than_more() -> None:
    steady = Steady(STEP)
    steady.take(0)
    rise = [steady.take(10 * STEP) for _ in range(LOOKS_LESS)]
    assert rise[-1] == 10 * STEP
    fall = [steady.take(0) for _ in range(LOOKS_MORE)]
    assert fall[LOOKS_LESS - 1] == 10 * STEP
    assert fall[-1] == 0


def test_the_group_that_leaves_the_least_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "own_groups", lambda: {"": "/a/b", "memory": "/m"})
    stat = "anon 5\ninactive_file 100\nactive_file 20\ntotal_inactive_file 7\ntotal_active_file 2\n"
    root = tree(
        tmp_path,
        {
            "a/b/memory.max": "max",
            "a/memory.max": "5000",
            "a/memory.current": "3000",
            "a/memory.stat": stat,
            "memory/m/memory.limit_in_bytes": "4000",
            "memory/m/memory.usage_in_bytes": "1000",
            "memory/m/memory.stat": stat,
        },
    )
    machine, *groups = measuring.memory(root)
    assert groups == [Level(5000, 2120), Level(4000, 3009)]
    assert 0 < machine.available < machine.total
    # 500 of what is used are our own workers'.
    found = measuring.least(measuring.level_left(level, 500) for level in groups)
    assert found == Sample(4000, 4000 - (2120 + 500))


def test_memory_of_a_worker_is_its_own_and_that_of_a_stranger_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "b = bytearray(200_000_000); print('there', flush=True); input()"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            size = measuring.anonymous_bytes(other.pid)
            assert 200_000_000 <= size < 260_000_000
            # The same process, taken for a stranger's and for a worker's.
            total = 8 * limits.GIB
            monkeypatch.setattr(measuring, "memory", lambda root: [Level(total, total - size)])
            monkeypatch.setattr(measuring, "gpu_processes", list)
            config = Config(memory_margin="1GiB")
            said = Measuring(config, list, tmp_path).look()
            assert (said.memory, said.memory_left) == (size, total - size - limits.GIB)
            monkeypatch.setattr(measuring, "of_workers", lambda directories: {other.pid})
            said = Measuring(config, list, tmp_path).look()
            assert said.memory < 10 * MIB
        finally:
            other.kill()
    assert measuring.anonymous_bytes(other.pid) == 0


def processes(**held: int) -> Any:
    return [SimpleNamespace(pid=int(pid[1:]), usedGpuMemory=size) for pid, size in held.items()]


def test_of_each_gpu_what_others_use_is_told(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvml = driver("2,0")
    used = {"GPU-aa11": 2 * GIB, "GPU-cc33": 30 * GIB}
    by_card = {"GPU-aa11": processes(p1=2 * GIB), "GPU-cc33": processes(p1=9 * GIB, p10=20 * GIB)}
    nvml.nvmlDeviceGetMemoryInfo = lambda card: SimpleNamespace(total=card[1], used=used[card[0]])
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda card: by_card[card[0]]
    nvml.nvmlDeviceGetGraphicsRunningProcesses = lambda card: []
    monkeypatch.setattr(measuring, "of_workers", lambda directories: {10})
    monkeypatch.setattr(measuring.Path, "exists", lambda path: True)
    said = Measuring(Config(), list, tmp_path).look()
    assert said.gpu_memory == [10 * GIB, 2 * GIB]  # the driver's own are nobody's
    assert said.gpu_memory_left == [70 * GIB, 6 * GIB]
    assert nvml.open == 0
    # Pids of another namespace: whose it is can't be told, and nothing is withheld.
    monkeypatch.setattr(measuring.Path, "exists", lambda path: str(path) == "/proc/1")
    said = Measuring(Config(), list, tmp_path).look()
    assert said.gpu_memory == [0, 2 * GIB]


@pytest.mark.parametrize("broken", ["", "init"])
def test_a_driver_that_says_nothing_withholds_nothing(
    driver: Driver, tmp_path: Path, broken: str
) -> None:
    nvml = driver(cards=CARDS if broken else [])
    measuring.nodes.device_numbers()
    nvml.broken = broken
    said = Measuring(Config(), list, tmp_path).look()
    assert (said.gpu_memory, said.gpu_memory_left) == ([], [])
    assert nvml.open == 0
