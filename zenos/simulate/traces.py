"""Traces of jobs, read from CSV: when each came, how long it runs, how many GPUs it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.simulate import tables

# The names under which traces in the field have these columns.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "submit": ("submit", "submit_s", "submit_time", "timestamp", "arrival", "arrival_time"),
    "duration": ("duration", "duration_s", "run_time", "runtime"),
    "gpus": ("gpus", "num_gpus", "gpu", "gpu_num", "plan_gpu"),
    "user": ("user", "vc", "cluster", "project"),
    "priority": ("priority",),
    "kind": ("kind", "type"),
}
KINDS: Final = ("train", "run")
DAY_S: Final = 86400.0


class Job(msgspec.Struct, frozen=True, gc=False):
    """One job of a trace.

    submit_s: seconds after the beginning; duration_s: seconds that it runs when nothing
    interrupts it; gpu: milli-GPUs, all together or not at all; a `run` can't be suspended.
    """

    submit_s: float
    duration_s: float
    gpu: int
    user: str = "local"
    priority: int = limits.PRIORITY_NORMAL
    kind: str = "train"

    @property
    def work(self) -> float:
        """GPU-seconds."""
        return self.duration_s * self.gpu / 1000


class Window(NamedTuple):
    """Which jobs of a trace are taken: those submitted in [from_s, to_s) that are this short."""

    from_s: float = 0.0
    to_s: float = math.inf
    duration_s_max: float = math.inf

    def cut(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs in the window, by time of submission from the window's beginning."""
        return [
            msgspec.structs.replace(job, submit_s=job.submit_s - self.from_s)
            for job in jobs
            if self.from_s <= job.submit_s < self.to_s and job.duration_s < self.duration_s_max
        ]


class Trace(NamedTuple):
    """Jobs by time of submission from the first one, and why rows were left out."""

    jobs: list[Job]
    skipped: list[str]


def read(path: Path, *, skip_bad: bool = False) -> Trace:
    """Read a trace.

    Raises InvalidError that names the first malformed row, or with `skip_bad` goes on without it;
    NotFoundError or StorageError for a file that can't be read.
    """
    needed = ("submit", "duration", "gpus")
    jobs, skipped = tables.read(path, "the trace", COLUMNS, needed, _job, skip_bad=skip_bad)
    if not jobs:
        raise InvalidError(f"cannot simulate {path}: it has no jobs")
    jobs.sort(key=lambda job: job.submit_s)
    first = jobs[0].submit_s
    return Trace([msgspec.structs.replace(j, submit_s=j.submit_s - first) for j in jobs], skipped)


def _job(row: tables.Row) -> Job:
    """One row as a job; raises ValueError with the reason."""
    gpu = round(row.number("gpus", 0.001, limits.GPU_MILLI_MAX / 1000) * 1000)
    if gpu > 1000 and gpu % 1000:
        raise ValueError(f"gpus {gpu / 1000:g} is neither a share of one nor whole ones")
    kind = row.text("kind") or "train"
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return Job(
        submit_s=row.number("submit", 0.0, 1e11),
        duration_s=row.number("duration", 0.0, limits.EXPECTED_S_MAX),
        gpu=gpu,
        user=row.text("user") or "local",
        priority=int(row.number("priority", limits.PRIORITY_MIN, limits.PRIORITY_MAX))
        if row.text("priority")
        else limits.PRIORITY_NORMAL,
        kind=kind,
    )
