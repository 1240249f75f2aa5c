"""The kernel's step: events in; changes, actions and the next wake-up out. No I/O, no clock."""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
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
    NotFoundError,
    RefusedError,
    UnavailableError,
    ZenosError,
)
from zenos.core.task import (
    Allocation,
    IdempotencyKey,
    Kind,
    Principal,
    State,
    Task,
    TaskSpec,
)
from zenos.kernel import supervision
from zenos.kernel.model_manager import ModelManager
from zenos.kernel.state import KernelState


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
        self.config = config
        self.actions: list[Action] = []
        self.draining: str | None = None
        self._recovering = True

    def step(self, events: list[ev.Event], now: float) -> Step:
        """Take events in order, then enforce time limits, reconcile deployments and schedule."""
        self.state.begin(now)
        self.actions = []
        for event in events:
            self._take(event, now)
        self._enforce_times(now)
        self.state.release_delayed(now)
        self.models.reconcile(now)
        self._schedule(now)
        self.models.give_way(now)
        self._discard()
        self._retain(now)
        return Step(self.state.finish(), self.actions, self._next_wake(now))

    def recovering(self) -> list[Task]:
        """Tasks that held an allocation when the last daemon ended: for Executor.recover."""
        return [self.state.tasks[task_id] for task_id in sorted(self.state.holding)]

    # -- events

    def _take(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.Submit():
                self._answer(event.request, lambda: self._submit(event, now))
            case ev.Cancel():
                self._answer(event.request, lambda: self._cancel(event, now))
            case ev.Deploy():
                self._answer(event.request, lambda: self.models.deploy(event, now))
            case ev.Undeploy():
                self._answer(event.request, lambda: self.models.undeploy(event, now))
            case ev.Demand():
                self._answer(event.request, lambda: self.models.demand(event, now))
            case ev.Used():
                self.models.used(event, now)
            case ev.Published():
                self.models.published(event)
            case ev.Rollback():
                self._answer(event.request, lambda: self.models.roll_back(event, now))
            case ev.NodeUp():
                self.state.put_node(event.node)
                self._stop_again()
            case ev.Configured():
                self.config = event.config
                self.state.configure(event.config)
            case ev.Shutdown():
                self._shut_down(event, now)
            case _:
                self._take_of_worker(event, now)

    def _take_of_worker(self, event: ev.Event, now: float) -> None:
        match event:
            case ev.WorkerStarted():
                supervision.started(self, event, now)
            case ev.WorkerReady():
                self.models.ready(event, now)
            case ev.WorkerExited():
                supervision.exited(self, event, now)
            case ev.WorkerLost():
                supervision.lost(self, event, now)
            case ev.StartFailed():
                supervision.start_failed(self, event, now)
            case _:
                raise TypeError(f"no handler for {type(event).__name__}")

    def _answer(self, request: int, work: supervision.Work) -> None:
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
            return self.state.tasks[known]
        if self.draining:
            raise UnavailableError("cannot take new tasks: the daemon is going down")
        if len(self.state.scheduler.queue) >= limits.QUEUED_TASKS_MAX:
            raise BusyError("cannot queue more tasks: wait until some have ended", retry_after_s=10)
        self.state.resources.check_fits_ever(event.spec.resources)
        task = self.new_task(event.spec, event.principal, now)
        self.remember(event.principal, event.key, asked, task.id, now)
        return task

    def new_task(self, spec: TaskSpec, principal: Principal, now: float) -> Task:
        """Put a new task into the queue."""
        task = Task(
            id=f"t{self.state.next_task}",
            spec=spec,
            principal=principal,
            submitted=now,
            queued=now,
            kind=spec.kind,
        )
        self.state.next_task += 1
        return self.state.put(None, task, now, "submitted")

    def remembered(
        self, principal: Principal, key: str | None, spec: msgspec.Struct, now: float
    ) -> str | None:
        """What a request with this key was answered with, if it was made before."""
        known = self.state.keys.get((principal.user, key)) if key else None
        if known is None or now - known.at > limits.IDEMPOTENCY_KEPT_S:
            return None
        if known.fingerprint != fingerprint(spec):
            raise ConflictError(KEY_TAKEN)
        return known.subject

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
        if task.principal.project != event.principal.project:
            raise RefusedError(f"cannot cancel {task.id}: it belongs to {task.principal.user}")
        if task.is_ended or task.stopping == "cancel":
            return task
        if task.state is State.QUEUED:
            ended = replace(task, state=State.CANCELLED, ended=now, stopping="cancel")
            task = self.state.put(task, ended, now, "cancelled")
            if task.kind is Kind.SERVE:
                self.models.replica_ended(task, now)
            return task
        return self.stop(task, "cancel", now)

    # -- starting and stopping

    def stop(self, task: Task, why: str, now: float) -> Task:
        """Ask a task's worker to end, for the stated reason; its exit decides what comes next."""
        stopping = replace(task, stopping=why)
        told = self._tell_to_stop(stopping)
        return self.state.put(
            task, replace(stopping, stop_at=now + told.grace_s), now, "stopping", why
        )

    def _tell_to_stop(self, task: Task) -> StopWorker:
        """What is to be saved gets more time for it."""
        save = supervision.saves(task)
        grace_s = self.config.suspend_grace_s if save else self.config.cancel_grace_s
        told = StopWorker(task=task.id, generation=task.generation, grace_s=grace_s, save=save)
        self.actions.append(told)
        return told

    def _stop_again(self) -> None:
        """Once after a restart: workers that were being stopped are told again."""
        if not self._recovering:
            return
        self._recovering = False
        for task in self.recovering():
            if task.stopping:
                self._tell_to_stop(task)

    def _schedule(self, now: float) -> None:
        if self.draining:
            return

        def start(task_id: str, allocation: Allocation, *, overdue: bool) -> None:
            task = self.state.tasks[task_id]
            # The allocation was counted by the scheduler as it was made.
            started = self.state.put(
                task,
                replace(
                    task,
                    state=State.STARTING,
                    generation=task.generation + 1,
                    allocation=allocation,
                    started=now,
                    running=None,
                    stopping=None,
                    stop_at=None,
                    ready=False,
                ),
                now,
                "starting",
            )
            if overdue:
                self.state.overdue_running.add(task_id)
            self.actions.append(StartWorker(task=started))

        self.state.scheduler.schedule(now, self.state.overdue_resources(), start)

    def _enforce_times(self, now: float) -> None:
        for task_id in sorted(self.state.holding):
            task = self.state.tasks[task_id]
            limit_s = task.spec.time_limit_s
            if (
                limit_s is not None
                and task.running is not None
                and not task.stopping
                and task.ran_s + (now - task.running) >= limit_s
            ):
                self.stop(task, "time limit", now)

    def _shut_down(self, event: ev.Shutdown, now: float) -> None:
        """Start nothing more. With `suspend`, workers that can save do so; replicas end."""
        self.draining = "suspend" if event.suspend else "leave"
        if not event.suspend:
            return
        for task_id in sorted(self.state.holding):
            task = self.state.tasks[task_id]
            if not task.stopping and task.kind in (Kind.TRAIN, Kind.SERVE, Kind.PREPROCESS):
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
        kept = self.config.ended_tasks_kept
        for task_id in list(self.state.ended):
            ended = self.state.tasks[task_id].ended or 0.0
            if len(self.state.ended) <= kept and now - ended < self.config.ended_task_kept_s:
                break
            if not any(task_id in d.replicas for d in self.state.deployments.values()):
                self.state.delete(task_id)
                gone.append(task_id)
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

    def _next_wake(self, now: float) -> float:
        """The earliest time at which something is due without an event."""
        times = [self.models.next_wake(now)]
        if not self.draining:
            times.append(self.state.scheduler.queue.next_overdue())
        times.append(self.state.next_delayed())
        for task_id in self.state.holding:
            task = self.state.tasks[task_id]
            limit_s = task.spec.time_limit_s
            if limit_s is not None and task.running is not None and not task.stopping:
                times.append(task.running + limit_s - task.ran_s)
        return min(times, default=math.inf)
