"""Figures, and how they are shown: a table for people, JSON for machines."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Several measurements of one thing; count: how many, None where that was not kept."""

    median: float
    low: float
    high: float
    count: int | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Median, extremes and number."""
        return cls(
            median=statistics.median(values), low=min(values), high=max(values), count=len(values)
        )


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line. ratio: how many times better we are than the peer (above 1 is better).

    reach: what the figure or the ratio should be, in words; reached: whether it is, None without a
    target.
    """

    what: str
    unit: str
    ours: Figure
    peer_name: str = ""
    peer: Figure | None = None
    ratio: float | None = None
    reach: str = ""
    reached: bool | None = None


def compare(
    what: str,
    unit: str,
    ours: Sequence[float],
    peer_name: str = "",
    peer: Sequence[float] = (),
    *,
    more_is_better: bool = False,
    same_work: bool = True,
) -> Row:
    """A row from measurements, with the ratio of the medians.

    same_work: the peer does the same; otherwise it stands beside for orientation, without a ratio.
    """
    mine = Figure.of(ours)
    if not peer:
        return Row(what=what, unit=unit, ours=mine)
    theirs = Figure.of(peer)
    better = mine.median / theirs.median if more_is_better else theirs.median / mine.median
    ratio = better if same_work else None
    return Row(what=what, unit=unit, ours=mine, peer_name=peer_name, peer=theirs, ratio=ratio)


def target(row: Row, reach: str, reached: bool) -> Row:
    """The row with what it should reach."""
    return msgspec.structs.replace(row, reach=reach, reached=reached)


def alternate(ours: Callable[[], T], peer: Callable[[], T], rounds: int) -> tuple[list[T], list[T]]:
    """Measure both in turn, so that what the machine does otherwise meets both alike."""
    mine, theirs = [], []
    for number in range(rounds):
        if number % 2:
            theirs.append(peer())
            mine.append(ours())
        else:
            mine.append(ours())
            theirs.append(peer())
    return mine, theirs


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    import torch

    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a type of its own, which JSON has none for
    }


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _figure(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return "-"
    alone = figure.low == figure.high
    spread = "" if alone else f" ({_number(figure.low)} to {_number(figure.high)})"
    return f"{_number(figure.median)}{spread} {unit}"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one part, with the day and the machine on which they were measured."""

    measured: str
    machine: dict[str, str]
    rows: list[Row]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: medians, with the lowest and the highest in brackets."""
    lines = ["| what | zenos | peer | ratio | reach |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        peer = f"{row.peer_name}: {_figure(row.peer, row.unit)}" if row.peer else "-"
        ratio = f"{row.ratio:.2f} x" if row.ratio is not None else "-"
        state = "" if row.reached is None else ("reached" if row.reached else "**missed**")
        reach = f"{row.reach}: {state}" if row.reach else "-"
        lines.append(f"| {row.what} | {_figure(row.ours, row.unit)} | {peer} | {ratio} | {reach} |")
    return "\n".join(lines)


def say(text: str) -> None:
    """A line of progress, on stderr: stdout is for the result."""
    sys.stderr.write(f"{text}\n")
