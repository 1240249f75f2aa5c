"""What follows when a worker starts, ends or is lost: the policy of restarts, by kind of task."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.arrays import Array
from zenos.core.batches import Batch
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.task import Deployment, Kind, Outcome, State, Task
from zenos.kernel.state import ran_s as ran_s

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

Work = Callable[[], Task | Array | Batch | Deployment | Node]

# Kinds that go on from what they have saved, or written down, whatever became of their worker.
SAVING: Final = (Kind.TRAIN, Kind.PREPROCESS, Kind.CALL)
# A worker that was told to save its state and end, and did (EX_TEMPFAIL of sysexits.h).
EXIT_SUSPENDED = 75
# Why a replica is being stopped that has to make room.
GIVES_WAY: Final = "gives way"
# Why one is that ends when it has answered what it was sent.
ANSWERING: Final = (GIVES_WAY, "idle", "replaced")


def current(kernel: Kernel, task_id: str, generation: int) -> Task | None:
    """The task, if that generation is its present one and it still holds its allocation.

    A message of an older generation, or of a task that has ended, is dropped.
    """
    task = kernel.state.tasks.get(task_id)
    if task is None or task.generation != generation or task.allocation is None:
        return None
    return task


def saves(task: Task) -> bool:
    """Whether a task that is being stopped is to save its state first."""
    return task.stopping == "suspend" and task.can_save and task.state is not State.STARTING


def grace_s(task: Task, config: Config) -> float:
    """How long a task that is being stopped has before it is ended by force.

    What is to be saved gets more time for it, and so do the answers of a replica that gives way, or
    that its deployment needs no more.
    """
    if saves(task):
        return config.suspend_grace_s
    return config.model_drain_s if task.stopping in ANSWERING else config.cancel_grace_s


def started(kernel: Kernel, event: ev.WorkerStarted, now: float) -> None:
    """The worker's process runs."""
    task = current(kernel, event.task, event.generation)
    if task is not None and task.state is State.STARTING:
        running = replace(task, state=State.RUNNING, running=now, start_failures=0)
        kernel.state.put(task, running, now, "running", f"pid {event.pid}")


def exited(kernel: Kernel, event: ev.WorkerExited, now: float) -> None:
    """The worker has ended.

    1. One that was being cancelled is cancelled; one over its time limit has failed.
    2. One that saved its state and ended goes back to the queue. So does a training that would
       have to go on with other numerics, held: nothing is lost, and somebody decides.
    3. A serving replica that was told to end has succeeded, and so has exit code 0.
    4. What a shutdown stopped and cannot be resumed begins again.
    5. Anything else is a failure; `restarts` says whether it is tried again.
    """
    task = current(kernel, event.task, event.generation)
    if task is None:
        return
    outcome = event.outcome
    if task.stopping == "cancel":  # 1
        if outcome.ok and task.kind is not Kind.SERVE:
            _end(kernel, task, State.SUCCEEDED, outcome, now)
        else:
            _end(kernel, task, State.CANCELLED, outcome, now)
    elif task.stopping == "time limit" and not outcome.ok:
        text = f"cannot finish: ran longer than its time limit of {task.spec.time_limit_s:g} s"
        _end(kernel, task, State.FAILED, replace(outcome, error=text), now)
    elif outcome.exit_code == EXIT_SUSPENDED and (  # 2
        task.kind is Kind.TRAIN or saves(task)
    ):
        _requeue(kernel, task, outcome, now, "suspended", reason="it has saved its state")
    elif outcome.code == "numerics" and task.kind is Kind.TRAIN:
        _requeue(kernel, replace(task, held="numerics"), outcome, now, "held")
    elif (task.kind is Kind.SERVE and task.stopping) or outcome.ok:  # 3
        _end(kernel, task, State.SUCCEEDED, outcome, now)
    elif task.stopping == "suspend":  # 4
        _requeue(kernel, task, outcome, now, "stopped")
    else:  # 5
        # A disk that is full is no fault of the work, nor that one process of a gang was killed:
        # what was saved is gone on from.
        fault = outcome.signal is not None or outcome.code in ("storage", "rank")
        fault = fault and not outcome.oom
        _failed(kernel, task, outcome, now, State.FAILED, event.saved_step, fault=fault)


def lost(kernel: Kernel, event: ev.WorkerLost, now: float) -> None:
    """The worker is gone and nobody knows how it ended.

    A program may have done its work, or half of it: it is lost, and started again only if
    `retries` says that this is harmless. The other kinds go on from what they saved.
    """
    task = current(kernel, event.task, event.generation)
    if task is None:
        return
    outcome = Outcome(error=f"cannot say how it ended: {event.reason}", log_tail=event.log_tail)
    if task.stopping == "cancel":
        _end(kernel, task, State.CANCELLED, outcome, now)
    elif task.kind is Kind.SERVE and task.stopping:
        _end(kernel, task, State.SUCCEEDED, outcome, now)
    else:
        _failed(kernel, task, outcome, now, State.LOST, event.saved_step, fault=True)


def node_lost(kernel: Kernel, task: Task, node: str, reason: str, now: float) -> None:
    """The node is gone on which a task's worker ran, or a part of it.

    As with a lost worker (`lost`); but it is no fault of the task. So what goes on from what it has
    saved does so at once, and nothing is counted.
    """
    if task.stopping == "cancel" or task.kind not in SAVING:
        event = ev.WorkerLost(
            task=task.id, generation=task.generation, reason=f"the node {node} was lost: {reason}"
        )
        lost(kernel, event, now)
        return
    outcome = Outcome(error=f"cannot say how it ended: the node {node} was lost: {reason}")
    _requeue(kernel, task, outcome, now, "restarting")


def start_failed(kernel: Kernel, event: ev.StartFailed, now: float) -> None:
    """The worker could not be started, and nothing of it runs: so it may always be tried again.

    That has a bound of its own, and takes nothing of the `retries` that are meant for the work.
    """
    task = current(kernel, event.task, event.generation)
    if task is None:
        return
    outcome = Outcome(error=f"cannot start: {event.reason}"[: limits.ERROR_CHARS_MAX])
    # A replica that was told to end has failed at nothing, whoever told it.
    if task.stopping == "cancel" or (task.stopping and task.kind is Kind.SERVE):
        _end(kernel, task, State.CANCELLED, outcome, now)
    elif task.stopping == "suspend":
        _requeue(kernel, task, outcome, now, "stopped")
    elif task.stopping:
        _end(kernel, task, State.FAILED, outcome, now)
    else:
        failed = replace(task, start_failures=task.start_failures + 1)
        if failed.start_failures > start_failures_max(task):
            _end(kernel, failed, State.FAILED, outcome, now)
        else:
            delay_s = backoff_s(failed.start_failures, task.id)
            _requeue(kernel, failed, outcome, now, "restarting", delay_s=delay_s)


def start_failures_max(task: Task) -> int:
    """How many starts in a row may fail before the task does."""
    patient = task.kind in (Kind.TRAIN, Kind.PREPROCESS)
    return limits.TRAIN_RESTARTS_MAX if patient else limits.START_FAILURES_MAX


def restarts(task: Task, *, fault: bool) -> int:
    """How often a task is started again.

    A failure that the work itself reports comes again, so only `retries` counts. After a fault
    (a signal, a lost worker) training and model creation go on from what they saved, and a host of
    calls from what it has written down.
    """
    allowed = task.spec.retries
    if fault and task.kind in SAVING:
        allowed = max(allowed, limits.TRAIN_RESTARTS_MAX)
    return allowed


def backoff_s(failures: int, task_id: str) -> float:
    """Seconds before the next try after so many failures in a row.

    Doubled each time, to a bound, less up to RETRY_JITTER of it: tasks that failed together don't
    all come again together. How much less is told from task and failures: the same each time.
    """
    doubled_s = limits.RETRY_BACKOFF_S * 2.0 ** min(failures - 1, 30)
    share = zlib.crc32(f"{task_id}/{failures}".encode()) / 2**32
    return min(doubled_s, limits.RETRY_BACKOFF_S_MAX) * (1 - limits.RETRY_JITTER * share)


def _failed(
    kernel: Kernel,
    task: Task,
    outcome: Outcome,
    now: float,
    final: State,
    saved_step: int,
    *,
    fault: bool,
) -> None:
    """Try again, or end.

    1. One that has come further than at its last fault begins to count anew: a long training may
       meet any number of faults, but not many at one place.
    2. It is tried again as often as `restarts` says, each time after a longer pause.
    """
    came_further = saved_step > task.saved_step  # 1
    failed = replace(
        task,
        attempts=1 if came_further else task.attempts + 1,
        saved_step=max(saved_step, task.saved_step),
    )
    if failed.attempts > restarts(task, fault=fault):  # 2
        _end(kernel, failed, final, outcome, now)
    else:
        delay_s = backoff_s(failed.attempts, task.id)
        _requeue(kernel, failed, outcome, now, "restarting", delay_s=delay_s)


def _requeue(
    kernel: Kernel,
    task: Task,
    outcome: Outcome,
    now: float,
    event: str,
    *,
    delay_s: float = 0.0,
    reason: str = "",
) -> None:
    queued = replace(
        task,
        state=State.QUEUED,
        allocation=None,
        queued=now,
        not_before=now + delay_s,
        ran_s=ran_s(task, now),
        running=None,
        stopping=None,
        stop_at=None,
        yield_by=None,
        resuming=None,
        ready=False,
        outcome=outcome,
    )
    kernel.state.put(task, queued, now, event, reason or outcome.describe())


def _end(kernel: Kernel, task: Task, state: State, outcome: Outcome, now: float) -> None:
    ended = replace(
        task,
        state=state,
        allocation=None,
        ended=now,
        ran_s=ran_s(task, now),
        held=None,
        yield_by=None,
        resuming=None,
        ready=False,
        outcome=outcome,
    )
    kernel.state.put(task, ended, now, str(state), outcome.describe())
    if state is State.SUCCEEDED:
        kernel.state.learn(ended, now)
    if task.kind is Kind.SERVE:
        kernel.models.replica_ended(ended, now)
