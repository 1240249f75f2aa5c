"""Arrays of tasks: submitted, cancelled and remembered as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core.arrays import Array
from zenos.core.errors import ConflictError, NotFoundError, RefusedError
from zenos.core.task import ArrayPlace, State
from zenos.kernel import exclusive, gate

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel


def take(kernel: Kernel, event: ev.SubmitArray | ev.CancelArray, now: float) -> None:
    """Answer, with one row of what came of it."""
    if isinstance(event, ev.SubmitArray):
        kernel.audit.answer(event, "submit", lambda: _submit(kernel, event, now), now)
    else:
        kernel.audit.answer(event, "cancel", lambda: _cancel(kernel, event, now), now)


def _submit(kernel: Kernel, event: ev.SubmitArray, now: float) -> Array:
    """All of its tasks in one step, and so in one transaction; refused, it leaves nothing."""
    asked, state = event.spec, kernel.state
    asked.check()
    known = kernel.remembered(event.principal, event.key, asked, now)
    if known is not None:
        if known not in state.arrays:
            raise ConflictError("cannot answer that idempotency key again: its array is gone")
        kernel.unchanged = True
        return state.arrays[known]
    count = asked.indices.count
    # By now, so that all of its tasks have this one.
    spec = kernel.alike.spec(exclusive.whole(asked.task, state.nodes.values()))
    kernel.check_takes([spec], event.principal, now, count)
    after = gate.resolve(state, spec.after, event.principal)
    array = state.put_array(
        Array(
            id=f"array-{state.next_task}",
            spec=spec,
            indices=asked.indices,
            principal=event.principal,
            submitted=now,
            start=state.next_task,
        )
    )
    for number in range(count):
        index = asked.indices.first + number * asked.indices.step
        place = ArrayPlace(id=array.id, index=index, count=count, limit=asked.indices.limit)
        # One line for all of them: else a large one would push everybody's history out.
        line = ("submitted", f"{count} tasks as {array.id}") if number == 0 else ("", "")
        task = kernel.new_task(spec, event.principal, now, after, place, line)
        gate.end_if_spoilt(state, task, now)
    kernel.remember(event.principal, event.key, asked, array.id, now)
    return array


def _cancel(kernel: Kernel, event: ev.CancelArray, now: float) -> Array:
    array = kernel.state.arrays.get(event.array)
    if array is None:
        raise NotFoundError(f"cannot find the array {event.array!r}: 'zenos ps' lists them")
    if not event.principal.may_change(array.principal):
        raise RefusedError(f"cannot cancel {array.id}: it belongs to {array.principal.user}")
    there = (kernel.state.tasks.get(task_id) for task_id in array.tasks)
    left = [task for task in there if task is not None and not task.is_ended]
    kernel.unchanged = all(task.stopping == "cancel" for task in left)
    for task in left:
        if task.state is State.QUEUED:
            ended = replace(task, state=State.CANCELLED, ended=now, stopping="cancel", held=None)
            kernel.state.put(task, ended, now, "cancelled")
        elif task.stopping != "cancel":
            kernel.stop(task, "cancel", now)
    return array
