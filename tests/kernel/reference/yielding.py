"""Who gives way, told from all running tasks and all nodes, each time."""

from __future__ import annotations

import math
from typing import NamedTuple

from msgspec.structs import replace

from tests.kernel.reference.quotas import ReferenceQuotas
from zenos.core import priority
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Kind, State, Task
from zenos.kernel import elastic, preemption
from zenos.kernel.entries import BucketKey, Entry, by_wait, is_demoted, order_of
from zenos.kernel.pool import Pool
from zenos.kernel.scheduler import Claim, Place
from zenos.kernel.step import Kernel
from zenos.kernel.victims import Preemption

HOUR_S = 3600.0
ROUNDING_S = 0.001


class Candidate(NamedTuple):
    """As the kernel's, without a node."""

    priority: int
    service_s: float
    order: int
    task: Task
    demoted: bool
    since_s: float
    guarded: bool = False
    lent: Allocation | None = None  # what alone it gives up of what it holds

    @property
    def part(self) -> Allocation:
        assert self.task.allocation is not None
        return self.lent or self.task.allocation


class ReferencePreemption(Preemption):
    """Suspends tasks that can yield for others that wait.

    A claim holds what they give back for whom they gave way to. Claims, and how often a task has
    given way, are not stored: after a restart both are decided anew.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.times = self.given_way
        self._wake = math.inf
        self._rooms: dict[str, Pool] = {}

    def renew_claims(self) -> None:
        state = self._kernel.state
        for task_id, claim in list(state.scheduler.claims.items()):
            pool = state.resources.pools.get(claim.node)
            there = pool is not None and pool.node.takes_work
            if task_id not in state.scheduler.queue or not there:
                del state.scheduler.claims[task_id]
                continue
            still = [
                state.tasks[task]
                for task, generation in sorted(claim.victims)
                if task in state.holding and state.tasks[task].generation == generation
            ]
            held = [task.allocation for task in still]
            here = [a.resources for a in held if a is not None and a.node == claim.node]
            coming = sum(here, Resources())
            place = claim.places[0]._replace(coming=coming)
            claim = claim._replace(places=(place,), gives=_gives(still))
            state.scheduler.claims[task_id] = claim
        for task in state.changes.tasks.values():
            if task.is_ended:
                self.times.pop(task.id, None)

    def make_room(self, now: float) -> None:
        state = self._kernel.state
        self._wake = math.inf
        self._left, self._waits = self.at_once, True
        waiting = preemption.waiting(self._kernel)
        if self._kernel.draining or not (waiting or len(state.scheduler.queue)):
            return
        reservation = state.scheduler.reservation
        entries, closed = self._entries(now), self._closed(now)
        if reservation is None and not entries and not waiting and not closed:
            return
        candidates = self._all_candidates(now)  # 1
        self._rooms = self._come()
        candidates = self._let_go_on(waiting, candidates, now)  # 2
        if reservation is not None and candidates:  # 3
            first = state.tasks[reservation.task]
            held = state.scheduler.reserved(first.id, ahead=True)
            behind = _by_node(self._behind(first, candidates, now)).get(reservation.node, [])
            kept = held.get(reservation.node, Resources())
            chosen = self._enough(reservation.node, first.spec.request, behind, kept)
            if chosen:
                candidates = self._suspend(chosen, first.id, candidates, now)
        held = state.scheduler.reserved(ahead=True)
        candidates = self._make_room_for(entries, candidates, held, now)  # 4
        self._make_room_in_quotas(closed, candidates, held, now)  # 5

    def next_wake(self, now: float) -> float:
        if self.is_cut:
            return now
        return max(self._wake, now + ROUNDING_S)

    # -- who may have to

    def _all_candidates(self, now: float) -> list[Candidate]:
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
            order = order_of(task_id)
            found.append(
                Candidate(task.spec.priority, -had_s, order, task, demoted, since_s, guarded)
            )
        return sorted(found, key=lambda c: c[:3])

    def _let_go_on(
        self, waiting: list[Task], candidates: list[Candidate], now: float
    ) -> list[Candidate]:
        kept: dict[str, Resources] = {}
        for task in waiting:
            if task.allocation is None or task.allocation.node not in self._rooms:
                continue
            node, wants = task.allocation.node, Resources(cpu=task.granted.cpu)
            demoted = is_demoted(task, task.ran_s, self._kernel.config)
            key = BucketKey(task.spec.priority, task.principal.user, 0, wants, demoted)
            able = _by_node(self._able(key, candidates, now)).get(node, [])
            chosen = self._enough(node, wants, able, kept.get(node, Resources()))
            if chosen:
                candidates = self._suspend(chosen, task.id, candidates, now)
            kept[node] = kept.get(node, Resources()) + wants
        return candidates

    def _behind(self, first: Task, candidates: list[Candidate], now: float) -> list[Candidate]:
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
        return sum(at > now - HOUR_S for at in self.times.get(task_id, ()))

    def _too_often(self, task_id: str, now: float) -> bool:
        times = self.times.get(task_id)
        if times is None:
            return False
        times = self.times[task_id] = tuple(at for at in times if at > now - HOUR_S)
        if not times:
            del self.times[task_id]
            return False
        if len(times) < self._kernel.config.preemptions_per_hour:
            return False
        self._wake = min(self._wake, times[0] + HOUR_S)
        return True

    def _able(
        self, key: BucketKey, candidates: list[Candidate], now: float, *, replica: bool = False
    ) -> list[Candidate]:
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
            lent = None if candidate.guarded else elastic.lent(candidate.task)
            if lent is not None:
                found.append(candidate._replace(lent=lent))
                continue
            if key.demoted or not config.slice_s or candidate.guarded:
                continue
            devices = priority.service_s(1.0, candidate.task.granted)
            if candidate.demoted and stays <= now:
                found.append(candidate)
            elif candidate.demoted:
                self._wake = min(self._wake, stays)
            elif devices > 0:
                short_s = (config.slice_s + candidate.service_s) / devices
                self._wake = min(self._wake, max(stays, now + short_s))
        return found

    def _is_guarded(self, candidate: Candidate, stays: float, now: float) -> bool:
        if not candidate.guarded:
            return False
        if candidate.task.id not in self._kernel.state.overdue_running:
            return True  # too often: `_too_often` has set when that is over
        if stays > now:
            self._wake = min(self._wake, stays)
        return stays > now or self._too_often(candidate.task.id, now)

    # -- who has to

    def _entries(self, now: float) -> list[Entry]:
        state = self._kernel.state
        reservation = state.scheduler.reservation
        first = reservation.task if reservation is not None else None
        ranked = (ranked.entry for ranked in state.scheduler.ranking(now))
        return [
            entry
            for entry in (*state.scheduler.queue.overdue_heads(), *ranked)
            if entry.task not in state.scheduler.claims and entry.task != first
        ]

    def _make_room_for(
        self,
        entries: list[Entry],
        candidates: list[Candidate],
        held: dict[str, Resources],
        now: float,
    ) -> list[Candidate]:
        able: dict[tuple[int, bool, bool], dict[str, list[Candidate]]] = {}
        vain: set[tuple[int, bool, bool, Resources]] = set()
        gone: set[str] = set()
        for entry in entries:
            replica = self._kernel.state.tasks[entry.task].kind is Kind.SERVE
            kind = (entry.key.priority, entry.key.demoted, replica)
            if self._left <= 0:
                break
            if (*kind, entry.key.request) in vain or not self._may_have(entry):
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
        return [c for c in candidates if c.task.id not in gone]

    # -- what a quota has no room for

    def _closed(self, now: float) -> list[Entry]:
        scheduler = self._kernel.state.scheduler
        heads, contention = scheduler.queue.closed_heads(lambda *_: 0.0), scheduler.contention()
        late = [entry for entry in heads if entry in scheduler.queue.overdue]
        others = [scheduler.queue.rank(e, now, contention) for e in heads if e not in late]
        return [*sorted(late, key=by_wait), *(ranked.entry for ranked in sorted(others))]

    def _make_room_in_quotas(
        self,
        entries: list[Entry],
        candidates: list[Candidate],
        held: dict[str, Resources],
        now: float,
    ) -> None:
        """Tasks of the same owner give way, wherever they are, if it has a place then."""
        vain: set[object] = set()
        for entry in entries:
            kind = (entry.key.user, entry.key.project, entry.key.want)
            if self._left <= 0:
                break
            if kind in vain or entry.task in self._kernel.state.scheduler.claims:
                continue
            replica = self._kernel.state.tasks[entry.task].kind is Kind.SERVE
            able = self._able(entry.key, candidates, now, replica=replica)
            chosen = self._of_owner(entry, able)
            node, others = self._beside(entry, chosen, able, held) if chosen else ("", [])
            if not node:
                vain.add(kind)
                continue
            chosen = [*others, *(c for c in chosen if c not in others)]
            self._claim(node, chosen, entry)
            held[node] = held.get(node, Resources()) + entry.key.request
            candidates = self._suspend(chosen, entry.task, candidates, now)
            ids = {c.task.id for c in chosen}
            candidates = [c for c in candidates if c.task.id not in ids]

    def _of_owner(self, entry: Entry, able: list[Candidate]) -> list[Candidate]:
        key, state = entry.key, self._kernel.state
        quotas = ReferenceQuotas(self._kernel)
        claims = state.scheduler.claims.keys() | {
            r.task for r in [state.scheduler.reservation] if r is not None
        }
        promised = [state.tasks[t] for t in claims - {entry.task} if t in state.scheduler.queue]
        ending = [state.tasks[t] for t in state.holding if state.tasks[t].stopping]

        def lack(those: list[Candidate]) -> tuple[str, str, str] | None:
            more = [(task.principal, task.spec.request) for task in promised]
            less = [(task.principal, task.granted) for task in ending]
            less += [(c.task.principal, c.part.total) for c in those]
            return quotas.lacks(key.user, key.project, key.request, more, less)

        own = [c for c in able if c.priority < key.priority or c.lent is not None]
        chosen: list[Candidate] = []
        while (missing := lack(chosen)) is not None:
            kind, name, what = missing
            helps = [
                c
                for c in own
                if getattr(c.task.principal, kind) == name
                and getattr(c.part.total, what, 0) > 0
                and c not in chosen
            ]
            if not helps:
                return []
            chosen.append(helps[0])
        for candidate in chosen[::-1]:
            if lack([c for c in chosen if c is not candidate]) is None:
                chosen = [c for c in chosen if c is not candidate]
        return chosen

    def _beside(
        self,
        entry: Entry,
        chosen: list[Candidate],
        able: list[Candidate],
        held: dict[str, Resources],
    ) -> tuple[str, list[Candidate]]:
        """A node, and who else has to give way there."""
        for node in sorted({c.part.node for c in chosen}):
            room = self._rooms[node].copy()
            for candidate in chosen:
                if candidate.part.node == node:
                    room.release(candidate.part)
            if room.would_fit(entry.key.request, held.get(node, Resources())):
                return node, []
        return self._for(entry, _by_node(able), held)

    def _may_have(self, entry: Entry) -> bool:
        state = self._kernel.state
        first = state.scheduler.reservation
        promised = {*state.scheduler.claims, *([first.task] if first is not None else [])}
        beside = [state.tasks[task] for task in promised - {entry.task}]
        owner = state.tasks[entry.task].principal
        quotas = ReferenceQuotas(self._kernel)
        waiting = [task for task in beside if task.id in state.scheduler.queue]
        return quotas.fits(owner.user, owner.project, entry.key.request, waiting)

    def _for(
        self, entry: Entry, able: dict[str, list[Candidate]], held: dict[str, Resources]
    ) -> tuple[str, list[Candidate]]:
        if not any(able.values()):
            return "", []
        best: tuple[int, str, list[Candidate]] | None = None
        for name in sorted(self._rooms):
            kept = held.get(name, Resources())
            chosen = self._enough(name, entry.key.request, able.get(name, []), kept)
            if chosen is None:
                continue
            if not chosen:
                return name, []
            cost = sum(c.task.granted.gpu or c.task.granted.cpu for c in chosen)
            if best is None or cost < best[0]:
                best = (cost, name, chosen)
        return best[1:] if best is not None else ("", [])

    def _claim(self, node: str, chosen: list[Candidate], entry: Entry) -> None:
        victims = frozenset((c.task.id, c.task.generation) for c in chosen)
        here = [c.task for c in chosen if c.part.node == node]
        coming = sum((task.granted for task in here), Resources())
        gives = _gives(sorted((c.task for c in chosen), key=lambda task: task.id))
        claim = Claim((Place(node, entry.key.request.plain, coming),), victims, gives)
        self._kernel.state.scheduler.claims[entry.task] = claim
        self._left -= 1

    def _come(self) -> dict[str, Pool]:
        state = self._kernel.state
        rooms = {name: pool.copy() for name, pool in state.resources.pools.items()}
        for task in (state.tasks[task_id] for task_id in state.holding):
            if task.stopping and task.allocation is not None and task.allocation.node in rooms:
                rooms[task.allocation.node].release(task.allocation)
        return rooms

    def _enough(
        self, name: str, request: Resources, there: list[Candidate], held: Resources
    ) -> list[Candidate] | None:
        base = self._rooms[name]
        total = sum((c.part.resources for c in there), base.free)
        if not request.fits_in(total.without(held)):
            return None
        room = base.copy()
        chosen: list[Candidate] = []
        for candidate in there:
            if room.would_fit(request, held):
                break
            room.release(candidate.part)
            chosen.append(candidate)
        if not room.would_fit(request, held):
            return None
        for candidate in sorted(chosen, key=lambda c: c.part.resources.gpu):
            room.occupy(candidate.part)
            if room.would_fit(request, held):
                chosen.remove(candidate)
            else:
                room.release(candidate.part)
        return chosen

    def _suspend(
        self, chosen: list[Candidate], waiting: str, candidates: list[Candidate], now: float
    ) -> list[Candidate]:
        for candidate in chosen:
            assert candidate.task.allocation is not None
            self._rooms[candidate.task.allocation.node].release(candidate.task.allocation)
            self.times[candidate.task.id] = (*self.times.get(candidate.task.id, ()), now)
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


def _gives(tasks: list[Task]) -> tuple[tuple[str, str, Resources], ...]:
    return tuple((t.principal.user, t.principal.project, t.granted) for t in tasks)


def _by_node(candidates: list[Candidate]) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        assert candidate.task.allocation is not None
        found.setdefault(candidate.task.allocation.node, []).append(candidate)
    return found
