"""Pictures of the kernel's state: taken in the loop, looked at elsewhere (`rebuilt`).

In the loop only what is needed is gathered (`take`); what takes longer is done to the picture,
whose records never change, outside of it (`slim`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zenos.core import limits
from zenos.core.outlook import Held, Picture
from zenos.core.predictions import Source
from zenos.core.specs import CreateSpec, DataSpec, ProgramSpec, ServeSpec, TrainSpec, Work
from zenos.core.task import Outcome, State, Task
from zenos.kernel.scheduler import Place

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

_TRAIN: Final = TrainSpec(model="m", arch="llama-nano", data=DataSpec(paths=["/"]))
_CREATE: Final = CreateSpec(name="m", arch="llama-nano")
_REASON_CHARS_MAX: Final = 400


def take(kernel: Kernel, now: float, focus: str | None = None) -> Picture:
    """A picture with all that holds something, and of what waits `PICTURED_TASKS_MAX` at most.

    Those are the heads of the queue, which decide, and then who was submitted first. focus: a task
    that is in it in any case, if it has not ended. Ended tasks are not.
    """
    state = kernel.state
    waiting = state.waiting_count()
    chosen = dict.fromkeys(sorted(state.holding))
    chosen.update(_waiting(kernel, focus, waiting))
    tasks = [state.tasks[task_id] for task_id in chosen]
    expected_s: dict[str, float] = {}
    sources: dict[str, Source] = {}
    for task in tasks:
        expected_s[task.id], sources[task.id] = _expected(kernel, task)
    first = state.scheduler.reservation
    return Picture(
        now=now,
        next_task=state.next_task,
        config=kernel.config,
        tasks=tasks,
        expected_s=expected_s,
        sources=sources,
        arrays={
            task.array.id: state.arrays[task.array.id] for task in tasks if task.array is not None
        },
        nodes=[pool.node for pool in state.resources.pools.values()],
        deployments=list(state.deployments.values()),
        draining=kernel.draining,
        reservation=_held(first.task, first.places)
        if first is not None and first.task in chosen
        else [],
        claims=[
            held
            for task, claim in state.scheduler.claims.items()
            if task in chosen
            for held in _held(task, claim.places, claim.victims)
        ],
        resuming=dict(state.scheduler.resuming),
        overdue_running=sorted(state.overdue_running),
        given_way={
            task: list(times)
            for task, times in kernel.preemption.given_way.items()
            if task in chosen
        },
        in_flight=dict(state.asking.in_flight),
        used_at=dict(state.asking.used_at),
        needed_at={name: list(times) for name, times in state.asking.needed_at.items()},
        unanswered=dict(state.asking.unanswered),
        asked_at=dict(state.asking.asked_at),
        unloaded=sorted(state.asking.unloaded),
        ready_at=dict(state.asking.ready_at),
        usage=state.accounts.stored(),
        waiting=waiting,
        left_out=waiting - (len(chosen) - len(state.holding)),
    )


def _waiting(kernel: Kernel, focus: str | None, count: int) -> dict[str, None]:
    """Which of the `count` that wait are in it: deployments name their replicas, so those all."""
    state = kernel.state

    def others() -> Iterator[str]:
        if count > limits.PICTURED_TASKS_MAX:
            for entry in (*state.scheduler.queue.overdue_heads(), *state.scheduler.queue.heads()):
                yield entry.task
        for task in state.tasks.values():
            if task.state is State.QUEUED:
                yield task.id

    needed = [focus] if focus is not None and focus in state.tasks else []
    needed += [name for row in state.deployments.values() for name in row.replicas]
    chosen = dict.fromkeys(n for n in needed if state.tasks[n].state is State.QUEUED)
    most = min(count, limits.PICTURED_TASKS_MAX)
    for task_id in others() if len(chosen) < most else ():
        chosen[task_id] = None
        if len(chosen) >= most:
            break
    return chosen


def _expected(kernel: Kernel, task: Task) -> tuple[float, Source]:
    """The expected time of its whole run, and whose word that is."""
    total_s, source = kernel.state.estimates.total(task)
    entry = kernel.state.scheduler.queue.entry(task.id)
    if entry is not None:  # what was learned since changes nothing of its place
        total_s = entry.expected_s + task.ran_s
    return total_s, source


def slim(picture: Picture) -> Picture:
    """The same with what decides alone: no program's arguments, environment or output."""
    return replace(picture, tasks=[_slim(t, picture.expected_s[t.id]) for t in picture.tasks])


def _slim(task: Task, expected_s: float) -> Task:
    outcome = task.outcome
    if outcome is not None:
        reason = (outcome.error or "")[:_REASON_CHARS_MAX] or None
        outcome = Outcome(exit_code=outcome.exit_code, signal=outcome.signal, error=reason)
    spec = task.spec
    if not isinstance(spec.work, ServeSpec):  # the model manager compares those
        spec = replace(spec, work=_work(spec.work), name=task.label, expected_s=expected_s)
    return replace(task, spec=spec, outcome=outcome)


def _work(work: Work) -> Work:
    match work:
        case ProgramSpec():
            return ProgramSpec(argv=["-"], yields=work.yields)
        case TrainSpec():
            return replace(_TRAIN, workers=work.workers, workers_min=work.workers_min)
        case CreateSpec():
            return _CREATE
        case _:
            return work


def _held(
    task: str, places: Iterable[Place], victims: Iterable[tuple[str, int]] = ()
) -> list[Held]:
    rows = sorted(victims)
    return [
        Held(task=task, node=at.node, request=at.request, victims=rows, coming=at.coming)
        for at in places
    ]
