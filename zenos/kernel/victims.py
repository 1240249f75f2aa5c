"""Preemption: who gives way to what waits, and when.

What found no room anywhere finds none until something changes on some node. So it is remembered of
each need which nodes would do, and at what cost, and only nodes that were touched are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zenos.core.resources import Resources
from zenos.core.task import Allocation, State, Task
from zenos.kernel import elastic, preemption, quota_room
from zenos.kernel.candidates import ROUNDING_S, Candidate, Candidates, Need
from zenos.kernel.entries import Entry, Want, is_demoted
from zenos.kernel.known_nodes import KnownNodes
from zenos.kernel.line import Line
from zenos.kernel.pool import NOTHING
from zenos.kernel.scheduler import Claim, Place, Reservation

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

NEEDS_KEPT: Final = 2048
# For so many tasks others give way in one step: all that began together have had their share
# together, and then hundreds could.
AT_ONCE: Final = 4
EVERYBODY: Final = 2**62

Chosen = list[tuple[str, Resources, list[Candidate]]]  # node, what it is to give, who gives way


class Preemption:
    """Suspends tasks that can yield for others that wait.

    A claim holds what they give back for whom they gave way to. Claims, and how often a task has
    given way, are not stored: after a restart both are decided anew.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._candidates = Candidates(kernel)
        self._config = kernel.state.config
        self._found: dict[Need, KnownNodes] = {}
        self._waits = False
        self.at_once = AT_ONCE
        self._left = AT_ONCE  # of those, in this step
        self._gives_back = False  # in this step, something that counts in a quota
        # For what there was a look at the reservation's nodes, and after which touch of any.
        self._reserved: tuple[Reservation | None, Task | None, int] = (None, None, 0)

    @property
    def given_way(self) -> dict[str, tuple[float, ...]]:
        """When each task has given way within the last hour."""
        return self._candidates.given_way

    def times_given_way(self, task_id: str, now: float) -> int:
        """How often a task has given way within the last hour."""
        return self._candidates.times_given_way(task_id, now)

    def note_given_way(self, task_id: str, now: float) -> None:
        """It ends to start again."""
        self.given_way[task_id] = (*self.given_way.get(task_id, ()), now)

    def guards(self, task_id: str, now: float) -> bool:
        """Whether a running task need not give way to equals (`Candidate.guarded`)."""
        often = self.times_given_way(task_id, now) >= self._kernel.config.preemptions_per_hour
        return often or task_id in self._kernel.state.overdue_running

    def renew_claims(self) -> None:
        """Before scheduling: claims end with their task's, and count what is still to come back.

        One on a node that takes no work any more is in vain.
        """
        state = self._kernel.state
        for task_id, claim in list(state.scheduler.claims.items()):
            if task_id not in state.scheduler.queue or not self._is_open(claim):
                del state.scheduler.claims[task_id]
                continue
            coming: dict[str, Resources] = {}
            still = [state.tasks[task] for task in sorted(self._still(claim))]
            for part in (part for task in still for part in _parts(task)):
                coming[part.node] = coming.get(part.node, NOTHING) + part.resources
            places = tuple(p._replace(coming=coming.get(p.node, NOTHING)) for p in claim.places)
            state.scheduler.claims[task_id] = claim._replace(places=places, gives=_gives(still))
        for task_id, changed in state.changes.tasks.items():
            if changed.is_ended:
                self.given_way.pop(task_id, None)

    def _is_open(self, claim: Claim) -> bool:
        pools = self._kernel.state.resources.pools
        return all(p.node in pools and pools[p.node].node.takes_work for p in claim.places)

    def _still(self, claim: Claim) -> list[str]:
        """Who of those that give way has not ended."""
        state = self._kernel.state
        return [
            task
            for task, generation in claim.victims
            if task in state.holding and state.tasks[task].generation == generation
        ]

    def drop_claims(self) -> bool:
        """After scheduling: drop claims of who hasn't started although all who gave way are gone.

        Whether there were any: what they held back is for others.
        """
        claims = self._kernel.state.scheduler.claims
        spent = [task_id for task_id, claim in claims.items() if not self._still(claim)]
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
        4. Then the heads of the queue, overdue ones first, then by score: those of a lower base
           priority give way to it, and among equals the ones that have had their share of service
           (`slice_s`) to it if it has not. That is the hysteresis: no task ever gives way to one
           that has had as much.
        5. On the node where the fewest devices are taken back; there the lowest priority first,
           then who has had most service; nobody who turns out not to be needed.
        6. Then those that a quota of theirs keeps from starting: tasks of a lower base priority
           that count in that quota give way, wherever they run, if there is room then.

        Of 4 and 6 so many tasks get room as `at_once` says; the next step follows at once then.
        """
        state = self._kernel.state
        waiting = preemption.waiting(self._kernel)
        self._gives_back = False
        self._left = self.at_once
        self._waits = not self._kernel.draining and bool(waiting or len(state.scheduler.queue))
        if not self._waits:
            return
        if self._config is not self._kernel.config:
            self._config = self._kernel.config
            self._found.clear()
            self._reserved = (None, None, 0)
        self._candidates.begin(now, state.scheduler.reserved(ahead=True))  # 1
        self._let_go_on(waiting, now)  # 2
        self._make_room_reserved(now)  # 3
        vain: set[Want] = set()
        self._make_room_overdue(vain, now)  # 4
        self._make_room_by_score(vain, now)
        self._make_room_in_quotas(now)  # 6

    @property
    def is_cut(self) -> bool:
        """Whether the last step may have left others who wait for room without it."""
        return self._waits and self._left <= 0

    def next_wake(self, now: float) -> float:
        """When somebody who may have to give way has stayed long enough.

        What should be over by now and isn't, is so by rounding alone: a moment later it is. At once
        where quotas will have back what somebody holds: others may start in that.
        """
        if self.is_cut:
            return now
        if self._gives_back:
            return now + ROUNDING_S
        return max(self._candidates.wake() if self._waits else math.inf, now + ROUNDING_S)

    def _let_go_on(self, waiting: list[Task], now: float) -> None:
        """Make room for the CPU of paused tasks; it is held back for them."""
        kept: dict[str, Resources] = {}
        for task in waiting:
            if (
                task.allocation is None
                or task.allocation.node not in self._kernel.state.resources.pools
            ):
                continue
            node, wants = task.allocation.node, Resources(cpu=task.granted.cpu)
            demoted = is_demoted(task, task.ran_s, self._kernel.config)
            able = self._candidates.able(node, Need(task.spec.priority, demoted, False, wants))
            chosen = self._candidates.enough(node, wants, able, kept.get(node, NOTHING))
            if chosen:
                self._suspend(chosen, task.id, now)
            kept[node] = kept.get(node, NOTHING) + wants

    def _make_room_reserved(self, now: float) -> None:
        """On all the nodes that it takes, or on none. Not again until something changes there."""
        state, here = self._kernel.state, self._candidates
        reservation = state.scheduler.reservation
        before, first_before, seen = self._reserved
        if reservation is None:
            self._reserved = (None, None, 0)
            return
        first = state.tasks[reservation.task]
        self._reserved = (reservation, first, here.count)
        nodes = [place.node for place in reservation.places]
        same = before == reservation and first_before is first
        if same and all(here.touched_at(node) <= seen for node in nodes):
            return
        held = state.scheduler.reserved(first.id, ahead=True)
        parts = state.resources.parts(reservation.shape)
        found: Chosen = []
        for node, part in zip(nodes, parts, strict=True):
            those = here.enough(node, part, here.behind(node, first), held.get(node, NOTHING))
            if those is None:
                return
            found.append((node, part, those))
        self._suspend(_once(found), first.id, now)

    # -- what the queue needs

    def _make_room_overdue(self, vain: set[Want], now: float) -> None:
        """For the first overdue task of each kind: who is beyond the share of such work has no
        fewer rights than it had before.
        """
        scheduler = self._kernel.state.scheduler
        first = scheduler.reservation.task if scheduler.reservation is not None else None
        for entry in scheduler.queue.overdue_heads():
            if self._left <= 0:
                return
            waits = entry.task not in scheduler.claims and entry.task != first
            if waits and self._may_have(entry):
                self._make_room_for(entry, vain, now)

    def _make_room_by_score(self, vain: set[Want], now: float) -> None:
        """In order. What found no room for one finds none for another that wants the same.

        Only what can be helped is put into order. What somebody gives back beyond what it gave way
        for may help those that come later in the order.
        """
        if self._left <= 0:
            return
        scheduler = self._kernel.state.scheduler
        line = Line(scheduler.queue, now, scheduler.contention())
        line.passed.update(scheduler.claims)
        lined_up: set[Want] = set()
        for want in self._helped(lined_up, vain):
            line.add(want)
        while (popped := line.pop()) is not None:
            entry, want = popped[0], popped[0].key.want
            rank = line.rank(entry)
            if not self._may_have(entry):
                line.passed.add(entry.task)
                line.add(want)
                continue
            if not self._make_room_for(entry, vain, now):
                continue
            if self._left <= 0:
                return
            line.passed.add(entry.task)
            line.add(want)
            for other in self._helped(lined_up, vain):
                first = line.first(other)
                if first is not None and line.rank(first) > rank:
                    line.add(other)
                else:
                    vain.add(other)

    def _may_have(self, entry: Entry) -> bool:
        """Whether its owner's quotas have room for it beside what others make room for already."""
        state, key = self._kernel.state, entry.key
        if not state.scheduler.queue.owners.concerns(key.user, key.project):
            return True
        beside = state.scheduler.promised(entry.task)
        return state.accounts.lack(key.user, key.project, key.request, beside) is None

    def _helped(self, lined_up: set[Want], vain: set[Want]) -> list[Want]:
        """All that can be helped and isn't in line yet."""
        wants = self._kernel.state.scheduler.queue.groups()
        found = [w for w in wants if w not in lined_up and w not in vain and self._helps(w)]
        lined_up.update(found)
        return found

    def _helps(self, want: Want) -> bool:
        parts = self._kernel.state.resources.parts(want.shape)
        if len(parts) == 1:
            found, look = self._look(want, parts[0])
            return found.helps(look)
        seen = [self._look(want, part) for part in dict.fromkeys(parts)]
        return any(found.can_be_made(look) for found, look in seen)

    def _make_room_for(self, entry: Entry, vain: set[Want], now: float) -> bool:
        """Whether somebody gives way to it."""
        want = entry.key.want
        if want in vain:
            return False
        chosen = self._choose(want)
        if not any(those for _, _, those in chosen):
            vain.add(want)
            return False
        those = _once(chosen)
        self._claim(chosen, those, entry)
        self._suspend(those, entry.task, now)
        return True

    def _choose(self, want: Want) -> Chosen:
        """Who gives way to one waiting task, and where: nobody where that doesn't help.

        Nor where what it needs comes back on some node without anybody's giving way. A gang takes
        the nodes that have room for a part of it already, then the cheapest.
        """
        parts = self._kernel.state.resources.parts(want.shape)
        chosen: Chosen = []
        taken: set[str] = set()
        for part in parts:
            found, look = self._look(want, part)
            if len(parts) == 1 and found.fits:
                return []
            node = min(found.fits - taken, default=None) or found.cheapest(taken, look)
            if node is None:
                return []
            taken.add(node)
            chosen.append((node, part, self._on(node, want, part) or []))
        return chosen

    def _on(self, node: str, want: Want, part: Resources) -> list[Candidate] | None:
        here = self._candidates
        able = here.able(node, Need(want.priority, want.demoted, want.replica, part))
        return here.enough(node, part, able, here.held.get(node, NOTHING))

    def _look(self, want: Want, part: Resources) -> tuple[KnownNodes, Callable[[str], None]]:
        """What is known of a need, once the nodes are noted that have been touched since; and how
        to look at one of those.
        """
        need = Need(want.priority, want.demoted, want.replica, part)
        found = self._found.get(need)
        if found is None:
            if len(self._found) >= NEEDS_KEPT:
                self._found.clear()
            found = self._found[need] = KnownNodes()
        look = partial(self._look_at, need, found)
        here = self._candidates
        here.take_touched()
        over = found.over(here.now)
        changed = here.since(found.seen) if found.seen != here.count else ()
        for node in (*changed, *over):
            least = here.least(node, part)
            if least is None:
                look(node)
            else:
                found.may_cost(node, least)
        found.seen = here.count
        return found, look

    def _look_at(self, need: Need, found: KnownNodes, node: str) -> None:
        here = self._candidates
        able = here.able(node, need)
        chosen = here.enough(node, need.request, able, here.held.get(node, NOTHING))
        if chosen is None:
            found.forget(node)
        elif not chosen:
            found.has_room(node)
        else:
            end = here.order_until(node, need)
            found.costs_there(node, sum(candidate.cost for candidate in chosen), end)

    # -- what a quota has no room for

    def _make_room_in_quotas(self, now: float) -> None:
        """In order. What found no room for one finds none for another of its owner's like it."""
        if self._left <= 0:
            return
        state, claims = self._kernel.state, self._kernel.state.scheduler.claims
        vain: set[tuple[str, str, Want]] = set()
        for entry in quota_room.closed(state, now):
            key = entry.key
            kind = (key.user, key.project, key.want)
            if kind in vain or entry.task in claims:
                continue
            if not self._make_room_in_quota(entry, now):
                vain.add(kind)
            elif self._left <= 0:
                return

    def _make_room_in_quota(self, entry: Entry, now: float) -> bool:
        """Whether somebody gives way to it: then it has room on all the nodes that it takes."""
        own = {candidate.task.id: candidate for candidate in self._own(entry)}
        given = {task: _given(candidate, entry) for task, candidate in own.items()}
        givers = [
            quota_room.Giver(c.task, sum((p.resources for p in given[c.task.id]), NOTHING))
            for c in own.values()
        ]
        found = quota_room.enough(self._kernel.state, entry, givers)
        if not found:
            return False
        those = [own[giver.task.id] for giver in found]
        back = [part for giver in found for part in given[giver.task.id]]
        want, taken = entry.key.want, set[str]()
        chosen: Chosen = []
        for part in self._kernel.state.resources.parts(want.shape):
            place = self._place_beside(want, part, back, taken)
            if place is None:
                return False
            taken.add(place[0])
            chosen.append(place)
        if not chosen:
            return False
        those = _once([*chosen, ("", NOTHING, those)])
        self._claim(chosen, those, entry)
        self._suspend(those, entry.task, now)
        return True

    def _place_beside(
        self, want: Want, part: Resources, back: list[Allocation], taken: set[str]
    ) -> tuple[str, Resources, list[Candidate]] | None:
        """A node that has room for it with what is given back; else one where others give way."""
        for node in sorted({given.node for given in back} - taken):
            if self._candidates.fits_with(node, part, back):
                return node, part, []
        found, look = self._look(want, part)
        node_ = min(found.fits - taken, default=None) or found.cheapest(taken, look)
        return None if node_ is None else (node_, part, self._on(node_, want, part) or [])

    def _own(self, entry: Entry) -> list[Candidate]:
        """Who of its owner's gives way to it: of a lower base priority, or for what is lent."""
        state, key = self._kernel.state, entry.key
        tasks = {*state.accounts.holders(key.user, key.project)}
        nodes = {p.node for task in tasks for p in _parts(state.tasks[task])}
        found: dict[str, Candidate] = {}
        for node in sorted(nodes & state.resources.pools.keys()):
            need = Need(key.priority, key.demoted, key.replica, key.request)
            for candidate in self._candidates.able(node, need):
                if candidate.task.id in tasks and _given(candidate, entry):
                    found.setdefault(candidate.task.id, candidate)
        return sorted(found.values())

    # -- what follows

    def _claim(self, chosen: Chosen, those: list[Candidate], entry: Entry) -> None:
        self._left -= 1
        places = []
        for node, part, _ in chosen:
            there = (p for c in those for p in _parts(c.task) if p.node == node)
            places.append(Place(node, part.plain, sum((p.resources for p in there), NOTHING)))
            self._candidates.hold(node, part)
        victims = frozenset((c.task.id, c.task.generation) for c in those)
        gives = _gives(sorted((c.task for c in those), key=lambda task: task.id))
        state = self._kernel.state
        state.scheduler.claims[entry.task] = Claim(tuple(places), victims, gives)
        owners = {given[:2] for given in gives}
        self._gives_back |= any(state.accounts.concerns(*owner) for owner in owners)

    def _suspend(self, chosen: list[Candidate], waiting: str, now: float) -> None:
        for candidate in chosen:
            self.note_given_way(candidate.task.id, now)
            saving = replace(candidate.task, state=State.SUSPENDING)
            self._kernel.stop(
                candidate.task,
                "suspend",
                now,
                into=saving,
                event="suspending",
                detail=f"gives way to {waiting}",
            )
        self._candidates.take_touched()


def _given(candidate: Candidate, entry: Entry) -> tuple[Allocation, ...]:
    """What it gives back to a waiting task of its owner: to an equal only what is lent to it."""
    if candidate.priority < entry.key.priority:
        return _parts(candidate.task)
    lent = elastic.lent(candidate.task)
    return (lent,) if lent is not None else ()


def _gives(tasks: list[Task]) -> tuple[tuple[str, str, Resources], ...]:
    return tuple((t.principal.user, t.principal.project, t.granted) for t in tasks)


def _parts(task: Task) -> tuple[Allocation, ...]:
    return task.allocation.parts if task.allocation is not None else ()


def _once(chosen: Chosen) -> list[Candidate]:
    """All who give way; a gang that does on several nodes once."""
    found: dict[str, Candidate] = {}
    for _, _, those in chosen:
        for candidate in those:
            found.setdefault(candidate.task.id, candidate)
    return list(found.values())
