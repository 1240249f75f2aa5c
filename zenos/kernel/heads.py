"""The first of each bucket that want the same, by owner, and which of an owner's can be first.

Of two heads of one owner the order by score goes by waited / expected time alone, which grows in a
straight line: they change places once at most. So of each owner only those few are scored that can
be first before a stated time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final

from zenos.kernel.entries import BucketKey, Entry

# Points of P(T) by which one has to be ahead of another to stay so whatever sums are rounded.
AHEAD_P: Final = 1e-9
# With less of it in the score, a rounded sum might tell another order.
AGEING_MIN: Final = 0.01
EXPECTED_S_MIN: Final = 1e-6
AHEAD_S_MIN: Final = 10.0
AHEAD_SHARE: Final = 1 / 4  # of the longest wait


class Owned:
    """The heads of one owner's buckets."""

    __slots__ = ("_first", "_since", "_until", "heads")

    def __init__(self) -> None:
        self.heads: dict[BucketKey, Entry] = {}
        self._first: Collection[Entry] = ()
        self._since, self._until = math.inf, -math.inf

    def changed(self) -> None:
        """A head is there or gone."""
        self._until = -math.inf

    def first(self, now: float) -> Collection[Entry]:
        """Those of them that can be first by score now: one or a few more."""
        if not self._since <= now <= self._until:
            self._find(now)
        return self._first

    def _find(self, now: float) -> None:
        """Leave out who is behind one of two others now, and will be at the end."""
        queued = [entry.queued for entry in self.heads.values()]
        self._since, self._until = now, now + max(AHEAD_S_MIN, AHEAD_SHARE * (now - min(queued)))
        if len(queued) == 1 or max(queued) > now:
            # Who has not begun to wait stays where it is for a while: no straight line.
            self._first = list(self.heads.values())
            self._until = now if max(queued) > now else self._until
            return
        end = self._until
        rows: list[tuple[float, float, Entry]] = []
        for entry in self.heads.values():
            expected_s = max(entry.expected_s, EXPECTED_S_MIN)
            rows.append(
                ((now - entry.queued) / expected_s, (end - entry.queued) / expected_s, entry)
            )
        now_first = max(rows, key=lambda row: row[0])
        then_first = max(rows, key=lambda row: row[1])
        ahead = [now_first[:2], then_first[:2]]
        self._first = [
            entry
            for now_r, then_r, entry in rows
            if entry.expected_s < EXPECTED_S_MIN
            or not any(
                min(now_a - now_r, then_a - then_r) >= AHEAD_P * (1.0 + then_a) * (1.0 + then_r)
                for now_a, then_a in ahead
            )
        ]


class Heads:
    """The heads of the buckets of one group, by owner: user and project."""

    __slots__ = ("owners",)

    def __init__(self) -> None:
        self.owners: dict[tuple[str, str], Owned] = {}

    def __iter__(self) -> Iterator[Entry]:
        for owned in self.owners.values():
            yield from owned.heads.values()

    def put(self, key: BucketKey, head: Entry) -> None:
        """That is the head of an open bucket."""
        owned = self.owners.get((key.user, key.project))
        if owned is None:
            owned = self.owners[key.user, key.project] = Owned()
        if owned.heads.get(key) is not head:
            owned.heads[key] = head
            owned.changed()

    def remove(self, key: BucketKey) -> None:
        """A bucket is closed or gone; it is no error when it wasn't there."""
        owner = key.user, key.project
        owned = self.owners.get(owner)
        if owned is not None and owned.heads.pop(key, None) is not None:
            owned.changed()
            if not owned.heads:
                del self.owners[owner]
