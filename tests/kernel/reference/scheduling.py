"""Queue, scheduler and resource manager without any index."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator

from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Kind, Task
from zenos.kernel.entries import BucketKey, Entry, Ranked, Shape, by_wait, is_demoted
from zenos.kernel.pool import Pool
from zenos.kernel.queue import Queue
from zenos.kernel.resource_manager import ResourceManager
from zenos.kernel.scheduler import Place, Reservation, Scheduler, Start, order_of, time_class


class ReferenceQueue(Queue):
    """All entries, and which of them are overdue."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.all: dict[str, Entry] = {}
        self.late: set[str] = set()

    def configure(self, config: Config) -> None:
        self._config = config

    def __len__(self) -> int:
        return len(self.all)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self.all

    @property
    def overdue(self) -> list[Entry]:
        return sorted((self.all[task] for task in self.late), key=by_wait)

    def add(self, task: Task, expected_s: float, raised: int = 0) -> None:
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
        queued = task.queued - task.waited_s
        self.all[task.id] = Entry(task.id, order_of(task.id), queued, expected_s, key)

    def key(self, task_id: str) -> BucketKey:
        return self.all[task_id].key

    def entry(self, task_id: str) -> Entry | None:
        return self.all.get(task_id)

    def is_overdue(self, task_id: str) -> bool:
        return task_id in self.late

    def take(self, entries: Iterable[Entry]) -> None:
        self.all.update((entry.task, entry) for entry in entries)

    def remove(self, task_id: str) -> None:
        self.all.pop(task_id, None)
        self.late.discard(task_id)

    def is_open(self, key: BucketKey) -> bool:
        return self.owners.admits(key.user, key.project, key.request)

    def heads(self) -> Iterator[Entry]:
        keys = {entry.key for task, entry in self.all.items() if task not in self.late}
        found = (self.head(key) for key in keys)
        yield from (head for head in found if head is not None)

    def head(self, key: BucketKey) -> Entry | None:
        those = (e for t, e in self.all.items() if e.key == key and t not in self.late)
        if not self.is_open(key):
            return None
        return min(those, key=by_wait, default=None)

    def overdue_heads(self) -> list[Entry]:
        heads = {self.line(entry.key): self.overdue_head(entry.key) for entry in self.overdue}
        return sorted((head for head in heads.values() if head is not None), key=by_wait)

    def line(self, key: BucketKey) -> tuple[Shape, str, str]:
        bounded = self.owners.concerns(key.user, key.project)
        return (key.shape, key.user, key.project) if bounded else (key.shape, "", "")

    def overdue_head(self, key: BucketKey) -> Entry | None:
        there = (entry for entry in self.overdue if self.line(entry.key) == self.line(key))
        return next((entry for entry in there if self.is_open(entry.key)), None)

    def closed_heads(self, least: Callable[[str, str], float]) -> list[Entry]:
        """Whoever stands first among those that may not start for its owner's quotas."""
        firsts: dict[object, Entry] = {}
        for entry in sorted(self.all.values(), key=by_wait):
            if not self.is_open(entry.key):
                late = entry.task in self.late
                firsts.setdefault((late, self.line(entry.key) if late else entry.key), entry)
        return list(firsts.values())

    def collect_overdue(self, now: float) -> None:
        self.late |= {task for task, entry in self.all.items() if self.overdue_at(entry) <= now}

    def next_overdue(self, now: float) -> float:
        times = [self.overdue_at(e) for task, e in self.all.items() if task not in self.late]
        late = (self.late_at(entry) for entry in self.overdue_heads())
        return min([*times, *(at for at in late if at > now)], default=math.inf)


class ReferenceResources(ResourceManager):
    """The pools, each of which is asked."""

    def add(self, node: Node, allocations: Iterable[Allocation]) -> None:
        pool = Pool(node)
        for allocation in allocations:
            pool.occupy(allocation)
        pool.withhold()
        self.pools[node.name] = pool

    def parts(self, shape: Shape) -> tuple[Resources, ...]:
        return (shape.request,) if self.able(shape.request) else ()

    def allocate(
        self,
        request: Resources,
        reserved: dict[str, Resources] | None = None,
        workers: int = 1,
    ) -> Allocation | None:
        held = reserved or {}
        fitting = [
            pool
            for name, pool in self.pools.items()
            if pool.would_fit(request, held.get(name, Resources()))
        ]
        return (
            min(fitting, key=lambda p: p.gpu_used.count(0)).allocate(request) if fitting else None
        )

    def release(self, allocation: Allocation) -> None:
        if allocation.node in self.pools:
            self.pools[allocation.node].release(allocation)

    def occupy(self, allocation: Allocation) -> None:
        if allocation.node in self.pools:
            self.pools[allocation.node].occupy(allocation)

    def able(self, request: Resources) -> list[Pool]:
        return [p for p in self.pools.values() if Pool(p.node).allocate(request) is not None]

    def is_able(self, name: str, request: Resources) -> bool:
        return name in (pool.node.name for pool in self.able(request))

    def could_ever_hold(self, request: Resources, workers: int = 1) -> bool:
        return bool(self.able(request))

    def capacity(self) -> Resources:
        there = (pool.node for pool in self.pools.values() if pool.node.lost is None)
        return sum((node.capacity for node in there), Resources())

    def used(self) -> Resources:
        return sum((p.used for p in self.pools.values()), Resources())


class ReferenceScheduler(Scheduler):
    """Tries every head, in order, on every node."""

    def __init__(self, config: Config, resources: ReferenceResources) -> None:
        super().__init__(config, resources)
        self._all = resources
        self.queue: ReferenceQueue = ReferenceQueue(config)

    def schedule(self, now: float, overdue_running: Resources, start: Start) -> None:
        self.queue.collect_overdue(now)
        self._ahead(overdue_running, now, start)
        contention = self.contention()
        waiting: list[Ranked] = self.ranking(now)
        while waiting:
            entry = heapq.heappop(waiting).entry
            if self._may(entry) and self._beside(entry, start):
                following = self.queue.head(entry.key)
                if following is not None:
                    heapq.heappush(waiting, self.queue.rank(following, now, contention))
        left = [(by_wait(entry), entry) for entry in self.queue.overdue_heads()]
        while left:
            _, entry = heapq.heappop(left)
            if self._may(entry) and self._beside(entry, start):
                following = self.queue.overdue_head(entry.key)
                if following is not None:
                    heapq.heappush(left, (by_wait(following), following))

    def _may(self, entry: Entry) -> bool:
        """Its quotas have room for it, and for it and all that others give way for as soon as those
        have ended."""
        key, owners = entry.key, self.queue.owners
        claims = [self.queue.all[t].key for t in self.claims if t != entry.task]
        beside = [(k.user, k.project, k.request) for k in claims]
        for user, project, held in (given for c in self.claims.values() for given in c.gives):
            beside.append((user, project, Resources() - held))
        then = not claims or owners.admits(key.user, key.project, key.request, beside)
        return then and owners.admits(key.user, key.project, key.request)

    def _beside(self, entry: Entry, start: Start) -> bool:
        held, request = self.reserved(entry.task), entry.key.request
        own = self.claims.get(entry.task)
        pool = self._all.pools.get(own.node) if own is not None else None
        if pool is not None and pool.would_fit(request, held.get(pool.node.name, Resources())):
            allocation = pool.allocate(request)
        else:
            allocation = self._all.allocate(request, held)
        if allocation is None:
            return False
        self._begin(entry, allocation, start, overdue=False)
        return True

    def _ahead(self, running: Resources, now: float, start: Start) -> None:
        before, self.reservation = self.reservation, None
        waiting = [(by_wait(entry), entry) for entry in self.queue.overdue_heads()]
        while waiting:
            _, entry = heapq.heappop(waiting)
            if not self._may(entry):
                continue
            request = entry.key.request
            late = self.queue.late_at(entry) <= now
            share = self._config.overdue_late_share if late else self._config.overdue_share
            if running != Resources() and not self._within(share, running + request):
                return
            held = self.reserved(entry.task, overdue=True)
            allocation = self._all.allocate(request, held)
            if allocation is None:
                if not self._all.could_ever_hold(request):
                    continue
                self.reservation = self._hold_back(entry, before)
                return
            running = running + request
            self._begin(entry, allocation, start, overdue=True)
            following = self.queue.overdue_head(entry.key)
            if following is not None:
                heapq.heappush(waiting, (by_wait(following), following))

    def _hold_back(self, entry: Entry, before: Reservation | None) -> Reservation:
        request = entry.key.request
        able = {pool.node.name: pool for pool in self._all.able(request)}
        had = before if before is not None and before.task == entry.task else None
        known = had or self.claims.get(entry.task)
        if known is not None and known.node in able:
            node = able[known.node]
        else:
            node = max(able.values(), key=lambda p: (p.free.cpu, p.free.gpu, p.free.memory))
        if node.is_in_pieces and not node.has_devices(request):
            capacity = node.node.capacity
            gpu, memory = capacity.gpu, capacity.gpu_memory
            request = Resources(cpu=request.cpu, memory=request.memory, gpu=gpu, gpu_memory=memory)
        return Reservation(entry.task, entry.key.shape, (Place(node.node.name, request.plain),))
