"""The one clock.

Kernel time is one number of seconds that never goes back: the wall time (UTC, seconds since 1970)
at which the daemon started, or the latest time in the store where that is later, carried on by the
monotonic clock. A wall clock set back while the daemon runs, or between two runs, changes no order.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where kernel time comes from."""

    def now(self) -> float:
        """Kernel time in seconds."""
        ...


class SystemClock:
    """The real clock; never earlier than `floor`."""

    def __init__(self, floor: float = 0.0) -> None:
        self._start = max(time.time(), floor)
        self._mark = time.monotonic()

    def now(self) -> float:
        return self._start + (time.monotonic() - self._mark)


class VirtualClock:
    """A clock that stands until it is moved: for simulation and tests."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` (≥ 0) and return the new time."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._now += seconds
        return self._now
