"""The kernel's whole state, and the invariants that hold after every step."""

from __future__ import annotations

import heapq
import math

from msgspec.structs import replace

from zenos.core import limits, priority
from zenos.core.actions import Changes, Snapshot
from zenos.core.arrays import Array
from zenos.core.audit import AuditRow
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.predictions import Estimate
from zenos.core.resources import Resources
from zenos.core.task import (
    HOLDING,
    Deployment,
    IdempotencyKey,
    Kind,
    Principal,
    State,
    Task,
    TaskEvent,
    check_transition,
)
from zenos.kernel import accounts, gate, invariants
from zenos.kernel.array_ends import ArrayEnds
from zenos.kernel.asking import Asking
from zenos.kernel.due import Due
from zenos.kernel.estimates import Estimates, signature
from zenos.kernel.resource_manager import ResourceManager
from zenos.kernel.scheduler import Scheduler, order_of


def ran_s(task: Task, now: float) -> float:
    """Seconds that a task has run: not those in which it was paused."""
    return task.ran_s + (now - task.running if task.running is not None else 0.0)


def time_limit_at(task: Task) -> float:
    """When a running task's time limit is over; infinity where there is none."""
    if task.spec.time_limit_s is None or task.running is None:
        return math.inf
    return task.running + task.spec.time_limit_s - task.ran_s


class KernelState:
    """Tasks, nodes, deployments, the queue, and what the present step has changed.

    Everything is changed through the methods here, which note it in `changes` too: so what is
    remembered and what the kernel goes on with cannot differ.
    """

    def __init__(self, config: Config, snapshot: Snapshot, expected_default_s: float) -> None:
        self.config = config
        self.tasks: dict[str, Task] = dict(snapshot.tasks)
        self.arrays: dict[str, Array] = dict(snapshot.arrays)
        self.array_ends = ArrayEnds(self.arrays.values(), self.tasks.values())
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
        # All that are remembered; `heard`: when those with a lease last said that they are there.
        self.nodes: dict[str, Node] = dict(snapshot.nodes)
        self.heard: dict[str, float] = {}
        self.drained: set[str] = set()
        self.scheduler = Scheduler(config, self.resources)
        self.accounts = accounts.restore(config, snapshot)
        self.scheduler.queue.owners = self.accounts
        self.estimates = Estimates(expected_default_s, snapshot.estimates)
        # Tasks that wait for the end of their backoff, and holders that were overdue when started.
        self.delayed: set[str] = set()
        self.delays = Due(self._delayed_until)
        # When waiting tasks are raised next, by their deadlines.
        self.raises = Due(self._raised_again_at)
        self._raised_at: dict[str, float] = {}
        self.holding: set[str] = set()
        self.hosts: set[str] = set()  # of calls, among them
        self.held: set[str] = set()  # queued, but nobody's turn until somebody resumes them
        # Those that come after others; by parent, who does; what ended and isn't settled yet.
        self.blocked: set[str] = set()
        self.children: dict[str, dict[str, None]] = {}
        self.ended_now: list[str] = []
        # Of arrays with a limit: which tasks are in the queue or at work, who waits for such a
        # place (heaps; who doesn't any more as well), and which arrays may have places.
        self.active: dict[str, set[str]] = {}
        self.crowded: set[str] = set()
        self.crowds: dict[str, list[tuple[int, str]]] = {}
        self.uncrowded: set[str] = set()
        self.overdue_running: set[str] = set()
        self._overdue_sum = Resources()  # what they hold
        # Of those that hold something: by node; when their time limits end; whose pause isn't
        # confirmed; that wait to go on after one; that end.
        self.on_node: dict[str, dict[str, None]] = {}
        self.time_limits = Due(self._time_limit_at)
        self.pausing: set[str] = set()
        self.elastic: set[str] = set()  # that hold something
        self.resuming: set[str] = set()
        self.stopping: set[str] = set()
        # Nodes on which something has changed that decides who gives way there; see victims.py.
        self.touched: dict[str, None] = {}
        self.ended: dict[str, None] = {}
        self.asking = Asking()
        self.changes = Changes()
        self._learned: dict[str, Estimate] = {}  # at boot; written with the first step
        self._recall(snapshot)

    def _recall(self, snapshot: Snapshot) -> None:
        """File what is remembered, as if it had just come to be so."""
        # Places of an array: first who is at work, then in the order in which they are given
        # (`gate.admit`). Ended ones in the order of their ends.
        for task in sorted(
            self.tasks.values(),
            key=lambda t: (t.state not in HOLDING, t.ended or 0.0, order_of(t.id)),
        ):
            # Of a database from before run times were stored themselves.
            if task.state is State.SUCCEEDED and signature(task) not in snapshot.estimates:
                made, _ = self.estimates.learn(task, task.ran_s, task.ended or 0.0)
                if made is not None:
                    self._learned[made.signature] = made
            self._file(task, snapshot.now)
        self.accounts.touch = self.scheduler.queue.reconsider
        self.ended_now.clear()  # what followed from those is remembered with them
        for node in snapshot.nodes.values():
            # Of one without a lease the daemon says by itself what it has by now.
            if node.lease_s is not None or node.lost is not None:
                self._put_pool(node)

    def configure(self, config: Config) -> None:
        """Go on with other settings."""
        self.config = config
        self.accounts.configure(config)
        self.scheduler.configure(config)

    def begin(self, now: float) -> None:
        """Begin a step: nothing is changed yet."""
        self.changes = Changes(now=now, estimates=self._learned)
        self._learned = {}
        self.accounts.begin(now)

    def finish(self) -> Changes:
        """End a step: all that it changed."""
        self.changes.next_task = self.next_task
        self.changes.next_seq = self.next_seq
        self.changes.next_audit = self.next_audit
        self.changes.usage = self.accounts.written()
        self.changes.deleted_usage = self.accounts.forgotten()
        return self.changes

    # -- tasks

    def put(self, old: Task | None, new: Task, now: float, event: str, detail: str = "") -> Task:
        """Replace `old` by `new`, checked against the table of transitions, with a history line.

        event: what happened; empty: nothing that its history should tell.
        """
        if old is not None and old.state is not new.state:
            check_transition(old.state, new.state)
        if old is not None and new.array is not None and new.spec is not old.spec:
            new = replace(new, array=replace(new.array, own=True))
        if old is not None:
            self._unfile(old, new)
        self.tasks[new.id] = new
        self.changes.tasks[new.id] = new
        self.accounts.change(old, new)
        self.array_ends.change(old, new)
        self._file(new, now)
        if event:
            self._note(new, now, event, detail)
        return new

    def _note(self, new: Task, now: float, event: str, detail: str) -> None:
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

    def _unfile(self, old: Task, new: Task) -> None:
        self.delayed.discard(old.id)
        self.held.discard(old.id)
        self.blocked.discard(old.id)
        self.crowded.discard(old.id)
        if old.array is not None and old.array.limit is not None:
            self.active.setdefault(old.array.id, set()).discard(old.id)
            self.uncrowded.add(old.array.id)
        if (old.state, old.spec, old.held) != (new.state, new.spec, new.held):
            self.scheduler.queue.remove(old.id)
        if old.allocation is not None and old.allocation != new.allocation:
            self.resources.release(old.allocation)
            if new.allocation is not None:  # paused, or going on: the CPU alone
                self.resources.occupy(new.allocation)
                if old.id in self.overdue_running:
                    self._overdue_sum += new.allocation.total - old.allocation.total
            else:
                self._overdue_no_more(old)
        if old.id in self.holding:
            self._let_go(old)
        if new.state is not State.QUEUED:
            self._raised_at.pop(old.id, None)

    def _overdue_no_more(self, task: Task) -> None:
        if task.id in self.overdue_running and task.allocation is not None:
            self.overdue_running.discard(task.id)
            self._overdue_sum = self._overdue_sum - task.allocation.total

    def _let_go(self, task: Task) -> None:
        self.holding.discard(task.id)
        self.elastic.discard(task.id)
        for those in (self.hosts, self.pausing, self.resuming, self.stopping):
            those.discard(task.id)
        for part in task.allocation.parts if task.allocation is not None else ():
            here = self.on_node[part.node]
            del here[task.id]
            if not here:
                del self.on_node[part.node]
            self.touched[part.node] = None

    def _take_hold(self, task: Task) -> None:
        self.holding.add(task.id)
        if task.spec.is_elastic:
            self.elastic.add(task.id)
        if task.kind is Kind.CALL:
            self.hosts.add(task.id)
        if task.stopping:
            self.stopping.add(task.id)
        else:
            if task.yield_by is not None:
                self.pausing.add(task.id)
            if task.state is State.PAUSED and task.resuming is not None:
                self.resuming.add(task.id)
            self.time_limits.add(task.id)
        for part in task.allocation.parts if task.allocation is not None else ():
            self.on_node.setdefault(part.node, {})[task.id] = None
            self.touched[part.node] = None

    def _file(self, task: Task, now: float) -> None:
        if task.state is State.QUEUED:
            before = gate.unmet(task, self.is_open)
            for parent in before:
                self.children.setdefault(parent, {})[task.id] = None
            if task.held is not None:
                self.held.add(task.id)
            elif before:
                self.blocked.add(task.id)
                self.scheduler.queue.remove(task.id)
            elif task.not_before > now:
                self.delayed.add(task.id)
                self.delays.add(task.id)
            else:
                self._enqueue(task, now)
        elif task.state in HOLDING:
            self._take_hold(task)
            if task.array is not None and task.array.limit is not None:
                self.active.setdefault(task.array.id, set()).add(task.id)
        else:
            if task.id not in self.ended:
                self.ended_now.append(task.id)
            self.ended[task.id] = None

    def _enqueue(self, task: Task, now: float) -> None:
        """Into the queue, or to those that wait until fewer of their array are there."""
        place = task.array
        if place is not None and place.limit is not None:
            active = self.active.setdefault(place.id, set())
            if len(active) >= place.limit:
                self.crowded.add(task.id)
                self.scheduler.queue.remove(task.id)
                heapq.heappush(self.crowds.setdefault(place.id, []), (order_of(task.id), task.id))
                return
            active.add(task.id)
        if task.id not in self.scheduler.queue:
            self._put_into_queue(task, now)

    def _put_into_queue(self, task: Task, now: float, points: int = 0) -> None:
        """points: by which its deadline raises it at least."""
        expected_s = self.estimates.expected_s(task)
        rank, deadline = task.spec.priority, task.spec.deadline
        points = max(points, priority.raised(rank, deadline, expected_s, now))
        self.scheduler.queue.add(task, expected_s, points)
        then = priority.raised_next(rank, deadline, expected_s, points)
        if then < math.inf:
            self._raised_at[task.id] = then
            self.raises.add(task.id)
        else:
            self._raised_at.pop(task.id, None)

    def raise_due(self, now: float) -> None:
        """Raise waiting tasks whose deadlines have come nearer."""
        while self.raises.next_at() <= now:
            task_id = self.raises.pop()
            task, key = self.tasks[task_id], self.scheduler.queue.key(task_id)
            self.scheduler.queue.remove(task_id)
            room = limits.PRIORITY_MAX - task.spec.priority
            self._put_into_queue(task, now, min(key.raised + limits.DEADLINE_STEP, room))

    def _raised_again_at(self, task_id: str) -> float:
        waits = task_id in self.scheduler.queue
        return self._raised_at.get(task_id, math.inf) if waits else math.inf

    def waiting_count(self) -> int:
        """How many tasks are queued, in the scheduler's queue or out of it."""
        outside = (self.delayed, self.held, self.blocked, self.crowded)
        return len(self.scheduler.queue) + sum(map(len, outside))

    def waiting_for(self, task: Task) -> str:
        """What keeps a queued task out of the scheduler's queue, in words; empty without it."""
        if task.id in self.crowded:
            return gate.in_its_array(task)
        return gate.waiting_for(task, self.tasks, self.arrays, self.is_open)

    def is_open(self, parent: str) -> bool:
        """Whether a task, or one of an array, has not ended; not so what is not remembered."""
        task = self.tasks.get(parent)
        return self.array_ends.is_open(parent) if task is None else not task.is_ended

    def release_delayed(self, now: float) -> None:
        """Queue the tasks whose backoff is over."""
        while self.delays.next_at() <= now:
            task_id = self.delays.pop()
            task = self.tasks[task_id]
            self.delayed.discard(task_id)
            self._enqueue(task, now)

    def _delayed_until(self, task_id: str) -> float:
        return self.tasks[task_id].not_before if task_id in self.delayed else math.inf

    def _time_limit_at(self, task_id: str) -> float:
        runs = task_id in self.holding and task_id not in self.stopping
        return time_limit_at(self.tasks[task_id]) if runs else math.inf

    def over_time_limit(self, now: float) -> list[str]:
        """Running tasks whose time limit is over, for whoever stops them: each is told once."""
        found: dict[str, None] = {}
        while self.time_limits.next_at() <= now:
            found[self.time_limits.pop()] = None
        return sorted(found, key=order_of)

    def learn(self, task: Task, now: float) -> None:
        """A task has finished: what its run time teaches is remembered, however long it is kept."""
        made, gone = self.estimates.learn(task, task.ran_s, now)
        if made is not None:
            self.changes.estimates[made.signature] = made
            if made.signature in self.changes.deleted_estimates:
                self.changes.deleted_estimates.remove(made.signature)
        if gone:
            self.changes.estimates.pop(gone, None)
            self.changes.deleted_estimates.append(gone)

    def delete(self, task_id: str) -> None:
        """Forget an ended task."""
        task = self.tasks.pop(task_id)
        del self.ended[task_id]
        self.changes.deleted_tasks.append(task_id)
        if task.array is not None:
            self._forget_of_array(self.arrays[task.array.id], task.state)

    def put_array(self, array: Array) -> Array:
        """Add or replace an array."""
        self.arrays[array.id] = self.changes.arrays[array.id] = array
        return array

    def _forget_of_array(self, array: Array, state: State) -> None:
        """One of its tasks is forgotten; with the last one, so is the array."""
        forgotten = {**array.forgotten, state: array.forgotten.get(state, 0) + 1}
        if sum(forgotten.values()) < array.indices.count:
            self.put_array(replace(array, forgotten=forgotten))
            return
        del self.arrays[array.id]
        self.array_ends.forget(array.id)
        self.active.pop(array.id, None)
        self.crowds.pop(array.id, None)
        self.uncrowded.discard(array.id)
        self.changes.arrays.pop(array.id, None)
        self.changes.deleted_arrays.append(array.id)

    # -- nodes, deployments, keys

    def put_node(self, node: Node) -> Node:
        """A node is there, or has changed."""
        self._put_pool(node)
        self.nodes[node.name] = self.changes.nodes[node.name] = node
        return node

    def _put_pool(self, node: Node) -> None:
        held = [
            part
            for task in (self.tasks[task_id] for task_id in self.on_node.get(node.name, ()))
            if task.allocation is not None
            for part in task.allocation.parts
            if part.node == node.name
        ]
        self.resources.add(node, held)
        self.accounts.resize(self.resources.capacity())
        self.touched[node.name] = None
        (self.drained.add if node.cordon == "drain" else self.drained.discard)(node.name)

    def put_deployment(self, deployment: Deployment) -> Deployment:
        """Add or replace a deployment."""
        self.deployments[deployment.name] = deployment
        self.changes.deployments[deployment.name] = deployment
        return deployment

    def delete_deployment(self, name: str) -> None:
        """Forget a deployment."""
        del self.deployments[name]
        self.asking.forget(name)
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

    def started_overdue(self, task: Task) -> None:
        """A task that was overdue has an allocation now."""
        if task.allocation is not None and task.id not in self.overdue_running:
            self.overdue_running.add(task.id)
            self._overdue_sum = self._overdue_sum + task.allocation.total

    def overdue_resources(self) -> Resources:
        """What tasks hold that were overdue when they started."""
        return self._overdue_sum

    # -- who did what

    def put_audit(self, row: AuditRow) -> AuditRow:
        """Add a row under the next number."""
        row = replace(row, number=self.next_audit)
        self.next_audit += 1
        self.changes.audit.append(row)
        return row

    def check(self) -> None:
        """Raises InvariantError unless every invariant holds (see invariants.py)."""
        invariants.check(self)
