"""What a node has to give out: what the machine has, or what a container leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from zenos.core import cgroups
from zenos.workers import nodes

CPUS = len(os.sched_getaffinity(0))
GROUP = "/sys/fs/cgroup/cpu/zenos-test"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ({"": "/a/b"}, {"a/b/cpu.max": "max 100000", "cpu.max": "max 100000"}, CPUS),
        ({"": "/a/b"}, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"": "/a/b"}, {"a/b/cpu.max": "33333 100000"}, 0.333),
        # A container's own root, and a name from outside that isn't there.
        ({"": "/docker/abc"}, {"cpu.max": "20000 100000"}, 0.2),
        ({"cpu": "/x"}, {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "1"}, CPUS),
        ({"cpu": "/x"}, {"cpu/cpu.cfs_quota_us": "150", "cpu/cpu.cfs_period_us": "1000"}, 0.15),
        ({"cpu": "/x"}, {"cpu/x/cpu.cfs_quota_us": "1", "cpu/x/cpu.cfs_period_us": "10**6"}, CPUS),
        ({}, {}, CPUS),
    ],
)
def test_a_quota_counts_wherever_it_stands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
    files: dict[str, str],
    cpus: float,
) -> None:
    monkeypatch.setattr(cgroups, "own_groups", lambda: own)
    assert cgroups.cpus_usable(tree(tmp_path, files)) == cpus


def test_a_memory_limit_counts_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "own_groups", lambda: {"": "/a/b", "memory": "/m"})
    total = psutil.virtual_memory().total
    assert nodes.memory_limit(tree(tmp_path, {"a/b/memory.max": "max"})) == total
    assert nodes.memory_limit(tree(tmp_path, {"a/memory.max": "5000000"})) == 5_000_000
    assert nodes.memory_limit(tree(tmp_path, {"memory/memory.limit_in_bytes": "4000"})) == 4000


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/cpu/cpu.cfs_period_us", os.W_OK),
    reason="no cgroup v1 with a cpu controller that we may write",
)
def test_a_process_in_a_real_group_with_a_quota_sees_it() -> None:
    group = Path(f"{GROUP}-{os.getpid()}")
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("70000")
        code = "from zenos.core.cgroups import cpus_usable; print(cpus_usable())"
        argv = ["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{code}'"]
        ran = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
        assert float(ran.stdout) == 0.7
    finally:
        group.rmdir()
