"""What a shim says of its worker's memory."""

from __future__ import annotations

from pathlib import Path

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
