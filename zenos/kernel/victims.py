"""Preemption: who gives way to what waits, and when."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from zenos.core import priority
from zenos.core.resources import Resources
from zenos.core.task import State, Task
from zenos.kernel import scheduler
from zenos.kernel.resource_manager import Pool
from zenos.kernel.scheduler import BucketKey, Claim, Entry

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

HOUR_S = 3600.0


class Candidate(NamedTuple):
    """A running task that can be suspended, with what decides whether it is. Smaller goes first.

    priority: its base priority; service_s: what it has had, negative so that most goes first.
    """

    priority: int
    service_s: float
    order: int
    task: Task
    demoted: bool
    since_s: float  # the length of its present stay


class Preemption:
    """Suspends tasks that can yield for others that wait.

    A claim holds what they give back for whom they gave way to. Claims, and how often a task has
    given way, are not stored: after a restart both are decided anew.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._given_way: dict[str, deque[float]] = {}
        self._wake = math.inf

    def make_room(self, now: float) -> None:
        """After scheduling: suspend what has to give way to what could not start.

        1. Claims end with their task's start or end, or when all who gave way are gone.
        2. Candidates are running tasks that can save their state, have stayed their minimum time,
           are not overdue themselves, and have not given way too often in the last hour.
        3. First the overdue task with the reservation: any candidate gives way to it.
        4. Then the heads of the queue by score: those of a lower base priority give way to it, and
           among equals the ones that have had their share of service (`slice_s`) to it if it has
           not. That is the hysteresis: no task ever gives way to one that has had as much.
        5. On the node where the fewest devices are taken back; there the lowest priority first,
           then who has had most service; nobody who turns out not to be needed.
        """
        state = self._kernel.state
        self._wake = math.inf
        self._drop_claims()  # 1
        if not len(state.scheduler.queue) or self._kernel.draining:
            return
        reservation = state.scheduler.reservation
        entries = self._entries(now)
        if reservation is None and not entries:
            return
        candidates = self._candidates(now)  # 2
        if reservation is not None and candidates:  # 3
            pool = state.resources.pools[reservation.node]
            request = state.tasks[reservation.task].spec.resources
            chosen = self._enough(pool, request, candidates, reservation.task)
            if chosen:
                candidates = self._suspend(chosen, reservation.task, candidates, now)
        self._make_room_for(entries, candidates, now)  # 4

    def next_wake(self, now: float) -> float:
        """When somebody who may have to give way has stayed long enough."""
        return self._wake if self._wake > now else math.inf

    # -- who may have to

    def _drop_claims(self) -> None:
        state = self._kernel.state
        for task_id, claim in list(state.scheduler.claims.items()):
            there = any(
                task in state.holding and state.tasks[task].generation == generation
                for task, generation in claim.victims
            )
            if not there or task_id not in state.scheduler.queue:
                del state.scheduler.claims[task_id]

    def _candidates(self, now: float) -> list[Candidate]:
        state, config = self._kernel.state, self._kernel.config
        found: list[Candidate] = []
        for task_id in state.holding:
            task = state.tasks[task_id]
            if not task.can_save or task.state is not State.RUNNING or task.stopping:
                continue
            if task_id in state.overdue_running or task.running is None:
                continue
            if self._too_often(task_id, now):
                continue
            since_s = now - task.running
            if since_s < config.residence_s:
                self._wake = min(self._wake, task.running + config.residence_s)
                continue
            had_s = priority.service_s(task.ran_s + since_s, task.spec.resources)
            demoted = bool(config.slice_s) and had_s >= config.slice_s
            order = scheduler.order_of(task_id)
            found.append(Candidate(task.spec.priority, -had_s, order, task, demoted, since_s))
        return sorted(found, key=lambda c: c[:3])

    def _too_often(self, task_id: str, now: float) -> bool:
        times = self._given_way.get(task_id)
        if times is None:
            return False
        while times and times[0] <= now - HOUR_S:
            times.popleft()
        if not times:
            del self._given_way[task_id]
            return False
        if len(times) < self._kernel.config.preemptions_per_hour:
            return False
        self._wake = min(self._wake, times[0] + HOUR_S)
        return True

    def _able(self, key: BucketKey, candidates: list[Candidate], now: float) -> list[Candidate]:
        """Who gives way to a task with such a key; the others may do so later."""
        config = self._kernel.config
        found: list[Candidate] = []
        for candidate in candidates:
            if candidate.priority > key.priority:
                break  # they are in order
            if candidate.priority < key.priority:
                found.append(candidate)
                continue
            if key.demoted or not config.slice_s:
                break
            stays = now - candidate.since_s + config.slice_residence_s
            devices = priority.service_s(1.0, candidate.task.spec.resources)
            if candidate.demoted and stays <= now:
                found.append(candidate)
            elif candidate.demoted:
                self._wake = min(self._wake, stays)
            elif devices > 0:
                short_s = (config.slice_s + candidate.service_s) / devices
                self._wake = min(self._wake, max(stays, now + short_s))
        return found

    # -- who has to

    def _entries(self, now: float) -> list[Entry]:
        """The heads of the queue that somebody might give way to, by score."""
        state = self._kernel.state
        lowest = min((state.tasks[task_id].spec.priority for task_id in state.holding), default=0)
        return [
            ranked.entry
            for ranked in state.scheduler.ranking(now)
            if (not ranked.entry.key.demoted or ranked.entry.key.priority > lowest)
            and ranked.entry.task not in state.scheduler.claims
        ]

    def _make_room_for(self, entries: list[Entry], candidates: list[Candidate], now: float) -> None:
        """In order. What found no room for one request finds none for another that is the same."""
        able: dict[tuple[int, bool], list[Candidate]] = {}
        vain: set[tuple[int, bool, Resources]] = set()
        for entry in entries:
            kind = (entry.key.priority, entry.key.demoted)
            if (*kind, entry.key.request) in vain:
                continue
            if kind not in able:
                able[kind] = self._able(entry.key, candidates, now)
            chosen = self._for(entry, able[kind], now) if able[kind] else []
            if chosen:
                able = {k: [c for c in those if c not in chosen] for k, those in able.items()}
            else:
                vain.add((*kind, entry.key.request))

    def _for(self, entry: Entry, able: list[Candidate], now: float) -> list[Candidate]:
        """Make room for one waiting task; who was suspended: nobody where that doesn't help."""
        state = self._kernel.state
        best: tuple[float, str, list[Candidate]] | None = None
        for name in sorted({c.task.allocation.node for c in able if c.task.allocation}):
            chosen = self._enough(state.resources.pools[name], entry.key.request, able, entry.task)
            if chosen is None:
                continue
            if not chosen:
                return []  # what it needs comes back without anybody's giving way
            cost = sum(priority.service_s(1.0, c.task.spec.resources) for c in chosen)
            if best is None or cost < best[0]:
                best = (cost, name, chosen)
        if best is None:
            return []
        _, name, chosen = best
        victims = frozenset((c.task.id, c.task.generation) for c in chosen)
        state.scheduler.claims[entry.task] = Claim(name, entry.key.request, victims)
        self._suspend(chosen, entry.task, able, now)
        return chosen

    def _enough(
        self, pool: Pool, request: Resources, candidates: list[Candidate], task_id: str
    ) -> list[Candidate] | None:
        """Those whose end makes room for `request` on a node: none needed, or None if impossible.

        Counted is what is free, and what those that end already will give back, less what is held
        back for others.
        """
        state = self._kernel.state
        there = [c for c in candidates if c.task.allocation and self._on(c.task, pool)]
        held = state.scheduler.reserved(task_id).get(pool.node.name, Resources())
        room = pool.copy()
        for other in (state.tasks[holder] for holder in state.holding):
            if other.stopping and other.allocation is not None and self._on(other, pool):
                room.release(other.allocation)
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

    @staticmethod
    def _on(task: Task, pool: Pool) -> bool:
        return task.allocation is not None and task.allocation.node == pool.node.name

    def _suspend(
        self, chosen: list[Candidate], waiting: str, candidates: list[Candidate], now: float
    ) -> list[Candidate]:
        for candidate in chosen:
            self._given_way.setdefault(candidate.task.id, deque()).append(now)
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
