"""One user, or one project: what it holds, has had, and is due."""

from __future__ import annotations

import math
from typing import NamedTuple

from zenos.core.quotas import Usage
from zenos.core.task import HOLDING, Task
from zenos.kernel.bounds import Bounds
from zenos.kernel.pool import NOTHING


class Account:
    """A user's, or a project's. alive: its tasks that have not ended; tasks: without replicas.

    dominant: the largest share that it holds of any resource; shares: how much it is due, in
    proportion to others. holders: its tasks that hold something, with the lowest base priority to
    which each can give way; infinity for those that can't save their state.
    """

    __slots__ = (
        "alive",
        "bounds",
        "dominant",
        "held",
        "holders",
        "lowest",
        "shares",
        "tasks",
        "usage",
    )

    def __init__(self, usage: Usage) -> None:
        self.alive = 0
        self.tasks = 0
        self.held = NOTHING
        self.dominant = 0.0
        self.usage = usage
        self.bounds: Bounds | None = None
        self.shares = 1.0
        self.holders: dict[str, float] = {}
        self.lowest: float | None = None  # of those priorities; None: to be told anew

    def note(self, task: Task) -> None:
        """One of its tasks holds something now, or no more, or has another priority."""
        self.lowest = None
        if task.state not in HOLDING:
            self.holders.pop(task.id, None)
        elif task.can_save:
            self.holders[task.id] = task.spec.priority + (not task.spec.is_elastic)
        else:
            self.holders[task.id] = math.inf


class Total:
    """What all users, or all projects, that have tasks have had together, and are due."""

    __slots__ = ("at", "count", "decayed_s", "dominant", "shares")

    def __init__(self, at: float) -> None:
        self.at = at
        self.count = 0
        self.decayed_s = self.dominant = self.shares = 0.0


class Standing(NamedTuple):
    """Of all use by those who have tasks, an account's part; and which part it is due."""

    account: str
    had: float
    due: float

    @property
    def excess(self) -> float:
        """0 for who has had no more than it is due, towards 1 the more it has had."""
        over = self.had / self.due
        return 1.0 - 2.0 ** (1.0 - over) if over > 1.0 else 0.0
