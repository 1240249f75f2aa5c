"""What the queue asks about the owners of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zenos.core.resources import Resources


class Owners(Protocol):
    """What matters of tasks' owners: quotas, and what they have had already.

    uneven: whether anybody may have had more than another.
    """

    @property
    def uneven(self) -> bool: ...

    def concerns(self, user: str, project: str) -> bool:
        """Whether what an owner holds is bounded."""
        ...

    def admits(
        self,
        user: str,
        project: str,
        request: Resources,
        beside: Sequence[tuple[str, str, Resources]] = (),
    ) -> bool:
        """Whether an owner may have so much more, beside what others are to have: by user, project
        and amount.
        """
        ...

    def cost(self, user: str, project: str) -> float:
        """Points of score, 0 or more, that it costs a task what its owners have had."""
        ...


class Unbounded:
    """Nobody's tasks are bounded, and nobody has had anything."""

    uneven = False

    def cost(self, user: str, project: str) -> float:
        return 0.0

    def concerns(self, user: str, project: str) -> bool:
        return False

    def admits(
        self,
        user: str,
        project: str,
        request: Resources,
        beside: Sequence[tuple[str, str, Resources]] = (),
    ) -> bool:
        return True
