"""Several tasks submitted as one: in one step, and so in one transaction, or not at all."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from zenos.core import events as ev
from zenos.core.batches import Batch
from zenos.core.dependencies import parse_after
from zenos.core.errors import ConflictError, NotFoundError
from zenos.kernel import exclusive, gate

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel


def take(kernel: Kernel, event: ev.SubmitBatch, now: float) -> None:
    """Answer, with one row of what came of it."""
    kernel.audit.answer(event, "submit", lambda: _submit(kernel, event, now), now)


def _submit(kernel: Kernel, event: ev.SubmitBatch, now: float) -> Batch:
    """Everything that could be refused is before the first task is made.

    1. A key that was used before is answered as it was then.
    2. All of them are taken, or none.
    3. Names among them are ids already: those that follow one another from the next one on.
    """
    state, asked = kernel.state, event.asked or event.spec
    event.spec.check()
    known = kernel.remembered(event.principal, event.key, asked, now)  # 1
    if known is not None:
        kernel.unchanged = True
        return _again(kernel, known)
    specs = [exclusive.whole(spec, state.nodes.values()) for spec in event.spec.ordered()]
    kernel.check_takes(specs, event.principal, now)  # 2
    ids = {spec.name: f"t{state.next_task + number}" for number, spec in enumerate(specs)}  # 3

    @functools.cache  # a name is looked for among all tasks that there are
    def resolved(entry: str) -> tuple[str, ...]:
        return gate.resolve(state, [entry], event.principal)

    after: list[tuple[str, ...]] = []
    for spec in specs:
        found: list[str] = []
        for entry in map(parse_after, spec.after):
            if entry.task in ids:
                found.append(str(entry._replace(task=ids[entry.task])))
                continue
            try:
                found += resolved(str(entry))
            except NotFoundError as error:
                raise NotFoundError(error.message + event.spec.hint(entry.task)) from None
        after.append(tuple(dict.fromkeys(found)))
    made = [
        kernel.new_task(
            spec, event.principal, now, parents, warning=event.warnings.get(spec.name, "")
        )
        for spec, parents in zip(specs, after, strict=True)
    ]
    batch = Batch(tasks=[gate.end_if_spoilt(state, task, now) for task in made])
    kernel.remember(event.principal, event.key, asked, batch.id, now)
    return batch


def _again(kernel: Kernel, known: str) -> Batch:
    first, _, last = known.partition("-")
    ids = [f"t{number}" for number in range(int(first[1:]), int(last[1:]) + 1)]
    if any(task not in kernel.state.tasks for task in ids):
        raise ConflictError("cannot answer that idempotency key again: its tasks are gone")
    return Batch(tasks=[kernel.state.tasks[task] for task in ids])
