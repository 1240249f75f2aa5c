"""What holds of the kernel's state after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from zenos.core.quotas import accounts_of
from zenos.core.resources import Resources
from zenos.core.task import HOLDING, Allocation, Kind, State, Task
from zenos.kernel import gate
from zenos.kernel.pool import memory_each

if TYPE_CHECKING:
    from zenos.kernel.state import KernelState


class InvariantError(AssertionError):
    """An invariant of the kernel's state does not hold: a bug in zenos."""


def check(state: KernelState) -> None:
    """Raises InvariantError unless every invariant holds.

    1. A task holds an allocation exactly while its state says so.
    2. What a pool counts as used, in sum and by device, is the sum of the allocations on it.
    3. Nothing is negative; nothing is over capacity, devices included. Free is what
       is neither given out nor withheld, and less than nothing where others took what was given.
    4. Every queued task is in the queue, delayed, held, blocked or crowded, once, and nothing
       else is.
    5. A starting or running task has a generation of at least 1; an ended one has an end.
    6. Replicas of deployments are serving tasks that exist.
    7. A paused task holds no CPU, and what else it asked for; any other that holds something
       holds all of it, unless it is ended or saved out of a pause.
    8. Who is blocked has a parent that has not ended, and will hear of its end.
    9. Of an array no more tasks are in the queue or at work than may be, and all are counted, as
       are those that have not ended, or not in success.
    10. On a node that is lost nothing is held.
    11. Hosts of calls are those that hold something.
    12. What a user and a project hold is the sum over their tasks; and a task of theirs stands
        in the queue as one that may start exactly while their quotas have room for it.
    """
    for task in state.tasks.values():
        if (task.allocation is not None) != (task.state in HOLDING):  # 1
            raise InvariantError(f"{task.id}: {task.state} with allocation {task.allocation}")
        waits = (task.id in state.scheduler.queue) + (task.id in state.delayed)  # 4
        waits += (task.id in state.held) + (task.id in state.blocked)
        waits += task.id in state.crowded
        if waits != (task.state is State.QUEUED):
            raise InvariantError(f"{task.id}: {task.state}, and waits in {waits} queues")
        if (task.id in state.hosts) != (task.kind is Kind.CALL and task.id in state.holding):  # 11
            raise InvariantError(f"{task.id}: {task.state}, and wrongly counted as a host")
        _check_paused(task)
        _check_parents(state, task)
        if task.state in HOLDING and task.generation < 1:  # 5
            raise InvariantError(f"{task.id}: {task.state} without a generation")
        if task.is_ended != (task.ended is not None) or task.is_ended != (task.id in state.ended):
            raise InvariantError(f"{task.id}: {task.state} with end {task.ended}")
    if len(state.scheduler.queue) + len(state.delayed) > len(state.tasks):
        raise InvariantError("the queue holds tasks that don't exist")
    _check_pools(state)
    _check_arrays(state)
    _check_accounts(state)
    for deployment in state.deployments.values():  # 6
        for replica in deployment.replicas:
            if replica not in state.tasks:
                raise InvariantError(f"{deployment.name}: replica {replica} is no task")


def _check_arrays(state: KernelState) -> None:
    for array in state.arrays.values():  # 9
        ends = (array.is_open(state.tasks), array.failed(state.tasks))
        if ends != (state.is_open(array.id), state.array_ends.has_failed(array.id)):
            raise InvariantError(f"{array.id}: its tasks say open and failed {ends}")
        if array.indices.limit is None:
            continue
        found = {t for t in array.tasks if t in state.holding or t in state.scheduler.queue}
        if found != state.active.get(array.id, set()) or len(found) > array.indices.limit:
            raise InvariantError(f"{array.id}: {sorted(found)} are active")


def _check_accounts(state: KernelState) -> None:
    held: dict[str, Resources] = {}
    alive: dict[str, int] = {}
    for task in state.tasks.values():  # 12
        for name in accounts_of(task.principal):
            alive[name] = alive.get(name, 0) + (not task.is_ended)
            if task.state in HOLDING:
                held[name] = held.get(name, Resources()) + task.granted
    for name, account in state.accounts.known.items():
        found = (account.alive, account.held)
        if found != (alive.pop(name, 0), held.get(name, Resources())):
            raise InvariantError(f"{name}: counts {found}, its tasks hold {held.get(name)}")
    if any(alive.values()):
        raise InvariantError(f"nobody counts what these hold: {sorted(alive)}")
    queue = state.scheduler.queue
    for entry in queue.heads():
        if not queue.is_open(entry.key):
            raise InvariantError(f"{entry.task}: may start, and its owner's quotas are full")
    for task in state.tasks.values():
        entry_ = queue.entry(task.id)
        if entry_ is None or queue.is_overdue(task.id):
            continue
        if queue.is_open(entry_.key) != (queue.head(entry_.key) is not None):
            raise InvariantError(f"{task.id}: its bucket is open or closed, and should not be")


def _check_parents(state: KernelState, task: Task) -> None:
    before = gate.unmet(task, state.is_open) if task.state is State.QUEUED else []
    if (task.id in state.blocked) != (bool(before) and task.held is None):  # 8
        raise InvariantError(f"{task.id}: waits for {before}, blocked or not")
    if any(task.id not in state.children.get(parent, ()) for parent in before):
        raise InvariantError(f"{task.id}: would not hear of the end of {before}")


def _check_paused(task: Task) -> None:
    if task.allocation is None:  # 7
        return
    held, whole = task.allocation.total, task.granted
    idle = replace(whole, cpu=0)
    if task.state is State.PAUSED:
        right = held == idle
    elif task.state is State.SUSPENDING:
        right = held in (idle, whole)
    else:
        right = held == whole
    if not right:
        raise InvariantError(f"{task.id}: {task.state}, and holds {held} of {whole}")


def _check_pools(state: KernelState) -> None:
    held: dict[str, list[Allocation]] = {name: [] for name in state.resources.pools}
    for task in state.tasks.values():
        for part in task.allocation.parts if task.allocation is not None else ():
            held.setdefault(part.node, []).append(part)
    for name, pool in state.resources.pools.items():
        allocations = held[name]
        total = sum((a.resources for a in allocations), Resources())
        if pool.node.lost is not None and allocations:  # 10
            raise InvariantError(f"{name}: is lost, and tasks hold {total} there")
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
        rest = pool.node.capacity - pool.used
        if not pool.used.is_valid or not rest.is_valid or pool.free != rest - pool.withheld:  # 3
            raise InvariantError(f"{name}: {pool.used} of {pool.node.capacity} given out")
        if any(not 0 <= share <= 1000 for share in devices):
            raise InvariantError(f"{name}: GPU shares {devices}")
