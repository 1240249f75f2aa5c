"""Waiting tasks as the queue sees them, what they want, and what orders them."""

from __future__ import annotations

import math
from typing import NamedTuple

from zenos.core import priority
from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.core.task import Task


class Shape(NamedTuple):
    """What is wanted: so much in all, in so many equal parts that may lie on several nodes."""

    request: Resources
    workers: int = 1


class Want(NamedTuple):
    """What decides where a task may start and who gives way to it: all but its place in line.

    raised: see BucketKey; it bounds the scores of a group.
    """

    priority: int
    shape: Shape
    demoted: bool
    replica: bool
    raised: int = 0


class BucketKey(NamedTuple):
    """What the tasks of one bucket have in common. raised: by how much a deadline raises them."""

    priority: int
    user: str
    time_class: int
    request: Resources
    demoted: bool = False
    workers: int = 1
    replica: bool = False
    raised: int = 0
    project: str = "default"

    @property
    def shape(self) -> Shape:
        """What they ask for."""
        return Shape(self.request, self.workers)

    @property
    def want(self) -> Want:
        """The group of buckets that fit, or don't, together."""
        return Want(self.priority, self.shape, self.demoted, self.replica, self.raised)


class Entry(NamedTuple):
    """A waiting task as the queue sees it. Times in kernel seconds.

    queued: since when it would have waited had it done so all at once: a task that was suspended
    has waited before.
    """

    task: str
    order: int
    queued: float
    expected_s: float
    key: BucketKey


# Score, negative; expected seconds; order of submission: a smaller one comes first.
Rank = tuple[float, float, int]


class Ranked(NamedTuple):
    """An entry with the numbers it is ordered by; a smaller `rank` comes first."""

    rank: Rank
    entry: Entry
    p: float
    score: float
    cost: float = 0.0


def time_class(expected_s: float) -> int:
    """The power of two of the expected time: 0 for up to 1 s, 1 for up to 2 s, and so on."""
    return max(0, math.ceil(math.log2(max(expected_s, 1.0))))


def order_of(task_id: str) -> int:
    """The number in a task's id: the order of submission."""
    return int(task_id[1:])


def is_demoted(task: Task, ran_s: float, config: Config) -> bool:
    """Whether a task that has run for `ran_s` seconds stands in the second half of its equals.

    There are two halves: those that have had less service than `slice_s`, and those that have had
    it. Most jobs are short and nobody knows which, so what has had little goes first (multi-level
    feedback). Only what can be suspended is demoted: else a retry would be punished.
    """
    if not config.slice_s or not task.can_save:
        return False
    return priority.service_s(ran_s, task.spec.resources) >= config.slice_s


def by_wait(entry: Entry) -> tuple[float, int]:
    """Sorts the longest waiting first."""
    return entry.queued, entry.order
