"""Tokens per second."""

from __future__ import annotations

from typing import Final

_SPEED_OVER_S: Final = 2.0


class Speed:
    """Tokens per second: over about the last two seconds, and over all."""

    def __init__(self) -> None:
        self._recent: list[tuple[int, float]] = []
        self._tokens = 0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds
        self._recent.append((tokens, seconds))
        while len(self._recent) > 1 and sum(s for _, s in self._recent[1:]) > _SPEED_OVER_S:
            self._recent.pop(0)

    @property
    def now(self) -> float | None:
        seconds = sum(s for _, s in self._recent)
        return sum(t for t, _ in self._recent) / seconds if seconds else None

    @property
    def mean(self) -> float | None:
        return self._tokens / self._seconds if self._seconds else None
