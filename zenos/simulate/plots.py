"""Pictures of simulations, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from zenos.core import pictures

POINTS_MAX: Final = 2000
MINUTE_S: Final = 60.0


def write(completions: Mapping[str, Sequence[float]], path: Path) -> None:
    """Which share of the jobs was done in which time: seconds, sorted, by policy.

    Raises StorageError.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for policy, times in completions.items():
        step = max(1, len(times) // POINTS_MAX)
        places = range(0, len(times), step)
        shares = [(place + 1) / len(times) for place in places]
        axes.plot([max(times[p], 1.0) / MINUTE_S for p in places], shares, label=policy)
    axes.set_xscale("log")
    axes.set_xlabel("minutes from submission to end")
    axes.set_ylabel("share of jobs")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    pictures.save(figure, path)
