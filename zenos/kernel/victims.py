"""Preemption: who gives way to what waits, and when."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from zenos.core import priority
from zenos.core.resources import Resources
from zenos.core.task import Kind, State, Task
from zenos.kernel import preemption, scheduler
from zenos.kernel.resource_manager import Pool
from zenos.kernel.scheduler import BucketKey, Claim, Entry

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

HOUR_S = 3600.0
ROUNDING_S = 0.001


class Candidate(NamedTuple):
    """A running task that can be suspended, with what decides whether it is. Smaller goes first.

    priority: its base priority; service_s: what it has had, negative so that most goes first.
    guarded: it started as overdue, or has given way too often of late: it doesn't give way to
    equals, nor, for a while, to tasks of a higher priority; to requests for a model it does.
    """

    priority: int
    service_s: float
    order: int
    task: Task
    demoted: bool
    since_s: float  # the length of its present stay
    guarded: bool = False


class Preemption:
    """Suspends tasks that can yield for others that wait.

    A claim holds what they give back for whom they gave way to. Claims, and how often a task has
    given way, are not stored: after a restart both are decided anew.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.given_way: dict[str, deque[float]] = {}
        self._wake = math.inf
        self._rooms: dict[str, Pool] = {}

    def renew_claims(self) -> None:
        """Before scheduling: claims end with their task's, and count what is still to come back."""
        state = self._kernel.state
        for task_id, claim in list(state.scheduler.claims.items()):
            if task_id not in state.scheduler.queue:
                del state.scheduler.claims[task_id]
                continue
            still = (
                state.tasks[task].allocation
                for task, generation in claim.victims
                if task in state.holding and state.tasks[task].generation == generation
            )
            coming = sum((a.resources for a in still if a is not None), Resources())
            state.scheduler.claims[task_id] = claim._replace(coming=coming)
        for task in state.changes.tasks.values():
            if task.is_ended:
                self.given_way.pop(task.id, None)

    def drop_claims(self) -> bool:
        """After scheduling: drop claims of who hasn't started although all who gave way are gone.

        Whether there were any: what they held back is for others.
        """
        claims = self._kernel.state.scheduler.claims
        spent = [task_id for task_id, claim in claims.items() if claim.coming == Resources()]
        for task_id in spent:
            del claims[task_id]
        return bool(spent)

    def make_room(self, now: float) -> None:
        """After scheduling: suspend what has to give way to what could not start.

        1. Candidates are running tasks that can save their state and have stayed their minimum
           time. Guarded are those that started as overdue, for `slice_residence_s`, and those that
           have given way too often in the last hour; but not against replicas, whose requests have
           a deadline, and against equals for as long as they run.
        2. Paused tasks that are to go on stand before everything queued: those give way to one, on
           its node, that would give way to it in the queue.
        3. Then the overdue task with the reservation: any candidate gives way to it that will not
           stand before it again at once, having waited for longer.
        4. Then the heads of the queue by score: those of a lower base priority give way to it, and
           among equals the ones that have had their share of service (`slice_s`) to it if it has
           not. That is the hysteresis: no task ever gives way to one that has had as much.
        5. On the node where the fewest devices are taken back; there the lowest priority first,
           then who has had most service; nobody who turns out not to be needed.
        """
        state = self._kernel.state
        self._wake = math.inf
        waiting = preemption.waiting(self._kernel)
        if self._kernel.draining or not (waiting or len(state.scheduler.queue)):
            return
        reservation = state.scheduler.reservation
        entries = self._entries(now)
        if reservation is None and not entries and not waiting:
            return
        candidates = self._candidates(now)  # 1
        self._rooms = self._come()
        candidates = self._let_go_on(waiting, candidates, now)  # 2
        if reservation is not None and candidates:  # 3
            first = state.tasks[reservation.task]
            held = state.scheduler.reserved(first.id, ahead=True)
            behind = _by_node(self._behind(first, candidates, now)).get(reservation.node, [])
            kept = held.get(reservation.node, Resources())
            chosen = self._enough(reservation.node, first.spec.resources, behind, kept)
            if chosen:
                candidates = self._suspend(chosen, first.id, candidates, now)
        self._make_room_for(entries, candidates, now)  # 4

    def next_wake(self, now: float) -> float:
        """When somebody who may have to give way has stayed long enough.

        What should be over by now and isn't, is so by rounding alone: a moment later it is.
        """
        return max(self._wake, now + ROUNDING_S)

    # -- who may have to

    def _candidates(self, now: float) -> list[Candidate]:
        state, config = self._kernel.state, self._kernel.config
        found: list[Candidate] = []
        for task_id in state.holding:
            task = state.tasks[task_id]
            if not task.can_save or task.state is not State.RUNNING or task.stopping:
                continue
            if task.running is None or not config.preemptions_per_hour:
                continue
            if task.allocation is None or task.allocation.node not in state.resources.pools:
                continue  # left running by a daemon of another node's name
            since_s = now - task.running
            guarded = self._too_often(task_id, now) or task_id in state.overdue_running
            if since_s < config.residence_s:
                self._wake = min(self._wake, task.running + config.residence_s)
                continue
            had_s = priority.service_s(task.ran_s + since_s, task.spec.resources)
            demoted = bool(config.slice_s) and had_s >= config.slice_s
            order = scheduler.order_of(task_id)
            found.append(
                Candidate(task.spec.priority, -had_s, order, task, demoted, since_s, guarded)
            )
        return sorted(found, key=lambda c: c[:3])

    def _let_go_on(
        self, waiting: list[Task], candidates: list[Candidate], now: float
    ) -> list[Candidate]:
        """Make room for the CPU of paused tasks; it is held back for them. Who is left."""
        kept: dict[str, Resources] = {}
        for task in waiting:
            if task.allocation is None or task.allocation.node not in self._rooms:
                continue
            node, wants = task.allocation.node, Resources(cpu=task.spec.resources.cpu)
            demoted = scheduler.is_demoted(task, task.ran_s, self._kernel.config)
            key = BucketKey(task.spec.priority, task.principal.user, 0, wants, demoted)
            able = _by_node(self._able(key, candidates, now)).get(node, [])
            chosen = self._enough(node, wants, able, kept.get(node, Resources()))
            if chosen:
                candidates = self._suspend(chosen, task.id, candidates, now)
            kept[node] = kept.get(node, Resources()) + wants
        return candidates

    def _behind(self, first: Task, candidates: list[Candidate], now: float) -> list[Candidate]:
        """Those that stand behind an overdue task when they wait again, by what they had waited."""
        since = first.queued - first.waited_s
        found: list[Candidate] = []
        for candidate in candidates:
            if candidate.guarded:
                stays = now - candidate.since_s + self._kernel.config.slice_residence_s
                higher = candidate.priority < first.spec.priority
                replica = higher and first.kind is Kind.SERVE
                if not higher or not (replica or not self._is_guarded(candidate, stays, now)):
                    continue
            if candidate.task.waited_s < now - since:
                found.append(candidate)
            else:
                self._wake = min(self._wake, since + candidate.task.waited_s)
        return found

    def times_given_way(self, task_id: str, now: float) -> int:
        """How often a task has given way within the last hour."""
        return sum(at > now - HOUR_S for at in self.given_way.get(task_id, ()))

    def _too_often(self, task_id: str, now: float) -> bool:
        times = self.given_way.get(task_id)
        if times is None:
            return False
        while times and times[0] <= now - HOUR_S:
            times.popleft()
        if not times:
            del self.given_way[task_id]
            return False
        if len(times) < self._kernel.config.preemptions_per_hour:
            return False
        self._wake = min(self._wake, times[0] + HOUR_S)
        return True

    def _able(
        self, key: BucketKey, candidates: list[Candidate], now: float, *, replica: bool = False
    ) -> list[Candidate]:
        """Who gives way to a task with such a key; the others may do so later."""
        config = self._kernel.config
        found: list[Candidate] = []
        for candidate in candidates:
            if candidate.priority > key.priority:
                break  # they are in order
            stays = now - candidate.since_s + config.slice_residence_s
            if candidate.priority < key.priority:
                if replica or not self._is_guarded(candidate, stays, now):
                    found.append(candidate)
                continue
            if key.demoted or not config.slice_s:
                break
            if candidate.guarded:
                continue
            devices = priority.service_s(1.0, candidate.task.spec.resources)
            if candidate.demoted and stays <= now:
                found.append(candidate)
            elif candidate.demoted:
                self._wake = min(self._wake, stays)
            elif devices > 0:
                short_s = (config.slice_s + candidate.service_s) / devices
                self._wake = min(self._wake, max(stays, now + short_s))
        return found

    def _is_guarded(self, candidate: Candidate, stays: float, now: float) -> bool:
        """Whether it needn't give way to a higher priority yet; stays: until when at least."""
        if not candidate.guarded:
            return False
        if candidate.task.id not in self._kernel.state.overdue_running:
            return True  # too often: `_too_often` has set when that is over
        if stays > now:
            self._wake = min(self._wake, stays)
        return stays > now or self._too_often(candidate.task.id, now)

    # -- who has to

    def _entries(self, now: float) -> list[Entry]:
        """The heads of the queue that somebody might give way to: overdue ones, then by score.

        Who is overdue and beyond the share of such work has no fewer rights than it had before.
        """
        state = self._kernel.state
        lowest = min((state.tasks[task_id].spec.priority for task_id in state.holding), default=0)
        reservation = state.scheduler.reservation
        first = reservation.task if reservation is not None else None
        ranked = (ranked.entry for ranked in state.scheduler.ranking(now))
        return [
            entry
            for entry in (*state.scheduler.queue.overdue_heads(), *ranked)
            if (not entry.key.demoted or entry.key.priority > lowest)
            and entry.task not in state.scheduler.claims
            and entry.task != first
        ]

    def _make_room_for(self, entries: list[Entry], candidates: list[Candidate], now: float) -> None:
        """In order. What found no room for one request finds none for another that is the same."""
        able: dict[tuple[int, bool, bool], dict[str, list[Candidate]]] = {}
        vain: set[tuple[int, bool, bool, Resources]] = set()
        gone: set[str] = set()
        held = self._kernel.state.scheduler.reserved(ahead=True)
        for entry in entries:
            replica = self._kernel.state.tasks[entry.task].kind is Kind.SERVE
            kind = (entry.key.priority, entry.key.demoted, replica)
            if (*kind, entry.key.request) in vain:
                continue
            if kind not in able:
                left = [c for c in candidates if c.task.id not in gone]
                able[kind] = _by_node(self._able(entry.key, left, now, replica=replica))
            node, chosen = self._for(entry, able[kind], held)
            if not chosen:
                vain.add((*kind, entry.key.request))
                continue
            self._claim(node, chosen, entry)
            held[node] = held.get(node, Resources()) + entry.key.request
            self._suspend(chosen, entry.task, candidates, now)
            gone.update(c.task.id for c in chosen)
            for those in able.values():
                those[node] = [c for c in those.get(node, []) if c.task.id not in gone]

    def _for(
        self, entry: Entry, able: dict[str, list[Candidate]], held: dict[str, Resources]
    ) -> tuple[str, list[Candidate]]:
        """Who gives way to one waiting task, and where: nobody where that doesn't help.

        Nor where what it needs comes back on some node without anybody's giving way.
        """
        if not any(able.values()):
            return "", []
        best: tuple[float, str, list[Candidate]] | None = None
        for name in sorted(self._rooms):
            kept = held.get(name, Resources())
            chosen = self._enough(name, entry.key.request, able.get(name, []), kept)
            if chosen is None:
                continue
            if not chosen:
                return name, []
            cost = sum(priority.service_s(1.0, c.task.spec.resources) for c in chosen)
            if best is None or cost < best[0]:
                best = (cost, name, chosen)
        return best[1:] if best is not None else ("", [])

    def _claim(self, node: str, chosen: list[Candidate], entry: Entry) -> None:
        victims = frozenset((c.task.id, c.task.generation) for c in chosen)
        coming = sum((c.task.spec.resources for c in chosen), Resources())
        claim = Claim(node, entry.key.request, victims, coming)
        self._kernel.state.scheduler.claims[entry.task] = claim

    def _come(self) -> dict[str, Pool]:
        """The nodes as they will be when all have ended that end already."""
        state = self._kernel.state
        rooms = {name: pool.copy() for name, pool in state.resources.pools.items()}
        for task in (state.tasks[task_id] for task_id in state.holding):
            if task.stopping and task.allocation is not None and task.allocation.node in rooms:
                rooms[task.allocation.node].release(task.allocation)
        return rooms

    def _enough(
        self, name: str, request: Resources, there: list[Candidate], held: Resources
    ) -> list[Candidate] | None:
        """Those whose end makes room for `request` on a node: none needed, or None if impossible.

        Counted is what is free, and what those that end already will give back, less what is held
        back for others.
        """
        base = self._rooms[name]
        total = sum((c.task.spec.resources for c in there), base.free)
        if not request.fits_in(total.without(held)):
            return None
        room = base.copy()
        chosen: list[Candidate] = []
        for candidate in there:
            if room.would_fit(request, held):
                break
            assert candidate.task.allocation is not None  # noqa: S101 - those there have one
            room.release(candidate.task.allocation)
            chosen.append(candidate)
        if not room.would_fit(request, held):
            return None
        for candidate in sorted(chosen, key=lambda c: c.task.spec.resources.gpu):
            assert candidate.task.allocation is not None  # noqa: S101 - as above
            room.occupy(candidate.task.allocation)
            if room.would_fit(request, held):
                chosen.remove(candidate)
            else:
                room.release(candidate.task.allocation)
        return chosen

    def _suspend(
        self, chosen: list[Candidate], waiting: str, candidates: list[Candidate], now: float
    ) -> list[Candidate]:
        for candidate in chosen:
            assert candidate.task.allocation is not None  # noqa: S101 - as above
            self._rooms[candidate.task.allocation.node].release(candidate.task.allocation)
            self.given_way.setdefault(candidate.task.id, deque()).append(now)
            saving = replace(candidate.task, state=State.SUSPENDING)
            self._kernel.stop(
                candidate.task,
                "suspend",
                now,
                into=saving,
                event="suspending",
                detail=f"gives way to {waiting}",
            )
        return [c for c in candidates if c not in chosen]


def _by_node(candidates: list[Candidate]) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        assert candidate.task.allocation is not None  # noqa: S101 - candidates have one
        found.setdefault(candidate.task.allocation.node, []).append(candidate)
    return found
