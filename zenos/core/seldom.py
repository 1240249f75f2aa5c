"""What may go on very often is told seldom: how many lines a log gets is not up to others."""

from __future__ import annotations

import math


class Seldom:
    """Tells of something the first time, and then once in `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due = -math.inf
        self._count = 0

    def times(self, now: float) -> int:
        """It has happened: how often since it was told last, if it is to be told now; else 0.

        now: seconds of any clock that only goes forward.
        """
        self._count += 1
        if now < self._due:
            return 0
        count, self._count = self._count, 0
        self._due = now + self._every_s
        return count
