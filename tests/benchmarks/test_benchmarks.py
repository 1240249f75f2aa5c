"""The benchmarks run, and say what they measured. No figure is judged here: machines differ."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from benchmarks import report
from benchmarks.__main__ import PARTS, page
from tests.processes import mentioning

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )


def test_the_quick_run_writes_a_table_and_json(tmp_path: Path) -> None:
    figures, shown = tmp_path / "b.json", tmp_path / "b.md"
    # Another part was measured before: it stays, under its own day.
    before = report.Part(
        measured="2026-01-02", machine={"cores": "64"}, rows=[report.compare("old", "s", [1.5])]
    )
    figures.write_bytes(msgspec.json.encode({"threads": before, "gone": before}))
    shown.write_text("# Benchmarks\n\nan older table\n\n## Remarks\n\nThey stay.\n")
    done = run("daemon", "--quick", "--json", str(figures), "--markdown", str(shown))
    assert done.returncode == 0, done.stderr
    written = json.loads(figures.read_bytes())
    assert list(written) == ["daemon", "threads"]
    assert {"processor", "cores", "memory", "torch"} <= set(written["daemon"]["machine"])
    rows = written["daemon"]["rows"]
    assert [row["unit"] for row in rows] == ["s", "MB", "MB"]
    for row in rows:
        ours = row["ours"]
        assert 0 < ours["low"] <= ours["median"] <= ours["high"]
        assert ours["count"] == 2
    assert [row["reach"] for row in rows] == ["≤ 1 s", "≤ 120 MB", ""]
    assert [row["reached"] is None for row in rows] == [False, False, True]
    # What is printed stands on the page too, a line for each row.
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {row['what']}" for row in rows]
    page = shown.read_text(encoding="utf-8")
    assert done.stdout.strip() in page
    assert "| old | 1.5 s | - | - | - |" in page
    assert "- threads on 2026-01-02: cores 64.\n" in page
    assert page.endswith("\n\n## Remarks\n\nThey stay.\n")
    assert "an older table" not in page
    assert not mentioning(f"{tempfile.gettempdir()}/zenos-bench-")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_rows(part: str) -> None:
    rows = importlib.import_module(f"benchmarks.{part}").rows
    assert list(inspect.signature(rows).parameters) == ["quick"]


def test_an_unknown_part_is_refused() -> None:
    done = run("demon")
    assert done.returncode == 2
    assert "no such part: demon; there are daemon, tasks" in done.stderr


def test_a_row_compares_the_same_work_alone() -> None:
    faster = report.compare("a", "s", [2.0, 1.0, 3.0], "peer", [4.0])
    assert (faster.ours.median, faster.ours.low, faster.ours.high) == (2.0, 1.0, 3.0)
    assert faster.ratio == 2.0
    rate = report.compare("b", "1/s", [2.0], "peer", [4.0], more_is_better=True)
    assert rate.ratio == 0.5
    other = report.compare("c", "s", [2.0], "peer", [4.0], same_work=False)
    assert (other.ratio, other.peer and other.peer.median) == (None, 4.0)
    alone = report.target(report.compare("d", "s", [2.0]), "≤ 1 s", False)
    text = report.table([faster, rate, other, alone])
    assert [line.split(" | ")[3:] for line in text.splitlines()[2:]] == [
        ["2.00 x", "- |"],
        ["0.50 x", "- |"],
        ["-", "- |"],
        ["-", "≤ 1 s: **missed** |"],
    ]
    assert "2 (1 to 3) s | peer: 4 s" in text
    part = report.Part(
        measured="2026-01-02", machine={"cores": "2"}, rows=[faster, rate, other, alone]
    )
    assert text in (whole := page({"a": part}))
    assert "Measured on 2026-01-02: cores 2." in whole


def test_both_sides_take_turns() -> None:
    turns: list[str] = []

    def one(name: str) -> int:
        turns.append(name)
        return len(turns)

    ours, theirs = report.alternate(lambda: one("ours"), lambda: one("peer"), 3)
    assert turns == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert (ours, theirs) == ([1, 4, 5], [2, 3, 6])
