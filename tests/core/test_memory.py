"""What a shim says of its worker's memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zenos.core import cgroups, memory
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


# Says whether three forks of it are over a limit, of which none writes to what it has, or each.
FORKS = """
import os, signal, sys
from zenos.core.memory import Limits
common = bytearray(b"x" * 60_000_000)
there, told = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        if sys.argv[1] == "write":
            common[::1024] = b"y" * len(common[::1024])
        os.write(told, b"1")
        signal.pause()
for _ in range(3):
    os.read(there, 1)
limits = Limits({"memory_limit": 120_000_000})
for _ in range(3):
    print(limits.sample(), limits.peak > 120_000_000)
os.killpg(0, 9)
"""


@pytest.mark.parametrize(("does", "over"), [("read", False), ("write", True)])
def test_without_a_group_what_forks_share_counts_once(does: str, over: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", FORKS, does],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(over)] * 6


@pytest.mark.parametrize(
    ("every", "samples"),
    [
        (
            1e12,  # no other look for its own sake
            [
                (100, 100, False, []),
                (140, 90, False, [90]),
                (150, 95, False, [90]),  # 150 less the 50 that were shared
                (160, 85, False, [90, 85]),  # 110 by that: looked at, and it is less
                (176, 101, True, [90, 85, 101]),
            ],
        ),
        # What was shared is written to: no more is resident, and less of it is shared.
        (0, [(140, 90, False, [90]), (140, 110, True, [90, 110])]),
    ],
)
def test_nobody_is_over_a_limit_by_what_was_shared_before(
    monkeypatch: pytest.MonkeyPatch, every: float, samples: list[tuple[int, int, bool, list[int]]]
) -> None:
    looks: list[int] = []
    resident = own = 0

    def look(_: list[int]) -> int:
        looks.append(own)
        return own

    monkeypatch.setattr(memory, "descendants", lambda _: [])
    monkeypatch.setattr(memory, "resident_bytes", lambda _: resident)
    monkeypatch.setattr(memory, "own_bytes", look)
    monkeypatch.setattr(memory, "LOOK_EVERY", every)
    limits = Limits({"memory_limit": 100})
    for resident, own, exceeded, looked in samples:  # noqa: B007 - what is read above
        assert (limits.sample(), looks) == (exceeded, looked)


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
    for without in ("max", "9223372036854771712"):
        (group / limit).write_text(f"{without}\n")
        assert kills.limit() is None
    (group / counter).unlink()
    assert (kills.any(), kills.limit()) == (False, None)


@pytest.mark.parametrize("killed", [True, False])
def test_who_outlives_kills_is_over_the_limit_only_by_its_own_end(
    tmp_path: Path, killed: bool
) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text(str(300 * MIB))
    counter = tmp_path / "memory.oom_control"
    counter.write_text("oom_kill 0\n")
    group = {"memory_limit": 300 * MIB, "cgroups": [str(tmp_path)]}
    limits = Limits(group | {"outlives_kills": True})
    for kills in (0, 1, 1, 3, 3):  # of its parts
        counter.write_text(f"oom_kill {kills}\n")
        assert not limits.sample()
    counter.write_text("oom_kill 4\n")
    assert not limits.sample()  # it isn't known to have ended yet
    limits.sample_end(killed=killed)
    assert limits.exceeded == killed


def test_the_end_of_a_part_long_before_is_not_ones_own(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text(str(300 * MIB))
    (tmp_path / "memory.oom_control").write_text("oom_kill 0\n")
    limits = Limits({"cgroups": [str(tmp_path)], "outlives_kills": True})
    (tmp_path / "memory.oom_control").write_text("oom_kill 1\n")
    assert not limits.sample()
    assert not limits.sample()
    limits.sample_end(killed=True)
    assert not limits.exceeded
