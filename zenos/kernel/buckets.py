"""What the queue is made of: lines of tasks, buckets, and the heads of those that are closed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from zenos.kernel.entries import BucketKey, Entry


class TaskLine:
    """Tasks in the order in which they were queued: a heap; who has left is found out at its top.

    live: how many of its items are of tasks that wait here.
    """

    __slots__ = ("items", "live")

    def __init__(self) -> None:
        self.items: list[tuple[float, int, str]] = []
        self.live = 0

    def push(self, entry: Entry) -> None:
        """Put one at its place."""
        heapq.heappush(self.items, (entry.queued, entry.order, entry.task))
        self.live += 1


class Bucket(TaskLine):
    """The waiting tasks of one key, and its head as it was last looked up.

    is_open: their owner's quotas have room for one of them.
    """

    __slots__ = ("due_at", "head", "is_open", "key")

    def __init__(self, key: BucketKey) -> None:
        super().__init__()
        self.key = key
        self.head: Entry | None = None
        self.due_at = math.inf  # when its head becomes overdue
        self.is_open = True


class Closed:
    """The heads of the buckets that quotas close, by owner."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, str], dict[BucketKey, Entry]] = {}
        self._highest: dict[tuple[str, str], int] = {}  # of those heads; told anew when one changes

    def put(self, key: BucketKey, head: Entry | None) -> None:
        """The head of a bucket is that one; None: it isn't closed, or is no more."""
        owner = key.user, key.project
        heads = self._heads.get(owner)
        if head is not None:
            self._heads.setdefault(owner, {})[key] = head
        elif heads is None or heads.pop(key, None) is None:
            return
        elif not heads:
            del self._heads[owner]
        self._highest.pop(owner, None)

    def owners(self) -> Iterator[tuple[str, str, int]]:
        """User, project, and the highest base priority of what is closed of theirs."""
        for owner, heads in self._heads.items():
            highest = self._highest.get(owner)
            if highest is None:
                highest = self._highest[owner] = max(key.priority for key in heads)
            yield *owner, highest

    def heads(self, user: str, project: str) -> list[Entry]:
        """The heads of an owner's closed buckets."""
        return list(self._heads.get((user, project), {}).values())
