"""A long trace of jobs for a large cluster, drawn from a real one: `zenos simulate` runs it.

    python -m benchmarks.trace philly.csv 1000000 80000 1.0 > million.csv

Each job is one of the real trace's (its duration, GPUs and user), drawn with replacement; they come
by a Poisson process, so fast that they fill so many GPUs to that load.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from zenos.simulate import traces

SEED = 20171002
DAY_S = 86400.0
DURATION_S_MAX = 7 * DAY_S


def write(source: Path, count: int, gpus: int, load: float) -> None:
    """Write `count` jobs to the standard output."""
    real = [job for job in traces.read(source).jobs if job.duration_s < DURATION_S_MAX]
    chance = random.Random(SEED)  # noqa: S311 - a trace, no secret
    work = sum(job.work for job in real) / len(real)  # GPU-seconds
    between_s = work / (load * gpus)
    out = csv.writer(sys.stdout)
    out.writerow(["submit", "duration", "gpus", "user"])
    at = 0.0
    for _ in range(count):
        at += chance.expovariate(1 / between_s)
        job = chance.choice(real)
        out.writerow([f"{at:.3f}", f"{job.duration_s:g}", f"{job.gpu / 1000:g}", job.user])


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
