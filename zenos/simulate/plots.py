"""Pictures of simulations, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from zenos.core.errors import InvalidError, StorageError

ENDINGS: Final = (".png", ".svg", ".pdf")
POINTS_MAX: Final = 2000
MINUTE_S: Final = 60.0


def check(path: Path) -> None:
    """Raises InvalidError for a picture that couldn't be written in the end."""
    if path.suffix.lower() not in ENDINGS:
        raise InvalidError(f"cannot write {path}: its ending must be one of {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise InvalidError(f"cannot write {path}: there is no such directory")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise InvalidError(
            "cannot draw a picture: matplotlib is missing; type: pip install 'zenos[plot]'"
        ) from None


def write(completions: Mapping[str, Sequence[float]], path: Path) -> None:
    """Which share of the jobs was done in which time: seconds, sorted, by policy."""
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
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None
