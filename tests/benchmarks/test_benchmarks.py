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
from benchmarks.__main__ import PARTS, page, read
from benchmarks.scheduler import decision_rows
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


def test_the_page_that_is_kept_shows_the_figures_that_are_kept() -> None:
    kept = read(ROOT / "docs" / "benchmarks.json")
    assert list(kept) == list(PARTS)
    shown = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert shown.startswith(page(kept))
    for part in kept.values():
        assert {"processor", "cores", "memory", "system", "python", "torch"} <= set(part.machine)
        for row in part.rows:
            assert (row.reached is None) == (row.reach == ""), row.what
            assert (row.peer is None) == (row.peer_name == ""), row.what


# Part, row, peer, and what it is to reach.
PROMISED = [
    ("calls", "functions accepted durably", "Ray tasks", "≥ 5 x"),
    ("calls", "one function, round trip, durable", "write and fsync", "≤ fsync + 300 µs"),
    ("calls", "one function, round trip, not kept", "ProcessPoolExecutor", "≤ 300 µs"),
    ("calls", "one function, round trip, not kept", "Ray task", ""),
    ("calls", "the same, 99th percentile", "", "≤ 1000 µs"),
    ("calls", "zenos.map of 100,000", "Ray", "≥ 5 x"),
    ("calls", "zenos.map of 100,000", "multiprocessing.Pool.map", "≥ 0.9 x"),
    ("messages", "call and reply between peers", "raw unix socket", "≤ 120 µs"),
    ("messages", "call and reply between peers", "ZeroMQ", ""),
    ("messages", "messages in a second", "ZeroMQ", "≥ 100,000/s"),
    ("durable", "durable messages in a second", "Redis Streams, appendfsync always", "≥ 1 x"),
    ("memory", "256 MiB to another process, written in place", "Ray put", "≤ 1 ms"),
    ("memory", "256 MiB to another process, copied in", "one memcpy", "≤ 1.3 memcpy"),
    ("memory", "all-reduce of 120 MB between 2 ranks", "gloo", "≥ 6 x"),
    ("data_parallel", "data-parallel training", "torchrun", "≥ 1 x"),
    ("data_parallel", "data-parallel training", "torchrun", "≥ 1.3 x"),
    ("tokenizing", "tokenize 100 MB", "load_dataset and datasets.map", "≥ 1.5 x"),
    ("tokenizing", "tokenize 100 MB", "datasets.map", "≤ 0.5 of the peer's"),
    ("commands", "call and reply while", "ours, while nothing flows", "p99 ≤ 5 ms"),
]


@pytest.mark.parametrize("promised", PROMISED, ids=lambda p: f"{p[0]}-{p[3] or p[2]}")
def test_what_is_promised_of_messages_and_threads_is_measured(
    promised: tuple[str, str, str, str],
) -> None:
    part, what, peer, reach = promised
    rows = read(ROOT / "docs" / "benchmarks.json")[part].rows
    found = [
        row
        for row in rows
        if row.what.startswith(what) or f" {what}" in row.what
        if row.peer_name.startswith(peer) and row.reach == reach
    ]
    assert len(found) == 1, promised


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


def test_a_decision_counts_once_however_many_steps_it_takes() -> None:
    """An event waits for one step of it at most; all of them together are a row of their own."""
    decisions = [[0.5]] * 97 + [[3.0, *[0.1] * 100]] * 3
    median, slow, whole, whole_slow = decision_rows(decisions, "here")
    assert (median.ours.count, median.ours.median, median.ours.high) == (100, 0.5, 3.0)
    assert (slow.ours.median, slow.reached, median.reached) == (3.0, False, True)
    assert (whole.ours.count, whole.ours.median, whole.reached) == (100, 0.5, None)
    assert whole.ours.high == whole_slow.ours.median == pytest.approx(13.0)
