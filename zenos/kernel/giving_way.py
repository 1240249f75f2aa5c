"""Which replicas end for what waits for their room: the idle ones, and the busy ones in turn.

Where several models share one place, those that are asked take turns. Requests for a model that
has no replica are collected, and its turn comes after a bounded time; once loaded it stays for a
while, so that there are not more loads than answers. docs/scheduling.md derives both bounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from zenos.core import limits
from zenos.core.resources import Resources
from zenos.core.specs import ServeSpec
from zenos.core.task import Deployment, State, Task
from zenos.kernel import quota_room
from zenos.kernel.entries import Entry
from zenos.kernel.pool import NOTHING
from zenos.kernel.scheduler import order_of
from zenos.kernel.supervision import GIVES_WAY

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

# A replica that is to stay for ever in that way stays for its keep-alive.
IDLE_DOUBLINGS_MAX: Final = 10


class _Resident(NamedTuple):
    """A replica that need not stay. since: when it was ready, or began to load; busy: is asked."""

    task: Task
    deployment: str
    since: float
    unused_since: float
    busy: bool


class GivingWay:
    """Ends replicas after scheduling, when what waits found no room."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def make_room(self, now: float) -> None:
        """Replicas that need not stay end for what waits for their room.

        1. A deployment's replicas of what it was before, when the new ones have no room.
        2. For each that waits, in the order in which they are tried, replicas above `min_replicas`
           give way on one node: no more of them than it takes, counting what is coming back
           already. The idle ones first, the longest unused before the others; then the busy ones,
           the longest loaded first. Where a quota is full, its owner's do, wherever they are.
        3. An idle one, to what has at least its priority: to a replica of the same priority once
           it has stayed for `model_residence_s`, to all others at once. To what has a lower one
           when it has been unused for long enough (`_patience_s`).
        4. A busy one, to a replica that requests wait for: of a higher priority once it has stayed
           for `model_residence_s`, of the same when they have waited for `model_wait_s` as well.
           What it has been sent it answers, within `model_drain_s`; new requests wait for the next
           turn of their model.
        """
        state, models = self._kernel.state, self._kernel.models
        if not len(state.scheduler.queue) or self._kernel.draining:
            return
        for deployment in list(state.deployments.values()):  # 1
            before = models.of_before(deployment)
            if before and any(t.state is State.QUEUED for t in models.live(deployment)):
                models.stop_replicas(before, 0, now, "replaced")
        residents = self._residents(now)  # 2
        if not residents:
            return
        coming = self.coming()
        served: list[Entry] = []
        for entry in quota_room.waiting(state, now):
            chosen = self._enough(entry, residents, coming, served, now)
            for resident in chosen:
                models.stop_replicas([resident.task], 0, now, GIVES_WAY)
                if not self._loaded(state.deployments[resident.deployment]):
                    # Its keep-alive is over: it isn't loaded again before somebody asks.
                    state.asking.unloaded.add(resident.deployment)
            residents = [one for one in residents if one not in chosen]

    def next_wake(self, now: float) -> float:
        """When a replica has stayed, or requests have waited, for so long that it has to end."""
        state = self._kernel.state
        if not len(state.scheduler.queue) or self._kernel.draining:
            return math.inf
        config = self._kernel.config
        ends = [at + config.model_wait_s for at in state.asking.asked_at.values()]
        for resident in self._residents(now):
            ends.append(resident.since + config.model_residence_s)
            if not resident.busy:
                ends += [
                    resident.unused_since + limits.IDLE_YIELDS_S * 2.0**times
                    for times in range(IDLE_DOUBLINGS_MAX + 1)
                ]
        return min((end for end in ends if end > now), default=math.inf)

    def _residents(self, now: float) -> list[_Resident]:
        """Replicas that need not stay, in the order in which they give way."""
        state = self._kernel.state
        found: list[_Resident] = []
        for deployment in state.deployments.values():
            if deployment.stopping:
                continue
            name, spec = deployment.name, deployment.spec
            needed = math.ceil(state.asking.in_flight.get(name, 0) / spec.slots)
            needed_at = [None, *state.asking.further(name)]
            for place, task in enumerate(self._loaded(deployment)):
                if place < spec.min_replicas:
                    continue
                busy = place < needed
                since = state.asking.ready_at.get(task.id, task.started or now)
                unused = needed_at[place] if place < len(needed_at) else None
                if unused is None:
                    unused = state.asking.used_at.get(name, task.submitted)
                # Who loads for requests hasn't had its turn yet.
                if task.ready or not busy:
                    found.append(_Resident(task, name, since, unused, busy))
        return sorted(
            found,
            key=lambda r: (r.busy, r.since if r.busy else r.unused_since, order_of(r.task.id)),
        )

    def _loaded(self, deployment: Deployment) -> list[Task]:
        """Its replicas that are there, or start, and needn't end yet; the oldest first."""
        live = self._kernel.models.live(deployment)
        return [task for task in live if task.state is not State.QUEUED]

    def _may(self, resident: _Resident, entry: Entry, now: float) -> bool:
        """Whether a replica gives way to that task now."""
        state, config = self._kernel.state, self._kernel.config
        work = state.tasks[entry.task].spec.work
        name = work.deployment if isinstance(work, ServeSpec) else ""
        mine, theirs = resident.task.spec.priority, entry.key.priority
        stayed = now >= resident.since + config.model_residence_s
        if resident.busy:  # 4
            asked_at = state.asking.asked_at.get(name)
            if asked_at is None or name == resident.deployment or not stayed:
                return False
            return theirs > mine or (theirs == mine and now >= asked_at + config.model_wait_s)
        if theirs >= mine:  # 3
            return stayed or theirs > mine or not name
        return now >= resident.unused_since + self._patience_s(entry.task, now)

    def _patience_s(self, task_id: str, now: float) -> float:
        """How long a replica must have been idle to end for a task of a lower priority.

        Twice as long for each time that the task has given way within the last hour: where requests
        come every now and then, the model stays and the training is not sent away at each of them.
        """
        times = self._kernel.preemption.times_given_way(task_id, now)
        return limits.IDLE_YIELDS_S * float(2.0 ** min(times, IDLE_DOUBLINGS_MAX))

    def coming(self) -> dict[str, Resources]:
        """What is free on each node that takes work, or comes back from tasks that end already."""
        state = self._kernel.state
        pools = state.resources.pools.items()
        room = {name: pool.free for name, pool in pools if pool.node.takes_work}
        for task_id in state.holding:
            task = state.tasks[task_id]
            if task.stopping and task.allocation is not None:
                for part in task.allocation.parts:
                    if part.node in room:
                        room[part.node] += part.resources
        return room

    def _enough(
        self,
        entry: Entry,
        residents: list[_Resident],
        coming: dict[str, Resources],
        before: list[Entry],
        now: float,
    ) -> list[_Resident]:
        """The replicas whose end makes room for such a task, and in its quotas.

        On one node, or for a gang that takes several on all of them. before: for whom quotas have
        to have room as well; it is added there when it gets some.
        """
        owned = self._owned(entry, residents, before, now)
        if owned is None:
            return []
        given: dict[str, Resources] = {}
        for resident in owned:
            held = resident.task.allocation
            if held is not None:
                given[held.node] = given.get(held.node, NOTHING) + held.resources
        may = [one for one in residents if one not in owned and self._may(one, entry, now)]
        left: dict[str, Resources] = {}
        taken = [*owned]
        resources = self._kernel.state.resources
        for part in resources.parts(entry.key.shape):
            for name in sorted(coming, key=lambda name: name not in given):
                if name in left or not resources.is_able(name, part):
                    continue
                room, more = coming[name] + given.get(name, NOTHING), list[_Resident]()
                for resident in may:
                    held = resident.task.allocation
                    if held is not None and held.node == name and not part.fits_in(room):
                        room, more = room + held.resources, [*more, resident]
                if part.fits_in(room):
                    left[name] = room - part  # that much is spoken for
                    taken += more
                    break
            else:
                return []
        if not left:
            return []  # no node will ever have room for it
        for name in given.keys() & coming.keys():
            coming[name] += given[name]  # what it doesn't take there is for others
        coming.update(left)
        before.append(entry)
        return taken

    def _owned(
        self, entry: Entry, residents: list[_Resident], before: list[Entry], now: float
    ) -> list[_Resident] | None:
        """Those whose end makes room in its owner's quotas; None where that can't be."""
        state = self._kernel.state
        if state.scheduler.queue.is_open(entry.key):
            return []
        may = [one for one in residents if self._may(one, entry, now)]
        givers = [quota_room.Giver(one.task, one.task.granted) for one in may]
        found = quota_room.enough(state, entry, givers, before)
        if found is None:
            return None
        ids = {giver.task.id for giver in found}
        return [one for one in may if one.task.id in ids]
