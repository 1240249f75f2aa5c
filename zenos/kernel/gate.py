"""What keeps a queued task out of the scheduler's queue: what it comes after, its array's limit.

Nothing of this is stored beside the tasks themselves. Whether one waits is told from what its
parents are now: a parent's end and what follows from it are one step, and so one transaction.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zenos.core.arrays import Array
from zenos.core.dependencies import ANY, parse_after
from zenos.core.errors import NotFoundError, RefusedError
from zenos.core.task import Kind, Outcome, Principal, State, Task

if TYPE_CHECKING:
    from zenos.kernel.estimates import Estimates
    from zenos.kernel.state import KernelState

Tasks = Mapping[str, Task]
Arrays = Mapping[str, Array]
IsOpen = Callable[[str], bool]  # whether a parent has not ended, by id


def unmet(task: Task, is_open: IsOpen) -> list[str]:
    """The ids of those that a task still waits for; of a parent that is gone it has been told."""
    if not task.after or task.generation:
        return []
    return [parent for parent in map(_bare, task.after) if is_open(parent)]


def is_open(parent: str, tasks: Tasks, arrays: Arrays) -> bool:
    """Whether a task, or one of an array, has not ended: looked up in all of them."""
    if parent in arrays:
        return arrays[parent].is_open(tasks)
    return parent in tasks and not tasks[parent].is_ended


def _bare(entry: str) -> str:
    return entry.removeprefix(ANY)


def resolve(state: KernelState, after: Sequence[str], principal: Principal) -> tuple[str, ...]:
    """The same by ids. Raises NotFoundError or RefusedError for what cannot be waited for.

    1. An id is that task or array; a name the newest task listed under it, else the newest array.
    2. One that has been forgotten is refused: nobody knows any more how it ended.
    3. A replica ends when nobody needs it, and one of another project is nobody else's business.
    """
    found: dict[str, None] = {}
    for entry in after:
        wanted = parse_after(entry)
        parent = find(wanted.task, state.tasks, state.arrays)  # 1
        if parent is None:
            raise NotFoundError(_unknown(state, wanted.task))  # 2
        if isinstance(parent, Task) and parent.kind is Kind.SERVE:  # 3
            raise RefusedError(f"cannot wait for {parent.id}: it is a replica, and has no end")
        if not principal.may_change(parent.principal):
            raise RefusedError(f"cannot wait for {parent.id}: it is of another project")
        found[str(wanted._replace(task=parent.id))] = None
    return tuple(found)


def find(name: str, tasks: Tasks, arrays: Arrays) -> Task | Array | None:
    """A task or an array by id; else the newest task listed under that name; else array."""
    by_id = tasks.get(name) or arrays.get(name)
    if by_id is not None:
        return by_id
    named = (task for task in tasks.values() if task.label == name)
    newest = max(named, key=lambda task: int(task.id[1:]), default=None)
    called = (array for array in arrays.values() if array.spec.name == name)
    return newest or max(called, key=lambda array: array.start, default=None)


def _unknown(state: KernelState, name: str) -> str:
    number = name[1:]
    if name[0] == "t" and number.isdecimal() and 0 < int(number) < state.next_task:
        return (
            f"cannot wait for {name}: it has ended and been forgotten; 'ended_tasks_kept' and "
            "'ended_task_kept_s' say how long tasks are remembered"
        )
    return f"cannot wait for {name!r}: there is no such task; 'zenos ps --all' lists them"


def settle(state: KernelState, now: float) -> None:
    """What follows from tasks that have ended in this step, chain-wide.

    1. A success is what its children wait for; so is any end, of those that said `any:`. Of an
       array that is the success of all its tasks, in whichever order they have ended.
    2. After any other end a child is cancelled, with the first cause as the reason.
    3. A child without a parent that still runs is released: it begins to wait for its turn now.
    """
    causes: dict[str, str] = {}
    waiting = deque(state.ended_now)
    state.ended_now.clear()
    while waiting:
        ended = state.tasks[waiting.popleft()]
        for parent, why in _who_ended(state, ended, causes.get(ended.id) or verdict(ended)):
            for child_id in list(state.children.get(parent, ())):
                child = state.tasks.get(child_id)
                if child is None or child.state is not State.QUEUED or child.generation:
                    continue
                if why and parent in child.after:  # 2
                    causes[child_id] = why
                    _cancel(state, child, parent, why, now)
                elif child.held is None and not unmet(child, state.is_open):  # 1, 3
                    free = replace(child, queued=max(now, child.not_before))
                    state.put(child, free, now, "released", "what it came after has ended")
            if not state.is_open(parent):
                state.children.pop(parent, None)
        waiting.extend(state.ended_now)
        state.ended_now.clear()


def _who_ended(state: KernelState, ended: Task, cause: str) -> list[tuple[str, str]]:
    """A task; and its array where that has ended with it, or can't succeed any more.

    Each with why those that come after its success cannot start; empty when they can.
    """
    found = [(ended.id, cause)]
    array = ended.array.id if ended.array is not None else ""
    if array in state.children and (cause or not state.is_open(array)):
        failed = _array_failed(array) if state.array_ends.has_failed(array) else ""
        found.append((array, cause or failed))
    return found


def _array_failed(array: str) -> str:
    return f"a task of {array} has not succeeded"


def admit(state: KernelState, now: float) -> None:
    """Let tasks of arrays into the queue, as many as may run at once; they wait since then."""
    for array_id in sorted(state.uncrowded):
        crowd, active = state.crowds.get(array_id, []), state.active[array_id]
        while crowd and len(active) < (state.arrays[array_id].indices.limit or math.inf):
            _, task_id = heapq.heappop(crowd)
            if task_id in state.crowded:
                task = state.tasks[task_id]
                state.put(task, replace(task, queued=now), now, "")
    state.uncrowded.clear()


def verdict(parent: Task) -> str:
    """Why those that come after its success cannot start; empty when they can."""
    if parent.state is State.SUCCEEDED:
        return ""
    how = {State.FAILED: "has failed", State.LOST: "is lost"}.get(parent.state, "was cancelled")
    return f"{parent.id} {how}"


def spoilt(state: KernelState, task: Task) -> tuple[str, str]:
    """A parent that has ended otherwise than a task waits for, and how; empty without one."""
    for entry in task.after:
        wanted = parse_after(entry)
        parent = state.tasks.get(wanted.task)
        if wanted.any_end:
            continue
        if state.array_ends.has_failed(wanted.task):
            return wanted.task, _array_failed(wanted.task)
        if parent is not None and parent.is_ended and verdict(parent):
            return parent.id, verdict(parent)
    return "", ""


def end_if_spoilt(state: KernelState, task: Task, now: float) -> Task:
    """A new task whose parent has ended already counts that at once."""
    parent, cause = spoilt(state, task)
    return _cancel(state, task, parent, cause, now) if parent else task


def _cancel(state: KernelState, child: Task, parent: str, cause: str, now: float) -> Task:
    text = f"cannot start: it comes after the success of {parent}, and {cause}"
    ended = replace(
        child,
        state=State.CANCELLED,
        ended=now,
        stopping=cause,
        held=None,
        outcome=Outcome(error=text),
    )
    return state.put(child, ended, now, "cancelled", text)


def waiting_for(task: Task, tasks: Tasks, arrays: Arrays, is_open: IsOpen) -> str:
    """What keeps a queued task out of the scheduler's queue, in words; empty when nothing does."""
    left = unmet(task, is_open)
    if not left:
        return ""
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    if left[0] in arrays:
        return f"comes after {arrays[left[0]].name} (not all of it has ended){more}"
    return f"comes after {tasks[left[0]].name} ({tasks[left[0]].state}){more}"


def warning(task: Task, estimates: Estimates, now: float) -> str:
    """That a new task can hardly end by its deadline, in words; empty where nothing says so."""
    deadline = task.spec.deadline
    if deadline is None or not estimates.is_known(task):
        return ""
    left_s = deadline - max(now, task.not_before)
    expected_s = estimates.expected_s(task)
    if expected_s <= left_s:
        return ""
    return f"it is expected to run for {expected_s:.0f} s, and its deadline leaves {left_s:.0f} s"


def in_its_array(task: Task) -> str:
    """That at most so many of an array run at once, in words; empty where any may."""
    if task.array is None or task.array.limit is None or task.generation:
        return ""
    return f"waits for its turn: {task.array.limit} of {task.array.id} at once"
