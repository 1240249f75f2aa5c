"""Who could give way on a node, to whom, and what that would make room for.

All that decides it is looked up node by node, and only where something has changed: by an event
(`take_touched`), or because somebody has stayed, or run, for long enough by now (`wake`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from zenos.core import priority
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Kind, State, Task
from zenos.kernel import elastic
from zenos.kernel.entries import order_of
from zenos.kernel.pool import NOTHING, Pool, admits
from zenos.kernel.trial import Trial

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

HOUR_S: Final = 3600.0
ROUNDING_S: Final = 0.001  # seconds by which sums of times may be off


class Candidate(NamedTuple):
    """A running task that can be suspended, with what decides whether it is. Smaller goes first.

    priority: its base priority; service_s: what it has had, negative so that most goes first.
    guarded: it started as overdue, or has given way too often of late: it doesn't give way to
    equals, nor, for a while, to tasks of a higher priority; to requests for a model it does.
    part: what it holds on the node in question. cost: milli-GPUs that are taken back, on all its
    nodes: millicores where it has no GPU. rate: by how much `service_s` grows each second, an
    elastic training's as if it had all. is_elastic: some of its devices may be lent to it.
    """

    priority: int
    service_s: float
    order: int
    task: Task
    demoted: bool
    since_s: float  # the length of its present stay
    guarded: bool
    part: Allocation
    cost: int
    rate: float
    is_elastic: bool


class Need(NamedTuple):
    """Something that is wanted of one node, and by what right."""

    priority: int
    demoted: bool
    replica: bool
    request: Resources


class _Stay(NamedTuple):
    """A task on a node, as long as it is the same record: all that its candidate has but the time.

    part: what it holds there; None where it could not give way in any case. running: since when.
    """

    task: Task
    part: Allocation | None
    running: float = 0.0
    order: int = 0
    cost: int = 0
    rate: float = 0.0
    is_elastic: bool = False


def _stay(task: Task, node: str) -> _Stay:
    part = task.allocation.on(node) if task.allocation is not None else None
    able = task.can_save and task.state is State.RUNNING and not task.stopping
    if not able or part is None or task.running is None:
        return _Stay(task, None)
    cost = task.granted.gpu or task.granted.cpu
    rate = priority.service_s(1.0, task.spec.resources)
    return _Stay(task, part, task.running, order_of(task.id), cost, rate, task.spec.is_elastic)


class _Here:
    """What is known of one node in the present step."""

    __slots__ = ("able", "candidates")

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates
        self.able: dict[tuple[int, bool, bool], list[Candidate]] = {}


class Candidates:
    """By node, who could give way. `held`: what is held back there for others."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        # Times, the first ones first. A deque would take 600 bytes for each task.
        self.given_way: dict[str, tuple[float, ...]] = {}
        self.held: dict[str, Resources] = {}
        self.now = 0.0
        self._here: dict[str, _Here] = {}
        self._rooms: dict[str, Pool] = {}  # in the present step: see `_room`
        self._stays: dict[str, dict[str, _Stay]] = {}  # by node, of the tasks that were there last
        # Nodes by when they were last touched, the latest last: by whom that was seen is counted.
        self._touched: dict[str, int] = {}
        self._count = 0
        # When who on a node has stayed long enough: a heap, one item of each node counts.
        self._later: list[tuple[float, str]] = []
        self._later_of: dict[str, float] = {}

    # -- what has changed

    def begin(self, now: float, held: dict[str, Resources]) -> None:
        """A step: nothing is known of any node, and of some something has changed."""
        self.now = now
        self._here.clear()
        self._rooms.clear()
        while self._later and self._later[0][0] <= now:
            at, node = heapq.heappop(self._later)
            if self._later_of.get(node) == at:
                del self._later_of[node]
                self._touch(node)
        for node in held.keys() | self.held.keys():
            if held.get(node) != self.held.get(node):
                self._touch(node)
        self.held = held
        self.take_touched()

    def take_touched(self) -> None:
        """Note what events, and what has been decided, have changed since."""
        touched = self._kernel.state.touched
        for node in touched:
            self._touch(node)
        touched.clear()

    def hold(self, node: str, request: Resources) -> None:
        """Hold that much more back on a node: who could give way there stays the same."""
        self.held[node] = self.held.get(node, NOTHING) + request
        self._count_touch(node)

    def _touch(self, node: str) -> None:
        self._count_touch(node)
        self._here.pop(node, None)
        self._rooms.pop(node, None)

    def _count_touch(self, node: str) -> None:
        self._count += 1
        self._touched.pop(node, None)
        self._touched[node] = self._count

    def since(self, count: int) -> Iterator[str]:
        """Nodes that were touched after so many touches, the latest first."""
        for node in reversed(self._touched):
            if self._touched[node] <= count:
                return
            if node in self._kernel.state.resources.pools:
                yield node

    @property
    def count(self) -> int:
        """How many touches there have been."""
        return self._count

    def touched_at(self, node: str) -> int:
        """The last touch of a node."""
        return self._touched.get(node, 0)

    def wake(self) -> float:
        """When somebody will have stayed long enough; infinity where nobody is waited for."""
        return self._later[0][0] if self._later else math.inf

    def _not_before(self, node: str, at: float) -> None:
        """Look at a node again then; infinity: not for this."""
        if at < self._later_of.get(node, math.inf):
            self._later_of[node] = at
            heapq.heappush(self._later, (at, node))

    # -- who

    def on(self, node: str) -> list[Candidate]:
        """Those on a node, the first to go first: the lowest priority, then most service."""
        return self._look(node).candidates

    def _look(self, node: str) -> _Here:
        here = self._here.get(node)
        if here is None:
            here = self._here[node] = _Here(self._find(node))
        return here

    def _find(self, node: str) -> list[Candidate]:
        state, config, now = self._kernel.state, self._kernel.config, self.now
        there = state.on_node.get(node)
        if not there or not config.preemptions_per_hour:
            self._stays.pop(node, None)
            return []
        before, tasks, given_way = self._stays.get(node, {}), state.tasks, self.given_way
        residence_s, slice_s, overdue = config.residence_s, config.slice_s, state.overdue_running
        stays: dict[str, _Stay] = {}
        found: list[Candidate] = []
        for task_id in there:
            task, stay = tasks[task_id], before.get(task_id)
            if stay is None or stay.task is not task:
                stay = _stay(task, node)
            stays[task_id] = stay
            _, part, running, order, cost, rate, is_elastic = stay
            if part is None:
                continue
            since_s = now - running
            often = task_id in given_way and self._too_often(task_id, node)
            if since_s < residence_s:
                self._not_before(node, running + residence_s)
                continue
            guarded = often or task_id in overdue
            spec = task.spec
            had_s = priority.service_s(task.ran_s + since_s, spec.resources)
            demoted = bool(slice_s) and had_s >= slice_s
            found.append(
                Candidate(
                    spec.priority,
                    -had_s,
                    order,
                    task,
                    demoted,
                    since_s,
                    guarded,
                    part,
                    cost,
                    rate,
                    is_elastic,
                )
            )
        self._stays[node] = stays
        found.sort()  # no two have the same order of submission, so nothing behind it is compared
        return found

    def _room(self, node: str) -> Pool:
        """A node as it will be when all have ended that end already."""
        state = self._kernel.state
        if not state.stopping:
            return state.resources.pools[node]
        found = self._rooms.get(node)
        if found is None:
            found = self._rooms[node] = self._with_what_comes(node)
        return found

    def _with_what_comes(self, node: str) -> Pool:
        state = self._kernel.state
        pool, room = state.resources.pools[node], None
        for task_id in state.on_node.get(node, ()):
            held = state.tasks[task_id].allocation if task_id in state.stopping else None
            part = held.on(node) if held is not None else None
            if part is not None:
                room = room or pool.copy()
                room.release(part)
        return room or pool

    def least(self, node: str, request: Resources) -> int | None:
        """No less than that is taken back (`Candidate.cost`) where somebody gives way for `request`
        on a node, if anybody can; None where it may have room without that.
        """
        room, held = self._room(node).free, self.held.get(node, NOTHING)
        gpu = request.gpu - room.gpu + held.gpu
        if request.gpu and gpu > 0:
            return gpu
        lacks = (request.cpu and request.cpu > room.cpu - held.cpu) or (
            request.memory and request.memory > room.memory - held.memory
        )
        return 0 if lacks else None

    def behind(self, node: str, first: Task) -> list[Candidate]:
        """Those on a node that stand behind an overdue task when they wait again, by their wait."""
        since = first.queued - first.waited_s
        found: list[Candidate] = []
        for candidate in self.on(node):
            if candidate.guarded:
                higher = candidate.priority < first.spec.priority
                replica = higher and first.kind is Kind.SERVE
                if not higher or not (replica or not self._is_guarded(candidate)):
                    continue
            if candidate.task.waited_s < self.now - since:
                found.append(candidate)
            else:
                self._not_before(node, since + candidate.task.waited_s)
        return found

    def times_given_way(self, task_id: str, now: float) -> int:
        """How often a task has given way within the last hour."""
        return sum(at > now - HOUR_S for at in self.given_way.get(task_id, ()))

    def _too_often(self, task_id: str, node: str) -> bool:
        times = self.given_way.get(task_id)
        if times is None:
            return False
        if times[0] <= self.now - HOUR_S:
            times = tuple(at for at in times if at > self.now - HOUR_S)
            if not times:
                del self.given_way[task_id]
                return False
            self.given_way[task_id] = times
        if len(times) < self._kernel.config.preemptions_per_hour:
            return False
        self._not_before(node, times[0] + HOUR_S)
        return True

    def able(self, node: str, need: Need) -> list[Candidate]:
        """Who on a node gives way to such a need; the others may do so later."""
        here = self._look(node)
        kind = need[:3]
        if kind not in here.able:
            here.able[kind] = self._able(node, need, here.candidates)
        return here.able[kind]

    def _able(self, node: str, need: Need, candidates: list[Candidate]) -> list[Candidate]:
        config, now = self._kernel.config, self.now
        equals_stay = need.demoted or not config.slice_s
        found: list[Candidate] = []
        later = math.inf
        for candidate in candidates:
            if candidate.priority > need.priority:
                break  # they are in order
            if candidate.priority < need.priority:
                if need.replica or not self._is_guarded(candidate):
                    found.append(candidate)
                continue
            if candidate.guarded:
                continue
            if candidate.is_elastic:
                lent = elastic.lent(candidate.task)
                if lent is not None and lent.node == node:
                    found.append(candidate._replace(part=lent))
                    continue
            if equals_stay:
                continue
            stays = now - candidate.since_s + config.slice_residence_s
            if candidate.demoted and stays <= now:
                found.append(candidate)
            elif candidate.demoted:
                later = min(later, stays)
            elif candidate.rate > 0:
                short_s = (config.slice_s + candidate.service_s) / candidate.rate
                later = min(later, max(stays, now + short_s))
        self._not_before(node, later)
        return found

    def _is_guarded(self, candidate: Candidate) -> bool:
        """Whether it needn't give way to a higher priority yet."""
        if not candidate.guarded:
            return False
        node = candidate.part.node
        if candidate.task.id not in self._kernel.state.overdue_running:
            return True  # too often: `_too_often` has noted when that is over
        stays = self.now - candidate.since_s + self._kernel.config.slice_residence_s
        if stays > self.now:
            self._not_before(node, stays)
        return stays > self.now or self._too_often(candidate.task.id, node)

    def order_until(self, node: str, need: Need) -> float:
        """Until when those who give way to a need do so in the same order: who has more devices
        overtakes who has had more service.
        """
        end = math.inf
        able = self.able(node, need)
        for before, after in itertools.pairwise(able):
            faster = after.rate - before.rate
            if before.priority == after.priority and faster > 0:
                had_more = after.service_s - before.service_s
                end = min(end, self.now + had_more / faster - ROUNDING_S)
        return max(end, self.now)

    # -- what for

    def enough(
        self, node: str, request: Resources, there: list[Candidate], held: Resources
    ) -> list[Candidate] | None:
        """Those whose end makes room for `request` on a node: none needed, or None if impossible.

        Counted is what is free, and what those that end already will give back, less what is held
        back for others.
        """
        base = self._room(node)
        if not there:
            return [] if base.would_fit(request, held) else None
        if not admits(base.node, request):
            return None
        trial = Trial(base, request, held)
        chosen: list[Candidate] = []
        for candidate in there:
            if trial.fits:
                break
            trial.release(candidate.part)
            chosen.append(candidate)
        if not trial.fits:
            return None
        if len(chosen) > 1:  # the only one is needed
            for candidate in sorted(chosen, key=lambda c: c.part.resources.gpu):
                if trial.fits_without(candidate.part):
                    chosen.remove(candidate)
        return chosen

    def fits_with(self, node: str, request: Resources, back: list[Allocation]) -> bool:
        """Whether there is room for `request` on a node with what is given back there."""
        room = self._room(node).copy()
        for part in back:
            if part.node == node:
                room.release(part)
        return room.would_fit(request, self.held.get(node, NOTHING))
