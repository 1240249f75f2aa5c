"""Traces of jobs, read from CSV: when each came, how long it runs, how many GPUs it takes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, NotFoundError, StorageError
from zenos.core.wording import nearest

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
FIELD_CHARS_MAX: Final = 256
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
    skipped: list[str] = []
    jobs: list[Job] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            jobs.extend(_rows(file, path, skipped if skip_bad else None))
    except FileNotFoundError:
        raise NotFoundError(f"cannot find the trace {path}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"cannot read {path}: it is not a text in UTF-8") from None
    except csv.Error as error:
        raise InvalidError(f"cannot read {path}: {error}") from None
    if not jobs:
        raise InvalidError(f"cannot simulate {path}: it has no jobs")
    jobs.sort(key=lambda job: job.submit_s)
    first = jobs[0].submit_s
    return Trace([msgspec.structs.replace(j, submit_s=j.submit_s - first) for j in jobs], skipped)


def _rows(lines: Iterable[str], path: Path, skipped: list[str] | None) -> Iterator[Job]:
    """Jobs in the order of the file; the reasons go to `skipped`, or are raised where it's None."""
    reader = csv.reader(lines, strict=True)
    header = next(reader, None)
    if not header:
        raise InvalidError(f"cannot read {path}: it is empty; its first row names the columns")
    places = _places(header, path)
    for row in reader:
        if not row:
            continue
        try:
            yield _job(row, places)
        except ValueError as error:
            why = f"row {reader.line_num}: {error}"
            if skipped is None:
                raise InvalidError(
                    f"cannot read {path}, {why}; mend it, or leave such rows out with --skip-bad"
                ) from None
            skipped.append(why)


def _places(header: list[str], path: Path) -> dict[str, int]:
    """The column of each field."""
    names = [name.strip().lstrip("\ufeff").lower() for name in header]
    places: dict[str, int] = {}
    for field, known in COLUMNS.items():
        for name in known:
            if name in names and field not in places:
                places[field] = names.index(name)
    for field in ("submit", "duration", "gpus"):
        if field not in places:
            guess = nearest(COLUMNS[field][0], names)
            raise InvalidError(
                f"cannot read {path}: no column {field!r} (or {', '.join(COLUMNS[field][1:])})"
                f" among {', '.join(names)[:FIELD_CHARS_MAX]}{guess}"
            )
    return places


def _job(row: list[str], places: dict[str, int]) -> Job:
    """One row as a job; raises ValueError with the reason."""

    def cell(field: str) -> str:
        place = places.get(field)
        if place is None:
            return ""
        if place >= len(row):
            raise ValueError(f"no {field}: it has {len(row)} fields")
        return row[place].strip()[:FIELD_CHARS_MAX]

    gpu = round(_number(cell("gpus"), "gpus", 0.001, limits.GPU_MILLI_MAX / 1000) * 1000)
    if gpu > 1000 and gpu % 1000:
        raise ValueError(f"gpus {gpu / 1000:g} is neither a share of one nor whole ones")
    priority = cell("priority")
    kind = cell("kind") or "train"
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return Job(
        submit_s=_number(cell("submit"), "submit", 0.0, 1e11),
        duration_s=_number(cell("duration"), "duration", 0.0, limits.EXPECTED_S_MAX),
        gpu=gpu,
        user=cell("user") or "local",
        priority=int(_number(priority, "priority", limits.PRIORITY_MIN, limits.PRIORITY_MAX))
        if priority
        else limits.PRIORITY_NORMAL,
        kind=kind,
    )


def _number(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what} {text!r} is no number") from None
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{what} {text} is not from {low:g} to {high:g}")
    return value
