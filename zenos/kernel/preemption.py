"""Pausing, suspending, resuming and changing priorities: the mechanism, asked for by people.

Paused: the worker keeps its memory and its GPUs, and gives its CPU back. Suspended: its state is on
the disk, and everything is given back. A task that somebody paused or suspended is *held*: it goes
on when somebody resumes it, not by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import PauseWorker, ResumeWorker
from zenos.core.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RefusedError,
)
from zenos.core.resources import Resources
from zenos.core.specs import ProgramSpec, ServeSpec, TrainSpec
from zenos.core.task import Allocation, Kind, Principal, State, Task
from zenos.kernel import supervision
from zenos.kernel.entries import order_of

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

PAUSABLE: Final = (Kind.TRAIN, Kind.RUN)


# -- what people say


def pause(kernel: Kernel, event: ev.Pause, now: float) -> Task:
    """Have a running task give its CPU back.

    1. A replica is not paused: its requests would wait for nothing. Nor is the making of a model.
       A gang on several nodes isn't either: one node's CPU would wait for another's.
    2. One that waits to go on after a pause stays paused.
    3. A running one is told; until it says that it has paused it counts as running. If it says
       nothing within `pause_grace_s`, it goes on (`expire`).
    4. In any other state there is nothing to pause.
    """
    task = _find(kernel, event.task, event.principal, "pause")
    if task.kind not in PAUSABLE:  # 1
        raise RefusedError(_not_for(task, "pause"))
    if task.allocation is not None and task.allocation.others:
        raise RefusedError(
            f"cannot pause {task.id}: it runs on several nodes; 'zenos suspend {task.id}' saves it"
        )
    if task.state is State.PAUSED and task.resuming is not None and not task.stopping:  # 2
        stays = replace(task, held="pause", resuming=None)
        return kernel.state.put(task, stays, now, "held", _by(event.principal))
    if task.state is State.RUNNING and not task.stopping:  # 3
        grace_s = kernel.config.pause_grace_s
        pausing = replace(task, state=State.PAUSING, held="pause", yield_by=now + grace_s)
        _tell_to_pause(kernel, pausing)
        return kernel.state.put(task, pausing, now, "pausing", _by(event.principal))
    raise ConflictError(f"cannot pause {task.id}: {_why_not(task)}")  # 4


def suspend(kernel: Kernel, event: ev.Suspend, now: float) -> Task:
    """Have a task save its state and give everything back.

    1. A replica is not suspended: a deployment is stopped. A model that is being made isn't either.
    2. One that waits in the queue is held there: nothing of it runs, so there is nothing to save.
    3. A program that doesn't say how it saves its state is refused: its work would be lost.
    4. A running or paused one is told to save and end. What has not ended within `suspend_grace_s`
       is killed, and goes back to its last checkpoint.
    5. One that is saving already, since it gives way to another, is held when it has.
    6. In any other state there is nothing to suspend.
    """
    task = _find(kernel, event.task, event.principal, "suspend")
    if task.kind not in PAUSABLE:  # 1
        raise RefusedError(_not_for(task, "suspend"))
    if task.state is State.QUEUED and task.held is None:  # 2
        return kernel.state.put(task, replace(task, held="suspend"), now, "held", "queued")
    live = task.state in (State.RUNNING, State.PAUSING, State.PAUSED) and not task.stopping
    if live and not task.can_save:  # 3
        raise RefusedError(
            f"cannot suspend {task.id}: a program can't save its state unless it was submitted "
            f"with --yields signals or helper; 'zenos pause {task.id}' freezes it"
        )
    if live:  # 4
        saving = replace(task, state=State.SUSPENDING, held="suspend", yield_by=None, resuming=None)
        return kernel.stop(
            task, "suspend", now, into=saving, event="suspending", detail=_by(event.principal)
        )
    if task.state is State.SUSPENDING and task.stopping == "suspend" and task.held is None:  # 5
        by = _by(event.principal)
        return kernel.state.put(task, replace(task, held="suspend"), now, "held", by)
    raise ConflictError(f"cannot suspend {task.id}: {_why_not(task)}")  # 6


def resume(kernel: Kernel, event: ev.Resume, now: float) -> Task:
    """Let a task go on.

    1. `inexact` is for trainings that begin anew from their checkpoint: written into their spec.
    2. One that is being suspended isn't held any more: it goes on once it has been.
    3. One that is held in the queue waits from now on, as if it had just come.
    4. One whose pause isn't confirmed goes on at once: it has its CPU still.
    5. A paused one goes on as soon as its CPU is free (`go_on`), ahead of everything queued.
    """
    task = _find(kernel, event.task, event.principal, "resume")
    free = replace(task, held=None, spec=task.spec)
    if event.inexact:  # 1
        work = task.spec.work
        if not isinstance(work, TrainSpec):
            raise InvalidError(f"cannot resume {task.id} inexactly: it is no training")
        free = replace(free, spec=replace(task.spec, work=replace(work, inexact=True)))
    by = _by(event.principal)
    if task.state is State.SUSPENDING and task.held and task.stopping == "suspend":  # 2
        return kernel.state.put(task, free, now, "resuming", by)
    if task.state is State.QUEUED and task.held:  # 3
        return kernel.state.put(
            task, replace(free, queued=max(now, task.not_before)), now, "resumed", by
        )
    if task.state is State.PAUSING and not task.stopping:  # 4
        _tell_to_resume(kernel, task)
        on = replace(free, state=State.RUNNING, yield_by=None)
        return kernel.state.put(task, on, now, "resumed", by)
    if task.state is State.PAUSED and not task.stopping:  # 5
        since = now if task.resuming is None else task.resuming
        return kernel.state.put(task, replace(free, resuming=since), now, "resuming", by)
    if task.state is State.QUEUED and not task.held:
        raise ConflictError(f"cannot resume {task.id}: it waits in the queue, and nobody holds it")
    raise ConflictError(f"cannot resume {task.id}: {_why_not(task)}")


def nice(kernel: Kernel, event: ev.Nice, now: float) -> Task:
    """Give a task another priority; one that waits takes its place by it at once.

    1. A replica has its deployment's.
    2. A task that has ended has no use for one.
    """
    low, high = limits.PRIORITY_MIN, limits.PRIORITY_MAX
    if not low <= event.priority <= high:
        raise InvalidError(f"cannot use priority {event.priority}: from {low} to {high}")
    task = _find(kernel, event.task, event.principal, "change the priority of")
    if task.kind is Kind.SERVE:  # 1
        raise RefusedError(
            f"cannot change the priority of {task.id}: a replica has its deployment's; "
            "'zenos serve MODEL --priority' changes that"
        )
    if task.is_ended:  # 2
        raise ConflictError(f"cannot change the priority of {task.id}: {_why_not(task)}")
    spec = replace(task.spec, priority=event.priority)
    detail = f"{task.spec.priority} → {event.priority}, {_by(event.principal)}"
    return kernel.state.put(task, replace(task, spec=spec), now, "priority", detail)


# -- what follows


def paused(kernel: Kernel, event: ev.WorkerPaused, now: float) -> None:
    """A worker computes nothing any more: its CPU is free. Paused time is no run time.

    Who was given up meanwhile, and paused after all, is told again to go on.
    """
    task = supervision.current(kernel, event.task, event.generation)
    if task is None or task.stopping:
        return
    if task.state is State.RUNNING:
        _tell_to_resume(kernel, task)
    elif task.state is State.PAUSING:
        assert task.allocation is not None  # noqa: S101 - by `current`
        still = replace(
            task,
            state=State.PAUSED,
            yield_by=None,
            ran_s=supervision.ran_s(task, now),
            running=None,
            allocation=_with_cpu(task.allocation, 0),
        )
        kernel.state.put(task, still, now, "paused")


def expire(kernel: Kernel, now: float) -> None:
    """Who has not paused within its grace time goes on, and is not held."""
    for task_id in sorted(kernel.state.pausing):
        task = kernel.state.tasks[task_id]
        if task.yield_by is not None and task.yield_by <= now and not task.stopping:
            _tell_to_resume(kernel, task)
            on = replace(task, state=State.RUNNING, held=None, yield_by=None)
            text = f"cannot pause: no answer within {kernel.config.pause_grace_s:g} s; it goes on"
            kernel.state.put(task, on, now, "not paused", text)


def go_on(kernel: Kernel, now: float) -> None:
    """Let paused tasks go on that are to, in the order in which they were asked to.

    1. One whose CPU is free on its node, beyond what those before it wait for, takes it.
    2. For the others it is held back: nothing that is queued gets it before them.
    """
    state = kernel.state
    kept: dict[str, Resources] = {}
    for task in waiting(kernel):
        assert task.allocation is not None  # noqa: S101 - it holds one
        node, cpu = task.allocation.node, task.granted.cpu
        before = kept.get(node, Resources())
        if cpu == 0 or state.resources.has_cpu(node, before.cpu + cpu):  # 1
            _tell_to_resume(kernel, task)
            whole = _with_cpu(task.allocation, cpu)
            on = replace(task, state=State.RUNNING, resuming=None, running=now, allocation=whole)
            state.put(task, on, now, "resumed")
        else:  # 2
            kept[node] = before + Resources(cpu=cpu)
    state.scheduler.resuming = kept


def waiting(kernel: Kernel) -> list[Task]:
    """Paused tasks that wait for their CPU, in the order in which they were asked to go on."""
    tasks = (kernel.state.tasks[task_id] for task_id in kernel.state.resuming)
    found = [task for task in tasks if _waits(task)]
    return sorted(found, key=lambda task: (task.resuming or 0.0, order_of(task.id)))


def tell_again(kernel: Kernel, task: Task, now: float) -> None:
    """Once after a restart of the daemon: a task's worker hears what it is to do.

    The grace time of a pause begins anew: it could not be confirmed while no daemon was there.
    """
    if task.state is State.PAUSING:
        again = replace(task, yield_by=now + kernel.config.pause_grace_s)
        kernel.state.put(task, again, now, "pausing", "told again after a restart")
    if task.state in (State.PAUSING, State.PAUSED):
        _tell_to_pause(kernel, task)
    elif task.state is State.RUNNING and task.kind in PAUSABLE:
        _tell_to_resume(kernel, task)


def next_wake(kernel: Kernel) -> float:
    """When the next grace time of a pause is over; infinity when none runs."""
    tasks = (kernel.state.tasks[task_id] for task_id in kernel.state.pausing)
    return min((t.yield_by for t in tasks if t.yield_by and not t.stopping), default=math.inf)


# -- small parts


def _find(kernel: Kernel, task_id: str, principal: Principal, verb: str) -> Task:
    task = kernel.state.tasks.get(task_id)
    if task is None:
        raise NotFoundError(f"cannot find task {task_id!r}: 'zenos ps --all' lists them")
    if not principal.may_change(task.principal):
        raise RefusedError(f"cannot {verb} {task.id}: it belongs to {task.principal.user}")
    return task


def _waits(task: Task) -> bool:
    return task.state is State.PAUSED and task.resuming is not None and not task.stopping


def _how(task: Task) -> Literal["step", "signals", "freeze"]:
    work = task.spec.work
    if isinstance(work, ProgramSpec):
        return "signals" if work.yields == "signals" else "freeze"
    return "step"


def _tell_to_pause(kernel: Kernel, task: Task) -> None:
    kernel.actions.append(
        PauseWorker(
            task=task.id,
            generation=task.generation,
            how=_how(task),
            grace_s=kernel.config.pause_grace_s,
        )
    )


def _tell_to_resume(kernel: Kernel, task: Task) -> None:
    kernel.actions.append(ResumeWorker(task=task.id, generation=task.generation, how=_how(task)))


def _with_cpu(allocation: Allocation, cpu: int) -> Allocation:
    return replace(allocation, resources=replace(allocation.resources, cpu=cpu))


def _by(principal: Principal) -> str:
    return f"by {principal.user}"


def _not_for(task: Task, verb: str) -> str:
    if task.kind is Kind.SERVE:
        return (
            f"cannot {verb} {task.id}: it is a replica, and requests would wait for it; "
            f"'zenos stop {_deployment(task)}' ends the deployment"
        )
    if task.kind is Kind.CALL:
        return (
            f"cannot {verb} {task.id}: programs wait for its functions, and it ends by itself "
            "when there are none; 'zenos cancel' ends it now"
        )
    return f"cannot {verb} {task.id}: making a model takes seconds; 'zenos cancel' ends it"


def _deployment(task: Task) -> str:
    work = task.spec.work
    return work.deployment if isinstance(work, ServeSpec) else task.label


def _why_not(task: Task) -> str:
    """What a task does instead, for who asked for something that this state has no room for."""
    if task.is_ended:
        return f"it has ended ({task.state})"
    if task.stopping and task.state is not State.SUSPENDING:
        return f"it is being ended ({task.stopping})"
    if task.state is State.QUEUED and task.held:
        return "it is held already, and nothing of it runs; 'zenos resume' lets it go on"
    return {
        State.QUEUED: "it waits in the queue; 'zenos suspend' holds it there",
        State.STARTING: "it is just starting; try again in a moment",
        State.RUNNING: "it is running, neither paused nor held",
        State.PAUSING: "it is being paused already",
        State.PAUSED: "it is paused already",
        State.SUSPENDING: "it is being suspended",
    }[task.state]
