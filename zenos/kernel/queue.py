"""The queue of waiting tasks: buckets, their heads, and who is overdue.

Ranks by score cross over time and so fit no heap. Hence buckets: all tasks of one priority, user,
project, power-of-two class of expected time, request and half (see `is_demoted`; `BucketKey` has
them all), the longest waiting first. Only the heads of buckets are scored. Tasks of one bucket want
the same: when its head does not fit, none of it does. Nothing here looks at every task: what one
event costs grows with the logarithm of how many wait.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from zenos.core import priority
from zenos.core.config import Config
from zenos.core.quotas import accounts_of
from zenos.core.task import Kind, Task
from zenos.kernel.buckets import Bucket, Closed, TaskLine
from zenos.kernel.entries import (
    BucketKey,
    Entry,
    Rank,
    Ranked,
    Shape,
    Want,
    by_wait,
    is_demoted,
    order_of,
    time_class,
)
from zenos.kernel.heads import AGEING_MIN, Heads
from zenos.kernel.owners import Owners, Unbounded

# Of a heap's items that are not there any more, so many are left before it is made anew.
LEFT_OVER_MIN: Final = 64
BOUND_ROUNDING: Final = 1e-6


# What overdue tasks have in common that stand in one line: what they want and, where quotas bound
# it, who they belong to.
LineKey = tuple[Shape, str, str]


class Queue:
    """Waiting tasks: the buckets, and the overdue ones in the order in which they were queued.

    That order, and not the one in which they became overdue, keeps the bound under a flood: tasks
    of a high priority that arrive faster than they can run become overdue too, and sooner, but all
    that were queued after a low one stand behind it.

    owners: their quotas close buckets, whose tasks are nobody's turn then. They grow older
    meanwhile.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._entries: dict[str, Entry] = {}
        self._buckets: dict[BucketKey, Bucket] = {}
        self._groups: dict[Want, Heads] = {}  # the heads of buckets
        self._wants: dict[Shape, dict[Want, None]] = {}
        self._stale: dict[BucketKey, None] = {}  # buckets whose head is to be looked up again
        self.closed = Closed()
        self._late: set[str] = set()  # who is overdue
        # By what they want, each in its order: when the first does not fit, none of it does.
        self._overdue: dict[LineKey, TaskLine] = {}
        self.owners: Owners = Unbounded()
        # By user (`user/NAME`) and project (`project/NAME`): whose buckets they are.
        self._owned: dict[str, dict[BucketKey, None]] = {}
        # When heads become overdue: a heap; an item counts when its bucket still says so.
        self._due: list[tuple[float, int, BucketKey]] = []
        self._numbers = itertools.count()  # so that no two items of that are alike

    def configure(self, config: Config) -> None:
        """Go on with other settings; who is overdue stays so."""
        self._config = config
        self._due.clear()
        for key, bucket in self._buckets.items():
            bucket.due_at = math.inf
            self._stale[key] = None
        self._overdue.clear()
        for entry in self.overdue:  # quotas may bound others now
            self._overdue_line(entry.key).push(entry)

    def reconsider(self, account: str) -> None:
        """Quotas may have room again, or none any more, for tasks of a user or a project."""
        for key in self._owned.get(account, ()):
            self._stale[key] = None

    def is_open(self, key: BucketKey) -> bool:
        """Whether its owner's quotas let tasks of that bucket start."""
        return self.owners.admits(key.user, key.project, key.request)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._entries

    def entry(self, task_id: str) -> Entry | None:
        """A waiting task's entry."""
        return self._entries.get(task_id)

    @property
    def overdue(self) -> list[Entry]:
        """Overdue tasks, the longest waiting first."""
        return sorted((self._entries[task] for task in self._late), key=by_wait)

    def add(self, task: Task, expected_s: float, raised: int = 0) -> None:
        """Put a queued task at the end of its bucket; raised: see BucketKey."""
        spec = task.spec
        key = BucketKey(
            spec.priority,
            task.principal.user,
            time_class(expected_s),
            spec.request,
            is_demoted(task, task.ran_s, self._config),
            spec.workers,
            task.kind is Kind.SERVE,
            raised,
            task.principal.project,
        )
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(key)
            for account in accounts_of(task.principal):
                self._owned.setdefault(account, {})[key] = None
        # All of a bucket share one key: a million waiting tasks don't hold a million of them.
        entry = Entry(
            task.id, order_of(task.id), task.queued - task.waited_s, expected_s, bucket.key
        )
        self._entries[task.id] = entry
        bucket.push(entry)
        if bucket.head is None or by_wait(entry) < by_wait(bucket.head):
            self._stale[bucket.key] = None

    def key(self, task_id: str) -> BucketKey:
        """Which bucket a task that is in stands in."""
        return self._entries[task_id].key

    def remove(self, task_id: str) -> None:
        """Take a task out; it is no error when it isn't in."""
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return
        line: TaskLine
        if task_id in self._late:
            self._late.discard(task_id)
            line = self._overdue[self._line_key(entry.key)]
            line.live -= 1
            if not line.live:
                del self._overdue[self._line_key(entry.key)]
            self._tidy(line, entry.key, late=True)
            return
        line = bucket = self._buckets[entry.key]
        line.live -= 1
        if bucket.head is entry or not line.live:
            self._stale[entry.key] = None
        self._tidy(line, entry.key, late=False)

    def _tidy(self, line: TaskLine, key: BucketKey, *, late: bool) -> None:
        """Make a heap anew when most of it is left over."""
        if len(line.items) > 2 * line.live + LEFT_OVER_MIN:
            line.items = list({item for item in line.items if self._is_in(item, key, late=late)})
            heapq.heapify(line.items)

    def _tidy_due(self) -> None:
        """Make that heap anew when most of it is left over: heads change long before any is due."""
        if len(self._due) > 2 * len(self._buckets) + LEFT_OVER_MIN:
            known = ((bucket.due_at, key) for key, bucket in self._buckets.items())
            self._due = [(at, next(self._numbers), key) for at, key in known if at < math.inf]
            heapq.heapify(self._due)

    def _is_in(self, item: tuple[float, int, str], key: BucketKey, *, late: bool) -> bool:
        """Whether an item of a bucket, or of an overdue line, is of a task that waits there."""
        entry = self._entries.get(item[2])
        if entry is None or entry.queued != item[0] or (item[2] in self._late) is not late:
            return False
        return self._line_key(entry.key) == self._line_key(key) if late else entry.key is key

    def _line_key(self, key: BucketKey) -> LineKey:
        if self.owners.concerns(key.user, key.project):
            return key.shape, key.user, key.project
        return key.shape, "", ""

    def _overdue_line(self, key: BucketKey) -> TaskLine:
        """Where overdue tasks of that bucket stand."""
        return self._overdue.setdefault(self._line_key(key), TaskLine())

    # -- heads

    def heads(self) -> Iterator[Entry]:
        """The first of each bucket."""
        self._look_up()
        for group in list(self._groups.values()):
            yield from list(group)

    def groups(self) -> Mapping[Want, Heads]:
        """The heads by what they want. Changed by whatever starts: not to be kept."""
        self._look_up()
        return self._groups

    def wants(self) -> Mapping[Shape, Mapping[Want, None]]:
        """The groups that have heads, by shape."""
        self._look_up()
        return self._wants

    def head(self, key: BucketKey) -> Entry | None:
        """The first of one bucket; None of a closed one."""
        self._look_up()
        bucket = self._buckets.get(key)
        return bucket.head if bucket is not None and bucket.is_open else None

    def _look_up(self) -> None:
        """Look up the heads of those buckets whose head may have changed."""
        while self._stale:
            key, _ = self._stale.popitem()
            bucket = self._buckets.get(key)
            if bucket is not None:
                self._renew(bucket)

    def _renew(self, bucket: Bucket) -> None:
        key, items = bucket.key, bucket.items
        while items and not self._is_in(items[0], key, late=False):
            heapq.heappop(items)
        bucket.head = head = self._entries[items[0][2]] if items else None
        if head is None:
            del self._buckets[key]
            self._show(key, None)
            self.closed.put(key, None)
            for account in (f"user/{key.user}", f"project/{key.project}"):
                self._owned[account].pop(key)
                if not self._owned[account]:
                    del self._owned[account]
            return
        bucket.is_open = self.is_open(key)
        self._show(key, head if bucket.is_open else None)
        self.closed.put(key, None if bucket.is_open else head)
        due_at = self.overdue_at(head)
        if due_at != bucket.due_at:
            bucket.due_at = due_at
            heapq.heappush(self._due, (due_at, next(self._numbers), key))
            self._tidy_due()

    def _show(self, key: BucketKey, head: Entry | None) -> None:
        """Put the head of an open bucket among the others; take out what was there."""
        want = key.want
        group = self._groups.get(want)
        if head is not None:
            if group is None:
                group = self._groups[want] = Heads()
                self._wants.setdefault(want.shape, {})[want] = None
            group.put(key, head)
        elif group is not None:
            group.remove(key)
            if not group.owners:
                del self._groups[want]
                self._wants[want.shape].pop(want)
                if not self._wants[want.shape]:
                    del self._wants[want.shape]

    # -- overdue

    def overdue_at(self, entry: Entry) -> float:
        """The kernel time at which a waiting task becomes overdue."""
        return entry.queued + priority.wait_s_max(entry.key.priority, self._config.overdue_wait_s)

    def overdue_heads(self) -> list[Entry]:
        """The first overdue task of each line that may start, the longest waiting first."""
        heads = (self._overdue_head(key) for key in list(self._overdue))
        return sorted((head for head in heads if head is not None), key=by_wait)

    def closed_heads(self, least: Callable[[str, str], float]) -> list[Entry]:
        """The first of each bucket, and of each overdue line, that quotas close: in no order.

        least: the base priority from which on those of a user, in a project, count.
        """
        self._look_up()
        owners = [
            (user, project)
            for user, project, highest in self.closed.owners()
            if highest >= least(user, project)
        ]
        found = [entry for owner in owners for entry in self.closed.heads(*owner)]
        bounded = [key for key in self._overdue if key[1:] != ("", "")]
        late = (self._first_overdue(key) for key in bounded)
        found += [entry for entry in late if entry is not None and not self.is_open(entry.key)]
        return [e for e in found if e.key.priority >= least(e.key.user, e.key.project)]

    def overdue_head(self, key: BucketKey) -> Entry | None:
        """The first overdue task of those that stand in line with that bucket's."""
        return self._overdue_head(self._line_key(key))

    def _overdue_head(self, line_key: LineKey) -> Entry | None:
        first = self._first_overdue(line_key)
        return first if first is not None and self.is_open(first.key) else None

    def _first_overdue(self, line_key: LineKey) -> Entry | None:
        line = self._overdue.get(line_key)
        if line is None:
            return None
        while True:
            entry = self._entries.get(line.items[0][2])
            there = entry is not None and self._line_key(entry.key) == line_key
            if entry is not None and there and self._is_in(line.items[0], entry.key, late=True):
                return entry
            heapq.heappop(line.items)

    def is_overdue(self, task_id: str) -> bool:
        """Whether a waiting task has waited too long."""
        return task_id in self._late

    def collect_overdue(self, now: float) -> None:
        """Move tasks that have waited too long from the buckets to the overdue queue.

        All of them: who was queued first may be due last, and whatever is decided of some of them
        alone would be decided in the wrong order.
        """
        while self._next_due() <= now:
            key = self._due[0][-1]
            bucket = self._buckets[key]
            head = bucket.head
            assert head is not None  # noqa: S101 - `_next_due` has looked it up
            self._overdue_line(key).push(head)
            bucket.live -= 1
            self._late.add(head.task)
            self._stale[key] = None

    def _next_due(self) -> float:
        """When the next head becomes overdue; infinity when none waits."""
        self._look_up()
        while self._due:
            at, _, key = self._due[0]
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.due_at == at:
                return at
            heapq.heappop(self._due)
        return math.inf

    def late_at(self, entry: Entry) -> float:
        """The kernel time from which on an overdue task may take more of the machine."""
        wait_s = priority.wait_s_max(entry.key.priority, self._config.overdue_wait_s)
        return entry.queued + self._config.overdue_late * wait_s

    def next_overdue(self, now: float) -> float:
        """When the next task becomes overdue, or late; infinity when none waits for that."""
        late = (self.late_at(entry) for entry in self.overdue_heads())
        return min([self._next_due(), *(at for at in late if at > now)])

    # -- order

    def rank(self, entry: Entry, now: float, contention: float) -> Ranked:
        """Score, then the shorter expected time, then the earlier submission."""
        expected_s = priority.execution_s(entry.expected_s, contention)
        waited_s = now - entry.queued
        base = entry.key.priority + entry.key.raised
        value = priority.score(base, self._config.ageing, waited_s, expected_s)
        if entry.key.demoted:
            value -= self.behind_all
        cost = self.owners.cost(entry.key.user, entry.key.project) if self.owners.uneven else 0.0
        value -= cost
        return Ranked(
            (-value, entry.expected_s, entry.order),
            entry,
            priority.p_of(waited_s, expected_s),
            value,
            cost,
        )

    @property
    def behind_all(self) -> float:
        """Points that bring a task behind all of its priority, however long it has waited."""
        return self._config.ageing + (self._config.fair_weight if self.owners.uneven else 0.0)

    def bound(self, want: Want) -> float:
        """No task of a group has a higher score than that."""
        base = want.priority + want.raised
        return base + (0.0 if want.demoted else self._config.ageing) + BOUND_ROUNDING

    def best(
        self,
        want: Want,
        now: float,
        contention: float,
        passed: Collection[str] = (),
        behind: Rank | None = None,
    ) -> Entry | None:
        """Of a group's heads the first by `rank`: it does the same sums, in one loop.

        passed: who doesn't count; behind: nor does who stands before that.
        """
        base, ageing, demoted = want.priority + want.raised, self._config.ageing, want.demoted
        load, behind_all = 1.0 + contention, self.behind_all
        cost = self.owners.cost if self.owners.uneven else None
        group = self.groups().get(want)
        if group is None:
            return None
        few = ageing >= AGEING_MIN
        less = behind_all if demoted else 0.0
        best: Entry | None = None
        best_rank: Rank = (math.inf, math.inf, 0)
        for owner, owned in group.owners.items():
            cost_of = -1.0  # not asked yet: nobody's score is higher for it
            entries, are_all = (owned.first(now), False) if few else (owned.heads.values(), True)
            while True:
                skipped = False
                for entry in entries:
                    waited_s = now - entry.queued
                    if waited_s < 0.0:
                        waited_s = 0.0
                    time_s = entry.expected_s * load
                    p = waited_s / (waited_s + (time_s if time_s > 1e-9 else 1e-9))
                    value = base + ageing * p - less
                    if -value > best_rank[0]:
                        continue
                    if cost is not None:
                        cost_of = cost_of if cost_of >= 0.0 else cost(*owner)
                        value -= cost_of
                    rank = (-value, entry.expected_s, entry.order)
                    if rank >= best_rank:
                        continue
                    if entry.task in passed or (behind is not None and rank <= behind):
                        skipped = True
                    else:
                        best, best_rank = entry, rank
                if are_all or not skipped:
                    break
                entries, are_all = owned.heads.values(), True
        return best
