"""What starts: the order in which waiting tasks are tried, and what is held back for whom.

The queue itself is in `queue.py`. Only what fits somewhere is scored and put into order: how many
wait for what is not there makes no difference.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.core.task import Allocation
from zenos.kernel.entries import (
    BucketKey,
    Entry,
    Rank,
    Ranked,
    Shape,
    by_wait,
    is_demoted,
    order_of,
    time_class,
)
from zenos.kernel.line import Line
from zenos.kernel.pool import NOTHING
from zenos.kernel.queue import Queue
from zenos.kernel.resource_manager import ResourceManager

__all__ = [
    "BucketKey",
    "Claim",
    "Entry",
    "Queue",
    "Ranked",
    "Reservation",
    "Scheduler",
    "is_demoted",
    "order_of",
    "time_class",
]


class Place(NamedTuple):
    """What is held back on one node. coming: what those that give way to it there hold still: only
    the rest is held back of what is free.
    """

    node: str
    request: Resources
    coming: Resources = NOTHING


class Reservation(NamedTuple):
    """What is held back for the overdue task that stands first and does not fit.

    places: one, or of a gang that takes several nodes one on each.
    """

    task: str
    shape: Shape
    places: tuple[Place, ...]

    @property
    def node(self) -> str:
        """Where, of a gang the first node."""
        return self.places[0].node

    @property
    def request(self) -> Resources:
        """How much on that node."""
        return self.places[0].request


class Claim(NamedTuple):
    """What is held back for a task, until those that give way to it have ended.

    victims: who they are, with their generations. gives: what those hold still, by user and
    project.
    """

    places: tuple[Place, ...]
    victims: frozenset[tuple[str, int]]
    gives: tuple[tuple[str, str, Resources], ...] = ()

    @property
    def node(self) -> str:
        """Where, of a gang the first node."""
        return self.places[0].node

    @property
    def request(self) -> Resources:
        """How much on that node."""
        return self.places[0].request

    @property
    def coming(self) -> Resources:
        """What those that give way hold still."""
        return sum((place.coming for place in self.places), NOTHING)

    def is_what(self, given: Allocation) -> bool:
        """Whether who has it was given just that: then nobody else has more room than before."""
        alone = len(self.places) == 1 and not given.others
        return alone and (given.node, given.resources) == (self.node, self.request)


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
        self._held: dict[str, Resources] | None = None  # see `_held_back`; until a claim ends
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
        for task, claim in self.claims.items():
            if task == task_id:
                continue
            for node, request, coming in claim.places:
                held = request if ahead else request.without(coming)
                sums[node] = sums.get(node, NOTHING) + held
        first = self.reservation
        if first is None or overdue or first.task == task_id:
            return sums
        own = self.claims.get(task_id)
        given = own is not None and own.coming == NOTHING
        for place in first.places:
            if not (given and own is not None and any(p.node == place.node for p in own.places)):
                sums[place.node] = sums.get(place.node, NOTHING) + place.request
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
        self._held = None
        self._start_by_score(now, start)  # 3
        self._start_left_over(start)  # 4

    def _start_by_score(self, now: float, start: Start) -> None:
        """Only heads of what fits somewhere are looked at, and those that have claims.

        Among those that have none, what doesn't fit for one fits for none that wants the same.
        Room that a claim of one that starts elsewhere gives back is for those that stand behind it.
        """
        line = Line(self.queue, now, self.contention())
        tried: set[Shape] = set()  # what is in line
        self._line_up(line, tried)
        claimed = [e for e in self._heads_with_claims() if e.key.shape not in tried]
        # As long as nobody who gives way has ended, there is nothing for hundreds of them.
        roomy = set(self._resources.may_fit({entry.key.shape: None for entry in claimed}))
        for entry in claimed:
            if entry.key.shape in roomy:
                line.add_one(entry)
        vain: set[Shape] = set()
        while (popped := line.pop()) is not None:
            entry, want = popped
            shape, claims = entry.key.shape, entry.task in self.claims
            if shape in vain and not claims:
                continue
            rank, own = (line.rank(entry) if claims else None), self.claims.get(entry.task)
            promised = self.is_promised(entry)
            given = None if promised else self._start_beside(entry, start)
            if given is None:
                line.passed.add(entry.task)
                if not (claims or promised):
                    vain.add(shape)
                    for other in self._heads_with_claims():
                        if other.key.shape == shape:
                            line.add_one(other)
                elif want is not None:
                    line.add(want)
                continue
            if rank is not None and not (own is not None and own.is_what(given)):
                tried -= vain
                vain.clear()
                self._line_up(line, tried, rank)
            if want is not None:
                line.add(want)
            following = self.queue.head(entry.key)
            if following is not None and (shape in tried or following.task in self.claims):
                line.follow(following, want)

    def _heads_with_claims(self) -> list[Entry]:
        entries = [self.queue.entry(task) for task in self.claims]
        return [e for e in entries if e is not None and self.queue.head(e.key) is e]

    def _line_up(self, line: Line, tried: set[Shape], behind: Rank | None = None) -> None:
        """Add all that fits somewhere, and isn't in line yet."""
        wants = self.queue.wants()
        held = self._held_back()
        for shape in self._resources.may_fit(wants):
            if shape not in tried and self._resources.fits(shape, held):
                tried.add(shape)
                for want in wants[shape]:
                    line.add(want, behind)

    def _start_left_over(self, start: Start) -> None:
        first = self.reservation.task if self.reservation is not None else None
        shapes = [entry.key.shape for entry in self.queue.overdue_heads()]
        roomy = set(self._resources.may_fit(shapes))
        left = [
            (by_wait(entry), entry)
            for entry in self.queue.overdue_heads()
            if entry.key.shape in roomy or entry.task in self.claims or entry.task == first
        ]
        while left:
            _, entry = heapq.heappop(left)
            if self._may_start(entry) and self._start_beside(entry, start) is not None:
                following = self.queue.overdue_head(entry.key)
                if following is not None:
                    heapq.heappush(left, (by_wait(following), following))

    def _start_beside(self, entry: Entry, start: Start) -> Allocation | None:
        """Start a task in what is free and not held back: what it has got, if it fits there.

        One with a claim goes where that is, if there is room by now.
        """
        request, workers = entry.key.request, entry.key.workers
        own = self.claims.get(entry.task)
        held = self._held_back_from(entry.task, own)
        allocation = None
        if own is not None and len(own.places) == 1:
            allocation = self._resources.allocate_on(own.node, request, held)
        allocation = allocation or self._resources.allocate(request, held, workers)
        if allocation is not None:
            self._begin(entry, allocation, start, overdue=False)
        return allocation

    def _held_back_from(self, task_id: str, own: Claim | None) -> dict[str, Resources]:
        """What `reserved` says: told from the sum of all, since there may be hundreds of claims."""
        first = self.reservation
        if own is None and (first is None or first.task != task_id):
            return self._held_back()
        if own is None or first is not None:
            return self.reserved(task_id)
        held = dict(self._held_back())
        for node, request, coming in own.places:
            held[node] = held[node] - request.without(coming)
        return held

    def _held_back(self) -> dict[str, Resources]:
        """From those that have neither a claim nor the reservation."""
        if self._held is None:
            self._held = self.reserved()
        return self._held

    def _begin(self, entry: Entry, allocation: Allocation, start: Start, *, overdue: bool) -> None:
        self.queue.remove(entry.task)
        if self.claims.pop(entry.task, None) is not None:
            self._held = None
        start(entry.task, allocation, overdue=overdue)

    def _start_ahead(self, running: Resources, now: float, start: Start) -> None:
        before, self.reservation = self.reservation, None
        waiting = [(by_wait(entry), entry) for entry in self.queue.overdue_heads()]
        while waiting:
            _, entry = heapq.heappop(waiting)
            if not self._may_start(entry):
                continue  # since one of its owner's has just started, or is to
            request = entry.key.request
            late = self.queue.late_at(entry) <= now
            share = self._config.overdue_late_share if late else self._config.overdue_share
            if running != NOTHING and not self._within(share, running + request):
                return
            held = self.reserved(entry.task, overdue=True)
            allocation = self._resources.allocate(request, held, entry.key.workers)
            if allocation is None:
                if not self._resources.could_ever_hold(request, entry.key.workers):
                    continue  # its node came back smaller: nobody else waits for it
                self.reservation = self._reserve(entry, before)
                return
            running = running + request
            self._begin(entry, allocation, start, overdue=True)
            following = self.queue.overdue_head(entry.key)
            if following is not None:
                heapq.heappush(waiting, (by_wait(following), following))

    def reserves_in_vain(self) -> bool:
        """Whether what is held back for the overdue task is so for nobody: since then something has
        started that leaves it no room in a quota.
        """
        first = self.reservation
        entry = self.queue.entry(first.task) if first is not None else None
        return entry is not None and not self._may_start(entry)

    def _may_start(self, entry: Entry) -> bool:
        """Whether its owner's quotas let it, beside what is promised to others."""
        return self.queue.is_open(entry.key) and not self.is_promised(entry)

    def is_promised(self, entry: Entry) -> bool:
        """Whether what its owner's quotas have room for is for those for whom others gave way."""
        key, owners = entry.key, self.queue.owners
        if not self.claims or not owners.concerns(key.user, key.project):
            return False
        beside = self.claimed(entry)
        return bool(beside) and not owners.admits(key.user, key.project, key.request, beside)

    def claimed(self, entry: Entry) -> list[tuple[str, str, Resources]]:
        """By owner what others than this one have a claim for, and, negative, what those give back
        who give way to any: once they have ended, there has to be room for all."""
        entries = (self.queue.entry(task) for task in self.claims if task != entry.task)
        wanted = [(e.key.user, e.key.project, e.key.request) for e in entries if e is not None]
        gives = [given for claim in self.claims.values() for given in claim.gives] if wanted else []
        return wanted + [(user, project, NOTHING - held) for user, project, held in gives]

    def promised(self, task_id: str = "") -> list[tuple[str, str, Resources]]:
        """What others than this task have a claim or the reservation for, by owner: quotas count it
        as held."""
        tasks = dict.fromkeys(self.claims)
        if self.reservation is not None:
            tasks[self.reservation.task] = None
        entries = (self.queue.entry(task) for task in tasks if task != task_id)
        return [(e.key.user, e.key.project, e.key.request) for e in entries if e is not None]

    def _within(self, share: float, wanted: Resources) -> bool:
        capacity = self._resources.capacity()
        return (
            wanted.cpu <= share * capacity.cpu
            and wanted.gpu <= share * capacity.gpu
            and wanted.memory <= share * capacity.memory
            and wanted.gpu_memory <= share * capacity.gpu_memory
        )

    def _reserve(self, entry: Entry, before: Reservation | None) -> Reservation:
        """Hold its request back on a node that could hold it: the one with the most free.

        A task that had a reservation keeps its node: going to another, it would begin to wait anew
        for what runs there. So does one to which others give way already. Where no device has
        enough and some are shared, all GPUs are held back: else small shares could keep them in
        pieces for ever.
        """
        resources, shape = self._resources, entry.key.shape
        had = before if before is not None and before.task == entry.task else None
        known = had or self.claims.get(entry.task)
        nodes = [place.node for place in known.places] if known is not None else []
        places: list[Place] = []
        for part in resources.parts(shape):
            there = {place.node for place in places}
            able = (n for n in nodes if n not in there and resources.is_able(n, part))
            node = next(able, None)
            pool = resources.pools[node] if node is not None else resources.freest(part, there)
            if pool.is_in_pieces and not pool.has_devices(part):
                capacity = pool.node.capacity
                part = replace(part, gpu=capacity.gpu, gpu_memory=capacity.gpu_memory)
            places.append(Place(pool.node.name, part.plain))
        return Reservation(entry.task, shape, tuple(places))
