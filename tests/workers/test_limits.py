"""What is written into a task's control groups, and that the kernel keeps to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.workers.conftest import Rig, program
from zenos.core.events import WorkerExited, WorkerLost, WorkerStarted
from zenos.core.resources import Resources
from zenos.workers import runs
from zenos.workers.limits import Cgroups

WANTS = Resources.of(cpu=0.25, memory="64MiB")


@pytest.fixture
def bases(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories that stand for the memory's and the CPU's controller."""
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    memory.mkdir()
    cpu.mkdir()
    return memory, cpu


def content(group: str | Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(group).iterdir()}


def test_version_1_gets_a_quota(bases: tuple[Path, Path]) -> None:
    _, cpu = Cgroups(*bases, 1).make("t1", 2, WANTS)
    assert content(cpu) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "25000"}


def test_version_1_limits_memory_with_swap_as_memory_alone(bases: tuple[Path, Path]) -> None:
    memory, _ = Cgroups(*bases, 1).make("t1", 2, WANTS)
    assert content(memory) == {
        "memory.limit_in_bytes": str(64 * 2**20),
        "memory.memsw.limit_in_bytes": str(64 * 2**20),
    }


def test_version_2_has_all_in_one_group_and_no_swap(tmp_path: Path) -> None:
    (group,) = Cgroups(tmp_path, tmp_path, 2).make("t1", 2, WANTS)
    assert content(group) == {
        "cpu.max": "25000 100000",
        "memory.max": str(64 * 2**20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
    }


def test_one_process_of_a_group_may_be_killed_alone_in_version_2(tmp_path: Path) -> None:
    (group,) = Cgroups(tmp_path, tmp_path, 2).make("t1", 2, WANTS, together=False)
    assert content(group)["memory.oom.group"] == "0"


def test_who_asks_for_no_cpu_gets_no_quota(bases: tuple[Path, Path]) -> None:
    (memory,) = Cgroups(*bases, 1).make("t1", 1, Resources.of(memory="64MiB"))
    assert Path(memory).parent == bases[0]


def test_a_share_too_small_for_the_kernel_is_the_least_it_takes(bases: tuple[Path, Path]) -> None:
    _, cpu = Cgroups(*bases, 1).make("t1", 1, Resources(cpu=1, memory=2**20))
    assert content(cpu)["cpu.cfs_quota_us"] == "1000"


# Says in which group it is, and how often the kernel has held that back.
WORK = """
import time
from zenos.core import cgroups
while time.process_time() < 0.1:
    pass
for group in cgroups.all_directories(cgroups.ROOT, "cpu"):
    if group.name == "t1-1":
        stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        print(cgroups.cpus_usable(), int(stat["nr_throttled"]) > 0)
"""


async def test_the_kernel_holds_a_program_back_that_works_more_than_its_quota(rig: Rig) -> None:
    if rig.executor.cgroups.cpu_method == "thread counts":
        pytest.skip("no control group for CPU that may be written here")
    wants = Resources.of(cpu=0.05, memory="200MB")
    await rig.executor.start(
        program(sys.executable, "-c", WORK, resources=wants, cwd=str(Path.cwd()))
    )
    (ended,) = await rig.until(WorkerExited)
    assert isinstance(ended, WorkerExited)
    assert ended.outcome.log_tail == "0.05 True\n"


# Says what the kernel has for memory with swap, or for swap, where it counts that.
SWAP = """
from zenos.core import cgroups
for group in cgroups.all_directories(cgroups.ROOT, "memory"):
    for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        if group.name == "t1-1" and (group / name).exists():
            print(name, (group / name).read_text().strip())
"""


async def test_the_kernel_has_taken_the_limit_for_swap(rig: Rig) -> None:
    if rig.executor.cgroups.method == "watchdog":
        pytest.skip("no control group for memory that may be written here")
    wants = Resources.of(cpu=1, memory="192MiB")
    await rig.executor.start(
        program(sys.executable, "-c", SWAP, resources=wants, cwd=str(Path.cwd()))
    )
    (ended,) = await rig.until(WorkerExited)
    assert isinstance(ended, WorkerExited)
    v1, v2 = f"memory.memsw.limit_in_bytes {192 * 2**20}\n", "memory.swap.max 0\n"
    assert ended.outcome.log_tail in {v1, v2, ""}  # "": a kernel that doesn't count swap


async def test_the_groups_of_a_killed_shim_go_once_they_are_empty(
    rig: Rig, bases: tuple[Path, Path]
) -> None:
    rig.executor.cgroups = Cgroups(*bases, 1)
    await rig.executor.start(program("/bin/sleep", "600"))
    await rig.until(WorkerStarted)
    shim = runs.process(rig.home.run("t1", 1), "shim")
    assert shim is not None
    os.kill(shim, signal.SIGKILL)
    await rig.until(WorkerLost)
    groups = [base / "t1-1" for base in bases]
    assert all(group.exists() for group in groups)
    for file in [file for group in groups for file in group.iterdir()]:
        file.unlink()  # as the kernel lets its own go with the last process
    async with asyncio.timeout(60):
        while any(group.exists() for group in groups):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_a_daemon_removes_the_empty_groups_that_others_have_left(
    rig: Rig, bases: tuple[Path, Path]
) -> None:
    rig.executor.cgroups = Cgroups(*bases, 1)
    for base in bases:
        for name in ("t7-2", "t8-1", "t9-1"):
            (base / name).mkdir()
        (base / "t8-1" / "cgroup.procs").touch()
    rig.executor._tidy_groups([("t9", 1)])
    assert [sorted(path.name for path in base.iterdir()) for base in bases] == 2 * [
        ["t8-1", "t9-1"]
    ]
    await rig.executor.recover([], next_task=10)
    assert [[path.name for path in base.iterdir()] for base in bases] == 2 * [["t8-1"]]
    (bases[0] / "t7-3").mkdir()
    await rig.executor.close()
    assert [path.name for path in bases[0].iterdir()] == ["t8-1"]
