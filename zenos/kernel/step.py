"""The kernel's step: events in; changes, actions and the next wake-up out. No I/O, no clock."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from zenos.core import audit, limits
from zenos.core import events as ev
from zenos.core.actions import (
    Action,
    Changes,
    Discard,
    Forget,
    Reply,
    Snapshot,
    StartWorker,
    StopWorker,
)
from zenos.core.config import Config
from zenos.core.errors import (
    KEY_TAKEN,
    BusyError,
    ConflictError,
    InvalidError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    ZenosError,
)
from zenos.core.task import (
    Allocation,
    ArrayPlace,
    IdempotencyKey,
    Kind,
    Principal,
    State,
    Task,
    TaskSpec,
)
from zenos.kernel import arrays, batches, elastic, exclusive, gate, nodes, preemption, supervision
from zenos.kernel.alike import Alike
from zenos.kernel.auditing import Audit
from zenos.kernel.giving_way import GivingWay
from zenos.kernel.hosts import Hosts
from zenos.kernel.model_manager import ModelManager
from zenos.kernel.picture import take
from zenos.kernel.state import KernelState
from zenos.kernel.victims import Preemption


class Step(NamedTuple):
    """What one step decided. `wake`: when to call again without an event (may be infinite)."""

    changes: Changes
    actions: list[Action]
    wake: float


def fingerprint(spec: msgspec.Struct) -> str:
    """A digest of what was asked for: the same key with another one is a conflict."""
    return hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()


class Kernel:
    """Manages resources, models and tasks. `step` is its whole interface."""

    def __init__(self, config: Config, snapshot: Snapshot | None = None) -> None:
        self.state = KernelState(config, snapshot or Snapshot(), limits.EXPECTED_S_DEFAULT)
        self.models = ModelManager(self)
        self.giving_way = GivingWay(self)
        self.audit = Audit(self)
        self.preemption = Preemption(self)
        self.hosts = Hosts(self)
        self.config = config
        self.actions: list[Action] = []
        self.draining: str | None = None
        self._recovering = True
        self.fresh_leases = True  # none of the nodes could be heard until now
        self.alike = Alike()
        # The request at hand changes nothing: it was made before, or what it wants is so already.
        self.unchanged = False

    def step(self, events: list[ev.Event], now: float) -> Step:
        """Take events in order, then enforce time limits, reconcile deployments and schedule."""
        self.state.begin(now)
        self.actions = []
        looks = [event for event in events if isinstance(event, ev.Look)]
        for event in events:
            if not isinstance(event, ev.Look):  # answered when all is decided
                self._take(event, now)
        self._enforce_times(now)
        nodes.enforce(self, now)
        preemption.expire(self, now)
        self.state.release_delayed(now)
        self.state.raise_due(now)
        self.models.reconcile(now)
        self.models.end_answered(now)
        gate.settle(self.state, now)
        gate.admit(self.state, now)
        self.preemption.renew_claims()
        self._schedule(now)
        while self.preemption.drop_claims() or self.state.scheduler.reserves_in_vain():
            self._schedule(now)
        self.giving_way.make_room(now)
        self.hosts.give_way(now)
        self.preemption.make_room(now)
        elastic.grow(self, now)
        self._discard()
        self._retain(now)
        for look in looks:
            self.actions.append(Reply(request=look.request, result=take(self, now, look.task)))
        return Step(self.state.finish(), self.actions, self._next_wake(now))

    def recovering(self) -> list[Task]:
        """Tasks that held an allocation when the last daemon ended: for Executor.recover."""
        return [self.state.tasks[task_id] for task_id in sorted(self.state.holding)]

    # -- events

    def _take(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.Submit():
                self.audit.answer(event, "submit", lambda: self._submit(event, now), now)
            case ev.Cancel():
                self.audit.answer(event, "cancel", lambda: self._cancel(event, now), now)
            case (
                ev.Pause()
                | ev.Suspend()
                | ev.Resume()
                | ev.Nice()
                | ev.SubmitArray()
                | ev.SubmitBatch()
                | ev.CancelArray()
            ):
                self._take_of_tasks(event, now)
            case ev.Deploy():
                action: audit.Action = (
                    "change" if event.spec.model in self.state.deployments else "deploy"
                )
                self.audit.answer(event, action, lambda: self.models.deploy(event, now), now)
            case ev.Undeploy():
                self.audit.answer(event, "undeploy", lambda: self.models.undeploy(event), now)
            case ev.Demand():
                self.answer(event.request, lambda: self.models.demand(event, now))
            case ev.Used():
                self.models.used(event, now)
            case ev.Record() | ev.Recall():
                self._take_from_beside(event, now)
            case ev.Published():
                self.models.published(event)
            case ev.Rollback():
                self.audit.answer(event, "rollback", lambda: self.models.roll_back(event, now), now)
            case ev.NodeUp() | ev.NodeBeat() | ev.NodeDown() | ev.SetCordon() | ev.Measured():
                nodes.take(self, event, now)
            case ev.Configured():
                self.config = event.config
                self.state.configure(event.config)
                self.audit.add(Principal(), "reload", "settings", now, via="signal")
            case ev.Shutdown():
                self._shut_down(event, now)
            case _:
                self._take_of_worker(event, now)

    def _take_of_tasks(
        self,
        event: ev.Pause
        | ev.Suspend
        | ev.Resume
        | ev.Nice
        | ev.SubmitArray
        | ev.SubmitBatch
        | ev.CancelArray,
        now: float,
    ) -> None:
        match event:
            case ev.SubmitBatch():
                batches.take(self, event, now)
            case ev.SubmitArray() | ev.CancelArray():
                arrays.take(self, event, now)
            case ev.Pause():
                self.audit.answer(event, "pause", lambda: preemption.pause(self, event, now), now)
            case ev.Suspend():
                self.audit.answer(
                    event, "suspend", lambda: preemption.suspend(self, event, now), now
                )
            case ev.Resume():
                self.audit.answer(event, "resume", lambda: preemption.resume(self, event, now), now)
            case ev.Nice():
                self.audit.answer(event, "nice", lambda: preemption.nice(self, event, now), now)

    def _take_of_worker(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.WorkerStarted():
                supervision.started(self, event, now)
            case ev.WorkerReady():
                self.models.ready(event, now)
            case ev.WorkerPaused():
                preemption.paused(self, event, now)
            case ev.WorkerExited():
                supervision.exited(self, event, now)
            case ev.WorkerLost():
                supervision.lost(self, event, now)
            case ev.StartFailed():
                supervision.start_failed(self, event, now)
            case _:
                raise TypeError(f"no handler for {type(event).__name__}")

    def answer(self, request: int, work: supervision.Work) -> None:
        try:
            self.actions.append(Reply(request=request, result=work()))
        except ZenosError as error:
            self.actions.append(Reply(request=request, result=error))

    def _submit(self, event: ev.Submit, now: float) -> Task:
        event.spec.check()
        asked = event.asked or event.spec
        known = self.remembered(event.principal, event.key, asked, now)
        if known is not None:
            if known not in self.state.tasks:
                raise ConflictError("cannot answer that idempotency key again: its task is gone")
            self.unchanged = True
            return self.state.tasks[known]
        spec = exclusive.whole(event.spec, self.state.nodes.values())
        self.check_takes([spec], event.principal, now)
        after = gate.resolve(self.state, spec.after, event.principal)
        task = self.new_task(spec, event.principal, now, after, warning=event.warning)
        self.remember(event.principal, event.key, asked, task.id, now)
        return gate.end_if_spoilt(self.state, task, now)

    def check_takes(
        self, specs: Sequence[TaskSpec], principal: Principal, now: float, count: int = 1
    ) -> None:
        """Raises what keeps so many new tasks of each from being taken."""
        if any(spec.deadline is not None and spec.deadline <= now for spec in specs):
            raise InvalidError("cannot end in time: the deadline is in the past; give a later one")
        if self.draining:
            raise UnavailableError("cannot take new tasks: the daemon is going down")
        if self.state.waiting_count() + count * len(specs) > limits.QUEUED_TASKS_MAX:
            raise BusyError("cannot queue more tasks: wait until some have ended", retry_after_s=10)
        self.state.accounts.check(principal, [(spec, count) for spec in specs])
        for spec in specs:
            self.state.resources.check_fits_ever(spec.request, spec.workers)

    def new_task(
        self,
        spec: TaskSpec,
        principal: Principal,
        now: float,
        after: tuple[str, ...] = (),
        array: ArrayPlace | None = None,
        line: tuple[str, str] = ("submitted", ""),
        warning: str = "",
    ) -> Task:
        """Queue a new task. after: what it comes after, by ids; line: of its history."""
        task = Task(
            id=f"t{self.state.next_task}",
            spec=self.alike.spec(spec),
            principal=self.alike.principal(principal),
            submitted=now,
            queued=max(now, spec.start_at or 0.0),
            not_before=spec.start_at or 0.0,
            kind=spec.kind,
            after=after,
            array=array,
        )
        late = gate.warning(task, self.state.estimates, now)
        task = replace(task, warning="; ".join(filter(None, (late, warning))))
        self.state.next_task += 1
        return self.state.put(None, task, now, *line)

    def remembered(
        self, principal: Principal, key: str | None, spec: msgspec.Struct, now: float
    ) -> str | None:
        """What a request with this key was answered with, if it was made before."""
        known = self._known(principal, key, now)
        if known is None:
            return None
        if known.fingerprint != fingerprint(spec):
            raise ConflictError(KEY_TAKEN)
        return known.subject

    def _known(self, principal: Principal, key: str | None, now: float) -> IdempotencyKey | None:
        known = self.state.keys.get((principal.user, key)) if key else None
        fresh = known is not None and now - known.at <= limits.IDEMPOTENCY_KEPT_S
        return known if fresh else None

    def _take_from_beside(self, event: ev.Record | ev.Recall, now: float) -> None:
        if isinstance(event, ev.Record):
            self.audit.record(event, now)
            return
        known = self._known(event.principal, event.once.key, now)
        result: IdempotencyKey | ZenosError
        if known is None:
            result = NotFoundError("cannot find that Idempotency-Key: it is new")
        elif known.fingerprint != event.once.asked:
            result = ConflictError(KEY_TAKEN)
        else:
            result = known
        self.actions.append(Reply(request=event.request, result=result))

    def remember(
        self, principal: Principal, key: str | None, spec: msgspec.Struct, subject: str, now: float
    ) -> None:
        """Remember the answer to a request with a key."""
        if key:
            self.state.put_key(
                IdempotencyKey(
                    user=principal.user,
                    key=key,
                    fingerprint=fingerprint(spec),
                    subject=subject,
                    at=now,
                )
            )

    def _cancel(self, event: ev.Cancel, now: float) -> Task:
        task = self.state.tasks.get(event.task)
        if task is None:
            raise NotFoundError(f"cannot find task {event.task!r}: 'zenos ps --all' lists them")
        if not event.principal.may_change(task.principal):
            raise RefusedError(f"cannot cancel {task.id}: it belongs to {task.principal.user}")
        if task.is_ended or task.stopping == "cancel":
            self.unchanged = True
            return task
        if task.state is State.QUEUED:
            ended = replace(task, state=State.CANCELLED, ended=now, stopping="cancel", held=None)
            task = self.state.put(task, ended, now, "cancelled")
            if task.kind is Kind.SERVE:
                self.models.replica_ended(task, now)
            return task
        return self.stop(task, "cancel", now)

    # -- starting and stopping

    def stop(
        self,
        task: Task,
        why: str,
        now: float,
        *,
        into: Task | None = None,
        event: str = "stopping",
        detail: str = "",
    ) -> Task:
        """Ask a task's worker to end, for the stated reason; its exit decides what comes next.

        into: the task as it is meanwhile, if that is another.
        """
        stopping = replace(into or task, stopping=why)
        told = self._tell_to_stop(stopping)
        until = replace(stopping, stop_at=now + told.grace_s)
        return self.state.put(task, until, now, event, detail or why)

    def _tell_to_stop(self, task: Task) -> StopWorker:
        save, grace_s = supervision.saves(task), supervision.grace_s(task, self.config)
        told = StopWorker(task=task.id, generation=task.generation, grace_s=grace_s, save=save)
        self.actions.append(told)
        return told

    def told_again(self) -> None:
        """Nobody needs to be told again: this is a copy of a kernel that runs (`rebuilt`)."""
        self._recovering = False

    def tell_again(self, now: float) -> None:
        """Once after a restart: workers are told again to stop, to pause or to go on."""
        if not self._recovering:
            return
        self._recovering = False
        for task in self.recovering():
            self.tell(task, now)

    def tell(self, task: Task, now: float) -> None:
        """Tell a task's worker again what it is to do."""
        if task.stopping:
            self._tell_to_stop(task)
        else:
            preemption.tell_again(self, task, now)

    def _schedule(self, now: float) -> None:
        if self.draining != "suspend":
            preemption.go_on(self, now)
        if self.draining:
            return

        starting: list[str] = []

        def start(task_id: str, allocation: Allocation, *, overdue: bool) -> None:
            task = self.state.tasks[task_id]
            # What is predicted at the first start stays, to be compared with what it takes.
            total_s, source = self.state.estimates.total(task)
            # The allocation was counted by the scheduler as it was made.
            started = self.state.put(
                task,
                replace(
                    task,
                    state=State.STARTING,
                    generation=task.generation + 1,
                    allocation=elastic.least(task.spec, allocation),
                    started=now,
                    waited_s=task.waited_s + max(0.0, now - task.queued),
                    running=None,
                    stopping=None,
                    stop_at=None,
                    ready=False,
                    predicted_s=total_s if task.predicted_s is None else task.predicted_s,
                    predicted_by=task.predicted_by or source,
                ),
                now,
                "starting",
            )
            if overdue:
                self.state.started_overdue(started)
            starting.append(task_id)

        self.state.scheduler.schedule(now, self.state.overdue_resources(), start)
        for task_id in starting:
            elastic.extend(self, task_id, now)
            self.actions.append(StartWorker(task=self.state.tasks[task_id]))

    def _enforce_times(self, now: float) -> None:
        for task_id in self.state.over_time_limit(now):
            self.stop(self.state.tasks[task_id], "time limit", now)

    def _shut_down(self, event: ev.Shutdown, now: float) -> None:
        """Start nothing more. With `suspend`, workers that can save do so; replicas end."""
        self.draining = "suspend" if event.suspend else "leave"
        self.state.scheduler.reservation = None  # nobody starts any more, nor looks at it again
        if not event.suspend:
            return
        for task_id in sorted(self.state.holding):
            task = self.state.tasks[task_id]
            goes_on = not task.stopping or task.stopping in supervision.ANSWERING
            if goes_on and task.kind in (Kind.TRAIN, Kind.SERVE, Kind.PREPROCESS):
                self.stop(task, "suspend", now)

    # -- housekeeping

    def _discard(self) -> None:
        """What trainings have saved, once they have ended: what is to go on is queued instead."""
        gone = [
            task.id
            for task in self.state.changes.tasks.values()
            if task.is_ended and task.kind is Kind.TRAIN and task.generation
        ]
        if gone:
            self.actions.append(Discard(tasks=gone))

    def _retain(self, now: float) -> None:
        """Forget ended tasks, events and idempotency keys beyond their retention."""
        gone: list[str] = []
        surplus = len(self.state.ended) - self.config.ended_tasks_kept
        for task_id in self.state.ended:  # the longest ended first
            ended = self.state.tasks[task_id].ended or 0.0
            if len(gone) >= surplus and now - ended < self.config.ended_task_kept_s:
                break
            if not any(task_id in d.replicas for d in self.state.deployments.values()):
                gone.append(task_id)
        for task_id in gone:
            self.state.delete(task_id)
        if gone:
            self.actions.append(Forget(tasks=gone))
        while self.state.keys:
            key = next(iter(self.state.keys.values()))  # the oldest comes first
            if now - key.at <= limits.IDEMPOTENCY_KEPT_S:
                break
            self.state.delete_key(key.user, key.key)
        oldest = self.state.next_seq - limits.EVENTS_KEPT
        if oldest - self.state.pruned_seq >= limits.EVENTS_KEPT // 100:
            self.state.pruned_seq = oldest
            self.state.changes.prune_events_before = oldest
        oldest = self.state.next_audit - self.config.audit_kept
        if oldest - self.state.pruned_audit >= max(1, self.config.audit_kept // 100):
            self.state.pruned_audit = oldest
            self.state.changes.prune_audit_before = oldest

    def _next_wake(self, now: float) -> float:
        """The earliest time at which something is due without an event."""
        times = [
            self.models.next_wake(now),
            self.giving_way.next_wake(now),
            self.preemption.next_wake(now),
            preemption.next_wake(self),
            elastic.next_wake(self, now),
            nodes.next_wake(self),
        ]
        if not self.draining:
            times.append(self.state.scheduler.queue.next_overdue(now))
            times.append(self.state.accounts.next_wake())
        times += (
            self.state.delays.next_at(),
            self.state.raises.next_at(),
            self.state.time_limits.next_at(),
        )
        return min(times, default=math.inf)
