"""What a shim says of its worker's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zenos.core import cgroups
from zenos.core.memory import Limits

MIB = 1024 * 1024


def test_of_a_group_what_it_has_counted_is_told_and_not_what_a_fork_shares(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text(str(300 * MIB))
    (tmp_path / "memory.max_usage_in_bytes").write_text(str(299 * MIB))
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 0\n")
    limits = Limits({"memory_limit": 300 * MIB, "cgroups": [str(tmp_path)]})
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 1\n")
    assert limits.sample()
    assert limits.most(563 * MIB) == 299 * MIB


def test_without_a_group_a_peak_between_two_looks_counts_too() -> None:
    limits = Limits({"memory_limit": 0})
    limits.sample()
    assert limits.most(10**12) == 10**12


@pytest.mark.parametrize(
    ("base", "counter", "limit"),
    [
        ("", "memory.events", "memory.max"),
        ("memory", "memory.oom_control", "memory.limit_in_bytes"),
    ],
)
def test_what_was_killed_in_ones_own_group_for_want_of_memory_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, counter: str, limit: str
) -> None:
    monkeypatch.setattr(cgroups, "own_groups", lambda: {base: "/"})
    group = tmp_path / base
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (group / counter).write_text("oom 5\noom_kill 3\n")
    kills = cgroups.MemoryKills(tmp_path)
    assert (kills.any(), kills.limit()) == (False, None)
    (group / counter).write_text("oom 9\noom_kill 4\n")
    (group / limit).write_text("268435456\n")
    assert (kills.any(), kills.limit()) == (True, 268435456)
    (group / limit).write_text("max\n")
    (group / counter).unlink()
    assert (kills.any(), kills.limit()) == (False, None)
