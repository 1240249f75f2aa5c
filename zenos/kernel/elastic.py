"""Elastic trainings: they grow into what is idle, and give it back when somebody wants it.

A batch is cut into as many shards as there may be workers, whoever computes them: with any number
of workers the result is the same (`runtime/train/gang.py`). So a training changes their number by
saving its state and starting again, and is never in between.

What it has beyond its fewest workers is lent: who waits with the same base priority gets it back
(`candidates.py`), who has a higher one may take all, as from any other training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zenos.core.quotas import accounts_of
from zenos.core.resources import Resources
from zenos.core.task import Allocation, State, Task, TaskSpec
from zenos.kernel.entries import order_of
from zenos.kernel.pool import NOTHING

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel


def least(spec: TaskSpec, allocation: Allocation) -> Allocation:
    """An allocation with how many workers it is for."""
    return replace(allocation, workers=spec.workers) if spec.is_elastic else allocation


def extend(kernel: Kernel, task_id: str, now: float) -> None:
    """Give a training that has just been given its least as many workers as there is room for.

    Others that could start have started; what is held back for somebody stays so.
    """
    state = kernel.state
    task = state.tasks[task_id]
    held = task.allocation
    if not task.spec.is_elastic or held is None or held.others:
        return  # a gang that lies on several nodes stays as it was cut
    kept, promised = state.scheduler.reserved(task_id), state.scheduler.promised(task_id)
    count = held.workers + _more(kernel, task, held.workers, kept.get(held.node), promised)
    larger = replace(held, workers=count, resources=task.spec.of_workers(count))
    state.put(task, replace(task, allocation=larger), now, "")


def grow(kernel: Kernel, now: float) -> None:
    """Have trainings start again where there is room for more of their workers.

    1. Only one that has run for `grow_s`, and has given way or grown less than half as often in
       the last hour as a training may: growing costs a start.
    2. Into what is free and held back for nobody, in the order in which they started. Not on a node
       where another is being saved, nor beside one in a quota that both count in: that room may be
       what it starts again for. Nor before it is known who else gives way for whom.
    """
    if kernel.draining or kernel.preemption.is_cut:
        return
    taken: dict[str, Resources] = {}
    kept = kernel.state.scheduler.reserved(ahead=True)
    promised = kernel.state.scheduler.promised()
    saving = _saving(kernel)
    for task in _growing(kernel):
        if not _may(kernel, task, now):  # 1
            continue
        assert task.allocation is not None  # noqa: S101 - it runs
        node = task.allocation.node
        if any(_shares(kernel, task, other) for other in saving):
            continue
        held = kept.get(node, NOTHING) + taken.get(node, NOTHING)
        more = _more(kernel, task, task.workers, held, promised)
        if more == 0:
            continue
        grows = task.spec.of_workers(task.workers + more) - task.granted
        taken[node] = taken.get(node, NOTHING) + grows  # 2
        promised.append((task.principal.user, task.principal.project, grows))
        kernel.preemption.note_given_way(task.id, now)
        kernel.stop(
            task,
            "suspend",
            now,
            into=replace(task, state=State.SUSPENDING),
            event="suspending",
            detail=f"grows from {task.workers} to {task.workers + more} workers",
        )


def next_wake(kernel: Kernel, now: float) -> float:
    """When a training will have run for long enough to grow, if there is room then."""
    times = (
        (task.running or 0.0) + kernel.config.grow_s
        for task in _growing(kernel)
        if task.running is not None
    )
    return min((at for at in times if at > now), default=math.inf)


def lent(task: Task) -> Allocation | None:
    """What a running training has beyond its fewest workers."""
    held = task.allocation
    if held is None or held.others or not task.spec.is_elastic:
        return None
    beyond = task.granted - task.spec.of_workers(task.spec.workers)
    return None if beyond == NOTHING else Allocation(node=held.node, resources=beyond)


def _growing(kernel: Kernel) -> list[Task]:
    """Those that may be given more, in the order in which they started."""
    tasks = (kernel.state.tasks[task_id] for task_id in kernel.state.elastic)
    found = [
        task
        for task in tasks
        if task.state is State.RUNNING
        and not task.stopping
        and task.workers < task.spec.workers_max
        and task.allocation is not None
        and not task.allocation.others
    ]
    return sorted(found, key=lambda task: (task.started or 0.0, order_of(task.id)))


def _saving(kernel: Kernel) -> list[Task]:
    """Such trainings that are saved, to start again or not."""
    tasks = (kernel.state.tasks[task_id] for task_id in kernel.state.elastic)
    return [task for task in tasks if task.stopping and task.allocation is not None]


def _shares(kernel: Kernel, task: Task, other: Task) -> bool:
    """Whether both find their room on the same node, or in the same quota."""
    assert task.allocation is not None  # noqa: S101 - both hold something
    assert other.allocation is not None  # noqa: S101
    if task.allocation.node == other.allocation.node:
        return True
    who = task.principal
    common = {*accounts_of(who)} & {*accounts_of(other.principal)}
    return bool(common) and kernel.state.accounts.concerns(who.user, who.project)


def _may(kernel: Kernel, task: Task, now: float) -> bool:
    times = kernel.preemption.times_given_way(task.id, now)
    stayed = task.running is not None and now >= task.running + kernel.config.grow_s
    return stayed and 2 * times < kernel.config.preemptions_per_hour


def _more(
    kernel: Kernel,
    task: Task,
    count: int,
    held: Resources | None,
    promised: list[tuple[str, str, Resources]],
) -> int:
    """How many more workers than `count` there is room for on its node, beside what is held, and in
    its owner's quotas, beside what is promised."""
    assert task.allocation is not None  # noqa: S101 - it has one
    pool = kernel.state.resources.pools.get(task.allocation.node)
    if pool is None or not pool.node.takes_work:
        return 0
    free, now = pool.free.without(held or NOTHING), task.spec.of_workers(count)
    who, accounts = task.principal, kernel.state.accounts
    for larger in range(task.spec.workers_max, count, -1):
        more = task.spec.of_workers(larger) - now
        if more.fits_in(free) and accounts.admits(who.user, who.project, more, promised):
            return larger - count
    return 0
