"""The queue of waiting tasks and the order in which they are tried.

Ranks by score cross over time and so fit no heap. Hence buckets: all tasks of one priority, user,
power-of-two class of expected time, resource request and half (see `demoted`), the longest waiting
first. Only the heads of buckets are scored. Tasks of one bucket want the same: when its head does
not fit, none of it does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from zenos.core import priority
from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Kind, Task
from zenos.kernel.resource_manager import ResourceManager

SIGNATURES_MAX: Final = 4096


class BucketKey(NamedTuple):
    """What the tasks of one bucket have in common."""

    priority: int
    user: str
    time_class: int
    request: Resources
    demoted: bool = False


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


class Ranked(NamedTuple):
    """An entry with the numbers it is ordered by; a smaller `rank` comes first."""

    rank: tuple[float, float, int]
    entry: Entry
    p: float
    score: float


def time_class(expected_s: float) -> int:
    """The power of two of the expected time: 0 for up to 1 s, 1 for up to 2 s, and so on."""
    return max(0, math.ceil(math.log2(max(expected_s, 1.0))))


def order_of(task_id: str) -> int:
    """The number in a task's id: the order of submission."""
    return int(task_id[1:])


class Queue:
    """Waiting tasks: the buckets, and the overdue ones in the order in which they were queued.

    That order, and not the one in which they became overdue, keeps the bound under a flood: tasks
    of a high priority that arrive faster than they can run become overdue too, and sooner, but all
    that were queued after a low one stand behind it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        # Heaps by time; who isn't there any more is found out at the top.
        self._buckets: dict[BucketKey, list[tuple[float, int, str]]] = {}
        # By request, each in its order: when the first of a request does not fit, none of it does.
        self._overdue: dict[Resources, dict[str, Entry]] = {}
        self._entries: dict[str, Entry] = {}

    def configure(self, config: Config) -> None:
        """Go on with other settings; who is overdue stays so."""
        self._config = config

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._entries

    @property
    def overdue(self) -> list[Entry]:
        """Overdue tasks, the longest waiting first."""
        waiting = (entry for group in self._overdue.values() for entry in group.values())
        return sorted(waiting, key=_by_wait)

    def add(self, task: Task, expected_s: float) -> None:
        """Put a queued task at the end of its bucket."""
        request = task.spec.resources
        demoted = is_demoted(task, task.ran_s, self._config)
        key = BucketKey(
            task.spec.priority, task.principal.user, time_class(expected_s), request, demoted
        )
        queued = task.queued - task.waited_s
        entry = Entry(task.id, order_of(task.id), queued, expected_s, key)
        self._entries[task.id] = entry
        heapq.heappush(self._buckets.setdefault(key, []), (queued, entry.order, task.id))

    def remove(self, task_id: str) -> None:
        """Take a task out; it is no error when it isn't in."""
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return
        _take(self._overdue, entry.key.request, task_id)

    def heads(self) -> Iterator[Entry]:
        """The first of each bucket."""
        for key in list(self._buckets):
            entry = self.head(key)
            if entry is not None:
                yield entry

    def head(self, key: BucketKey) -> Entry | None:
        """The first of one bucket."""
        bucket = self._buckets.get(key, [])
        while bucket:
            queued, _, task_id = bucket[0]
            entry = self._entries.get(task_id)
            there = entry is not None and (entry.key, entry.queued) == (key, queued)
            if there and task_id not in self._overdue.get(key.request, ()):
                return entry
            heapq.heappop(bucket)
        self._buckets.pop(key, None)
        return None

    def overdue_at(self, entry: Entry) -> float:
        """The kernel time at which a waiting task becomes overdue."""
        return entry.queued + priority.wait_s_max(entry.key.priority, self._config.overdue_wait_s)

    def overdue_heads(self) -> list[Entry]:
        """The first overdue task of each request, the longest waiting first."""
        heads = (next(iter(group.values())) for group in self._overdue.values())
        return sorted(heads, key=_by_wait)

    def overdue_head(self, request: Resources) -> Entry | None:
        """The first overdue task of one request."""
        group = self._overdue.get(request)
        return next(iter(group.values())) if group else None

    def collect_overdue(self, now: float) -> None:
        """Move tasks that have waited too long from the buckets to the overdue queue."""
        due: list[Entry] = []
        for key in list(self._buckets):
            entry = self.head(key)
            while entry is not None and self.overdue_at(entry) <= now:
                due.append(entry)
                self._overdue.setdefault(key.request, {})[entry.task] = entry
                entry = self.head(key)
        for request in {entry.key.request for entry in due}:
            waiting = sorted(self._overdue[request].values(), key=_by_wait)
            self._overdue[request] = {entry.task: entry for entry in waiting}

    def late_at(self, entry: Entry) -> float:
        """The kernel time from which on an overdue task may take more of the machine."""
        wait_s = priority.wait_s_max(entry.key.priority, self._config.overdue_wait_s)
        return entry.queued + self._config.overdue_late * wait_s

    def next_overdue(self, now: float) -> float:
        """When the next task becomes overdue, or late; infinity when none waits for that."""
        times = [self.overdue_at(entry) for entry in self.heads()]
        late = (self.late_at(entry) for entry in self.overdue_heads())
        return min([*times, *(at for at in late if at > now)], default=math.inf)

    def rank(self, entry: Entry, now: float, contention: float) -> Ranked:
        """Score, then the shorter expected time, then the earlier submission."""
        expected_s = priority.execution_s(entry.expected_s, contention)
        waited_s = now - entry.queued
        value = priority.score(entry.key.priority, self._config.ageing, waited_s, expected_s)
        if entry.key.demoted:  # however long it has waited, behind all of its priority that are not
            value -= self._config.ageing
        return Ranked(
            (-value, entry.expected_s, entry.order),
            entry,
            priority.p_of(waited_s, expected_s),
            value,
        )


K = TypeVar("K")


def _take(groups: dict[K, dict[str, Entry]], key: K, task_id: str) -> None:
    """Take a task out of its group, and the group away when nothing is left in it."""
    group = groups.get(key)
    if group is not None:
        group.pop(task_id, None)
        if not group:
            del groups[key]


def is_demoted(task: Task, ran_s: float, config: Config) -> bool:
    """Whether a task that has run for `ran_s` seconds stands in the second half of its equals.

    There are two halves: those that have had less service than `slice_s`, and those that have had
    it. Most jobs are short and nobody knows which, so what has had little goes first (multi-level
    feedback). Only what can be suspended is demoted: else a retry would be punished.
    """
    if not config.slice_s or not task.can_save:
        return False
    return priority.service_s(ran_s, task.spec.resources) >= config.slice_s


def _by_wait(entry: Entry) -> tuple[float, int]:
    return entry.queued, entry.order


class Reservation(NamedTuple):
    """What is held back on a node for the overdue task that stands first and does not fit."""

    task: str
    node: str
    request: Resources


class Claim(NamedTuple):
    """What is held back on a node for a task, until those that give way to it have ended.

    coming: what they hold still. Only the rest of the request is held back of what is free.
    """

    node: str
    request: Resources
    victims: frozenset[tuple[str, int]]  # with their generations
    coming: Resources


class Start(Protocol):
    """Told of each task that starts, with what it was given."""

    def __call__(self, task_id: str, allocation: Allocation, *, overdue: bool) -> None: ...


class Scheduler:
    """First fit by score, with the overdue queue in front.

    reservation: what the last `schedule` has held back, if anything.
    """

    def __init__(self, config: Config, resources: ResourceManager) -> None:
        self._config = config
        self._resources = resources
        self.queue = Queue(config)
        self.reservation: Reservation | None = None
        self.claims: dict[str, Claim] = {}
        # By node, what paused tasks wait for that are to go on: nobody else gets it.
        self.resuming: dict[str, Resources] = {}

    def configure(self, config: Config) -> None:
        """Go on with other settings."""
        self._config = config
        self.queue.configure(config)

    def contention(self) -> float:
        """The share of all CPUs that is given out, 0 to 1."""
        capacity = self._resources.capacity().cpu
        return min(1.0, self._resources.used().cpu / capacity) if capacity else 0.0

    def ranking(self, now: float) -> list[Ranked]:
        """The heads of all buckets in the order in which they are tried."""
        contention = self.contention()
        return sorted(self.queue.rank(entry, now, contention) for entry in self.queue.heads())

    def reserved(
        self, task_id: str = "", *, overdue: bool = False, ahead: bool = False
    ) -> dict[str, Resources]:
        """What is held back from this task, by node.

        From overdue ones that is what others have claimed, and what paused ones wait for. When all
        who gave way to a task have ended, no reservation holds back what they gave up for it: it
        may be one of them that has it. ahead: of what there will be once all who end have ended.
        """
        sums = dict(self.resuming)
        held = [
            (claim.node, claim.request if ahead else claim.request.without(claim.coming))
            for task, claim in self.claims.items()
            if task != task_id
        ]
        own, first = self.claims.get(task_id), self.reservation
        if first is not None and not overdue and first.task != task_id:
            given = own is not None and own.node == first.node and own.coming == Resources()
            if not given:
                held.append((first.node, first.request))
        for node, request in held:
            sums[node] = sums.get(node, Resources()) + request
        return sums

    def schedule(self, now: float, overdue_running: Resources, start: Start) -> None:
        """Start what can start now.

        1. Tasks that have waited longer than `wait_s_max` of their priority become overdue.
        2. Overdue tasks start in order, ahead of all others, while those that did so hold at most
           `overdue_share` of the capacity together (one may always run), or `overdue_late_share`
           for one that has waited `overdue_late` times as long as makes overdue; the first that
           doesn't fit gets a reservation: what is free, and becomes free, on its node is held back.
        3. The heads of the buckets are tried by score; what fits starts, and the next of its
           bucket is tried in its turn. What doesn't fit is passed over.
        4. What nobody else could use goes to the overdue tasks that are left, in their order; what
           doesn't fit is passed over. It took nothing from anybody, so no share counts it.
        """
        self.queue.collect_overdue(now)  # 1
        self._start_ahead(overdue_running, now, start)  # 2
        waiting = self.ranking(now)  # 3
        contention = self.contention()
        while waiting:
            entry = heapq.heappop(waiting).entry
            if self._start_beside(entry, start):
                following = self.queue.head(entry.key)
                if following is not None:
                    heapq.heappush(waiting, self.queue.rank(following, now, contention))
        left = [(_by_wait(entry), entry) for entry in self.queue.overdue_heads()]  # 4
        while left:
            _, entry = heapq.heappop(left)
            if self._start_beside(entry, start):
                following = self.queue.overdue_head(entry.key.request)
                if following is not None:
                    heapq.heappush(left, (_by_wait(following), following))

    def _start_beside(self, entry: Entry, start: Start) -> bool:
        """Start a task in what is free and not held back; whether it fits there."""
        if not self._resources.has_free(entry.key.request):
            return False  # what is held back need not be counted
        allocation = self._resources.allocate(entry.key.request, self.reserved(entry.task))
        if allocation is None:
            return False
        self._begin(entry, allocation, start, overdue=False)
        return True

    def _begin(self, entry: Entry, allocation: Allocation, start: Start, *, overdue: bool) -> None:
        self.queue.remove(entry.task)
        self.claims.pop(entry.task, None)
        start(entry.task, allocation, overdue=overdue)

    def _start_ahead(self, running: Resources, now: float, start: Start) -> None:
        before, self.reservation = self.reservation, None
        waiting = [(_by_wait(entry), entry) for entry in self.queue.overdue_heads()]
        while waiting:
            _, entry = heapq.heappop(waiting)
            request = entry.key.request
            late = self.queue.late_at(entry) <= now
            share = self._config.overdue_late_share if late else self._config.overdue_share
            if running != Resources() and not self._within(share, running + request):
                return
            held = self.reserved(entry.task, overdue=True)
            allocation = self._resources.allocate(request, held)
            if allocation is None:
                if not self._resources.could_ever_hold(request):
                    continue  # its node came back smaller: nobody else waits for it
                self.reservation = self._reserve(entry, before)
                return
            running = running + request
            self._begin(entry, allocation, start, overdue=True)
            following = self.queue.overdue_head(request)
            if following is not None:
                heapq.heappush(waiting, (_by_wait(following), following))

    def _within(self, share: float, wanted: Resources) -> bool:
        capacity = self._resources.capacity()
        return all(
            getattr(wanted, name) <= share * getattr(capacity, name)
            for name in ("cpu", "gpu", "memory", "gpu_memory")
        )

    def _reserve(self, entry: Entry, before: Reservation | None) -> Reservation:
        """Hold its request back on a node that could hold it: the one with the most free.

        A task that had a reservation keeps its node: going to another, it would begin to wait anew
        for what runs there. So does one to which others give way already. Where no device has
        enough and some are shared, all GPUs are held back: else small shares could keep them in
        pieces for ever.
        """
        request = entry.key.request
        able = {pool.node.name: pool for pool in self._resources.able(request)}
        had = before if before is not None and before.task == entry.task else None
        known = had or self.claims.get(entry.task)
        if known is not None and known.node in able:
            node = able[known.node]
        else:
            node = max(able.values(), key=lambda p: (p.free.cpu, p.free.gpu, p.free.memory))
        if node.is_in_pieces and not node.has_devices(request):
            capacity = node.node.capacity
            request = replace(request, gpu=capacity.gpu, gpu_memory=capacity.gpu_memory)
        return Reservation(entry.task, node.node.name, request)


def signature(task: Task) -> str:
    """Tasks of one signature are expected to run equally long: kind, user and what they do."""
    work = task.spec.work
    what = getattr(work, "argv", [""])[0] or getattr(work, "model", "") or getattr(work, "arch", "")
    return f"{task.kind}/{task.principal.user}/{task.spec.name or what}"


class Estimates:
    """Run times learned from finished tasks of the same signature.

    A geometric mean with exponential forgetting (weight 1/2 for the newest): run times are spread
    over orders of magnitude, so their logarithms are averaged.
    """

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._log_s: dict[str, float] = {}

    def learn(self, task: Task, ran_s: float) -> None:
        """A task of this signature has finished after `ran_s` seconds."""
        if task.kind is Kind.SERVE:
            return
        new = math.log(max(ran_s, 1e-3))
        key = signature(task)
        old = self._log_s.pop(key, None)
        self._log_s[key] = new if old is None else (old + new) / 2
        if len(self._log_s) > SIGNATURES_MAX:
            del self._log_s[next(iter(self._log_s))]  # the one that has not run for longest

    def expected_s(self, task: Task) -> float:
        """Expected remaining seconds: the user's word, else what was learned, else the default."""
        total = task.spec.expected_s
        if total is None:
            learned = self._log_s.get(signature(task))
            total = self._default_s if learned is None else math.exp(learned)
        return priority.remaining_s(total, task.ran_s)
