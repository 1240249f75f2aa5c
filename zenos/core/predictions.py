"""What is known of how long tasks run: learned by signature, predicted at the start, and measured.

Tasks of one signature are alike: kind, user, and what they do (see zenos/kernel/estimates.py).
"""

from __future__ import annotations

import statistics
from typing import Literal

import msgspec

# Whose word a prediction is: the user's, that of finished tasks, or nobody's.
Source = Literal["user", "learned", "default"]


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """One finished task: what was predicted at its start, by whom, and what it took. Seconds."""

    predicted_s: float
    source: Source
    took_s: float

    @property
    def error(self) -> float:
        """By how much of the real time the prediction was off: 0.25 is 25 %."""
        return abs(self.predicted_s - self.took_s) / max(self.took_s, 1e-3)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What finished tasks of one signature have taught; stored.

    log_s: the natural logarithm of the expected seconds. count: of how many tasks. at: kernel time
    of the last one. past: the newest predictions, the oldest first.
    """

    signature: str
    log_s: float
    count: int = 1
    at: float = 0.0
    past: list[Past] = []

    @property
    def median_error(self) -> float | None:
        """Of the predictions that somebody made; None without any."""
        errors = [past.error for past in self.past if past.source != "default"]
        return statistics.median(errors) if errors else None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """How long a task is to run, and how good that was.

    expected_s: the whole run time, as predicted at the start, or as it would be now for one that
    has not started. took_s and error: of one that has finished. finished: how many tasks of its
    signature have. compared: how many of their predictions the median error is of.
    """

    expected_s: float
    source: Source
    took_s: float | None = None
    error: float | None = None
    signature: str = ""
    finished: int = 0
    compared: int = 0
    median_error: float | None = None
