"""The kernel's whole state, and the invariants that hold after every step."""

from __future__ import annotations

import heapq
import math

from msgspec.structs import replace

from zenos.core.actions import Changes, Snapshot
from zenos.core.audit import AuditRow
from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.core.task import (
    HOLDING,
    Deployment,
    IdempotencyKey,
    Node,
    Principal,
    State,
    Task,
    TaskEvent,
    check_transition,
)
from zenos.kernel.resource_manager import ResourceManager, memory_each
from zenos.kernel.scheduler import Estimates, Scheduler, order_of


class InvariantError(AssertionError):
    """An invariant of the kernel's state does not hold: a bug in zenos."""


class KernelState:
    """Tasks, nodes, deployments, the queue, and what the present step has changed.

    Everything is changed through the methods here, which note it in `changes` too: so what is
    remembered and what the kernel goes on with cannot differ.
    """

    def __init__(self, config: Config, snapshot: Snapshot, expected_default_s: float) -> None:
        self.config = config
        self.tasks: dict[str, Task] = dict(snapshot.tasks)
        self.deployments: dict[str, Deployment] = dict(snapshot.deployments)
        self.keys: dict[tuple[str, str], IdempotencyKey] = {
            (key.user, key.key): key for key in sorted(snapshot.keys, key=lambda k: k.at)
        }  # the oldest first
        self.next_task = snapshot.next_task
        self.next_seq = snapshot.next_seq
        self.pruned_seq = 0
        self.next_audit = snapshot.next_audit
        self.pruned_audit = 0
        # Who asked for what is being decided; None for the kernel itself.
        self.asker: Principal | None = None
        self.resources = ResourceManager()
        self.scheduler = Scheduler(config, self.resources)
        self.estimates = Estimates(expected_default_s)
        # Tasks that wait for the end of their backoff, and holders that were overdue when started.
        self.delayed: set[str] = set()
        self._delays: list[
            tuple[float, int, str]
        ] = []  # a heap; who isn't delayed any more as well
        self.holding: set[str] = set()
        self.held: set[str] = set()  # queued, but nobody's turn until somebody resumes them
        self.overdue_running: set[str] = set()
        self.ended: dict[str, None] = {}
        # Serving: requests in flight and the time of the last one, by deployment; not stored.
        self.in_flight: dict[str, int] = {}
        self.used_at: dict[str, float] = {}
        self.changes = Changes()
        # Ended ones in the order of their ends; waiting ones in that in which they came to wait.
        for task in sorted(
            self.tasks.values(), key=lambda t: (t.ended or t.queued, order_of(t.id))
        ):
            if task.state is State.SUCCEEDED:
                self.estimates.learn(task, task.ran_s)
            self._file(task, snapshot.now)

    def configure(self, config: Config) -> None:
        """Go on with other settings."""
        self.config = config
        self.scheduler.configure(config)

    def begin(self, now: float) -> None:
        """Begin a step: nothing is changed yet."""
        self.changes = Changes(now=now)

    def finish(self) -> Changes:
        """End a step: all that it changed."""
        self.changes.next_task = self.next_task
        self.changes.next_seq = self.next_seq
        self.changes.next_audit = self.next_audit
        return self.changes

    # -- tasks

    def put(self, old: Task | None, new: Task, now: float, event: str, detail: str = "") -> Task:
        """Replace `old` by `new`, checked against the table of transitions, with a history line."""
        if old is not None and old.state is not new.state:
            check_transition(old.state, new.state)
        if old is not None:
            self._unfile(old, new)
        self.tasks[new.id] = new
        self.changes.tasks[new.id] = new
        self._file(new, now)
        self.changes.events.append(
            TaskEvent(
                seq=self.next_seq,
                at=now,
                task=new.id,
                type=event,
                state=new.state,
                generation=new.generation,
                detail=detail,
                principal=self.asker,
            )
        )
        self.next_seq += 1
        return new

    def _unfile(self, old: Task, new: Task) -> None:
        self.delayed.discard(old.id)
        self.held.discard(old.id)
        if (old.state, old.spec, old.held) != (new.state, new.spec, new.held):
            self.scheduler.queue.remove(old.id)
        if old.allocation is not None and old.allocation != new.allocation:
            self.resources.release(old.allocation)
            if new.allocation is not None:  # paused, or going on: the CPU alone
                self.resources.occupy(new.allocation)
            else:
                self.overdue_running.discard(old.id)
        self.holding.discard(old.id)

    def _file(self, task: Task, now: float) -> None:
        if task.state is State.QUEUED:
            if task.held is not None:
                self.held.add(task.id)
            elif task.not_before > now:
                self.delayed.add(task.id)
                heapq.heappush(self._delays, (task.not_before, order_of(task.id), task.id))
            elif task.id not in self.scheduler.queue:
                self.scheduler.queue.add(task, self.estimates.expected_s(task))
        elif task.state in HOLDING:
            self.holding.add(task.id)
        else:
            self.ended[task.id] = None

    def release_delayed(self, now: float) -> None:
        """Queue the tasks whose backoff is over."""
        while self.next_delayed() <= now:
            _, _, task_id = heapq.heappop(self._delays)
            task = self.tasks[task_id]
            self.delayed.discard(task_id)
            self.scheduler.queue.add(task, self.estimates.expected_s(task))

    def next_delayed(self) -> float:
        """When the next backoff ends; infinity when none is waited for."""
        while self._delays:
            at, _, task_id = self._delays[0]
            if task_id in self.delayed and self.tasks[task_id].not_before == at:
                return at
            heapq.heappop(self._delays)
        return math.inf

    def delete(self, task_id: str) -> None:
        """Forget an ended task."""
        del self.tasks[task_id]
        del self.ended[task_id]
        self.changes.deleted_tasks.append(task_id)

    # -- nodes, deployments, keys

    def put_node(self, node: Node) -> None:
        """A node is there, or has changed."""
        held = [
            task.allocation
            for task in (self.tasks[task_id] for task_id in self.holding)
            if task.allocation is not None and task.allocation.node == node.name
        ]
        self.resources.add(node, held)
        self.changes.nodes[node.name] = node

    def put_deployment(self, deployment: Deployment) -> Deployment:
        """Add or replace a deployment."""
        self.deployments[deployment.name] = deployment
        self.changes.deployments[deployment.name] = deployment
        return deployment

    def delete_deployment(self, name: str) -> None:
        """Forget a deployment."""
        del self.deployments[name]
        self.in_flight.pop(name, None)
        self.used_at.pop(name, None)
        self.changes.deployments.pop(name, None)
        self.changes.deleted_deployments.append(name)

    def put_key(self, key: IdempotencyKey) -> None:
        """Remember the answer to a request with an idempotency key."""
        self.keys.pop((key.user, key.key), None)  # the newest stands last
        self.keys[key.user, key.key] = key
        self.changes.keys.append(key)

    def delete_key(self, user: str, key: str) -> None:
        """Forget an idempotency key."""
        del self.keys[user, key]
        self.changes.deleted_keys.append((user, key))

    def overdue_resources(self) -> Resources:
        """What tasks hold that were overdue when they started."""
        held = (self.tasks[task_id].allocation for task_id in self.overdue_running)
        return sum((a.resources for a in held if a is not None), Resources())

    # -- who did what

    def put_audit(self, row: AuditRow) -> AuditRow:
        """Add a row under the next number."""
        row = replace(row, number=self.next_audit)
        self.next_audit += 1
        self.changes.audit.append(row)
        return row

    # -- invariants

    def check(self) -> None:
        """Raises InvariantError unless every invariant holds.

        1. A task holds an allocation exactly while its state says so.
        2. What a pool counts as used, in sum and by device, is the sum of the allocations on it.
        3. Nothing is negative; nothing is over capacity, devices included.
        4. Every queued task is in the queue, delayed or held, once, and nothing else is.
        5. A starting or running task has a generation of at least 1; an ended one has an end.
        6. Replicas of deployments are serving tasks that exist.
        7. A paused task holds no CPU, and what else it asked for; any other that holds something
           holds all of it, unless it is ended or saved out of a pause.
        """
        for task in self.tasks.values():
            if (task.allocation is not None) != (task.state in HOLDING):  # 1
                raise InvariantError(f"{task.id}: {task.state} with allocation {task.allocation}")
            waits = (task.id in self.scheduler.queue) + (task.id in self.delayed)  # 4
            waits += task.id in self.held
            if waits != (task.state is State.QUEUED):
                raise InvariantError(f"{task.id}: {task.state}, and waits in {waits} queues")
            self._check_paused(task)
            if task.state in HOLDING and task.generation < 1:  # 5
                raise InvariantError(f"{task.id}: {task.state} without a generation")
            if task.is_ended != (task.ended is not None) or task.is_ended != (
                task.id in self.ended
            ):
                raise InvariantError(f"{task.id}: {task.state} with end {task.ended}")
        if len(self.scheduler.queue) + len(self.delayed) > len(self.tasks):
            raise InvariantError("the queue holds tasks that don't exist")
        self._check_pools()
        for deployment in self.deployments.values():  # 6
            for replica in deployment.replicas:
                if replica not in self.tasks:
                    raise InvariantError(f"{deployment.name}: replica {replica} is no task")

    def _check_paused(self, task: Task) -> None:
        if task.allocation is None:  # 7
            return
        held, whole = task.allocation.resources, task.spec.resources
        idle = replace(whole, cpu=0)
        if task.state is State.PAUSED:
            right = held == idle
        elif task.state is State.SUSPENDING:
            right = held in (idle, whole)
        else:
            right = held == whole
        if not right:
            raise InvariantError(f"{task.id}: {task.state}, and holds {held} of {whole}")

    def _check_pools(self) -> None:
        held: dict[str, list[str]] = {name: [] for name in self.resources.pools}
        for task in self.tasks.values():
            if task.allocation is not None and task.allocation.node in held:
                held[task.allocation.node].append(task.id)
        for name, pool in self.resources.pools.items():
            allocations = [a for a in (self.tasks[t].allocation for t in held[name]) if a]
            total = sum((a.resources for a in allocations), Resources())
            if pool.used != total:  # 2
                raise InvariantError(f"{name}: counts {pool.used}, tasks hold {total}")
            devices = [0] * pool.node.gpus
            memory = [0] * pool.node.gpus
            for allocation in allocations:
                for device, share in allocation.shares.items():
                    devices[device] += share
                    memory[device] += memory_each(allocation)
            if devices != pool.gpu_used or memory != pool.gpu_memory_used:
                raise InvariantError(f"{name}: counts GPUs {pool.gpu_used}, tasks hold {devices}")
            if not pool.used.is_valid or not pool.free.is_valid:  # 3
                raise InvariantError(f"{name}: {pool.used} of {pool.node.capacity} given out")
            if any(not 0 <= share <= 1000 for share in devices):
                raise InvariantError(f"{name}: GPU shares {devices}")
