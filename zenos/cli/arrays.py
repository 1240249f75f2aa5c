"""Arrays of tasks at the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import typer

from zenos.cli.errors import FAILED
from zenos.cli.notes import note_programs
from zenos.cli.output import coloured, put, put_json, say
from zenos.cli.rows import clipped, work_line
from zenos.client.display import COLOURS
from zenos.core.arrays import ArraySpec, parse_indices
from zenos.core.errors import InvalidError, NotFoundError
from zenos.core.resources import show_share, show_size
from zenos.core.task import Kind, State
from zenos.core.wording import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zenos.client import ArrayView, Client, TaskView
    from zenos.core.task import TaskSpec

ARRAY_KIND: Final = "array"  # as which an array is shown among the kinds of tasks


def submit(
    made: Client,
    spec: TaskSpec,
    indices: str,
    *,
    key: str | None,
    follow: bool,
    wait: bool,
    json: bool,
) -> None:
    """Submit an array; the exit code is 1 where it was waited for, and not all succeeded."""
    if follow:
        raise InvalidError("cannot follow an array: 'zenos logs -f NAME[INDEX]' follows a task")
    view = made.submit_array(ArraySpec(task=spec, indices=parse_indices(indices)), key=key)
    note_programs(made.address, [spec.work], json=json)
    if wait:
        view = _wait(made, view)
    if json:
        put_json(view)
    elif not wait:
        put(view.array.id)
        name = view.array.name
        say(f"{name} has {view.array.indices.count} tasks; 'zenos ps --array {name}' lists them")
    else:
        say(f"{view.array.name}: {summary(view)}")
    if wait and set(view.states) - {State.SUCCEEDED}:
        raise typer.Exit(FAILED)


def _wait(made: Client, view: ArrayView) -> ArrayView:
    for task in made.array_tasks(view.array.id):
        if not task.task.is_ended:
            try:
                made.task(task.task.id).wait()
            except NotFoundError:  # ended and forgotten meanwhile
                continue
    return made.array(view.array.id)


def listed(
    made: Client,
    state: str | None,
    kind: str | None,
    limit: int,
    *,
    array: str | None,
    whole: bool,
) -> tuple[list[TaskView], list[ArrayView]]:
    """What `zenos ps` shows: tasks, and arrays as wholes. Raises InvalidError for a bad kind."""
    kinds = _kinds(kind)
    wholes = ARRAY_KIND in kinds
    kind = ",".join(kinds - {ARRAY_KIND}) or None
    if array is not None:
        if wholes:
            raise InvalidError("cannot show an array in an array: leave out --kind or --array")
        return made.array_tasks(array, state=state, kind=kind, limit=limit), []
    if whole and not wholes:
        return made.collapsed(state=state, kind=kind, limit=limit)
    arrays = made.collapsed(state=state, kind=Kind.RUN, limit=limit)[1] if wholes else []
    if wholes and kind is None:
        return [], arrays
    if not whole:
        return made.tasks(state=state, kind=kind, limit=limit), arrays
    return made.collapsed(state=state, kind=kind, limit=limit)[0], arrays


def _kinds(given: str | None) -> set[str]:
    """The kinds that are named; all that the table shows may be."""
    kinds = set(filter(None, map(str.strip, (given or "").split(","))))
    known = [*Kind, ARRAY_KIND]
    for kind in sorted(kinds):
        if kind not in known:
            hint = "; what makes a new model is preprocess" if kind == "create" else ""
            raise FieldError(
                f"cannot use the kind {kind[:64]!r}: it is one of {', '.join(known)}{hint}", "kind"
            )
    return kinds


def split(made: Client, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The ids of the arrays among these names; what is left are tasks, or nothing that is known.

    A name is a task's where there is one of it, as everywhere else.
    """
    arrays, others = [], []
    for name in dict.fromkeys(names):
        try:
            known = made.array(name).array.id
        except (NotFoundError, InvalidError):
            others.append(name)
            continue
        if known != name and _is_task(made, name):
            others.append(name)
        else:
            arrays.append(known)
    return arrays, others


def cancel(made: Client, array: str, *, wait: bool) -> ArrayView:
    """Cancel an array, by its id."""
    view = made.cancel_array(array)
    return _wait(made, view) if wait else view


def _is_task(made: Client, name: str) -> bool:
    try:
        made.task(name)
    except NotFoundError:
        return False
    return True


def summary(view: ArrayView) -> str:
    """`40 succeeded, 2 failed of 100`."""
    parts = [f"{count} {state}" for state, count in view.states.items() if count]
    return f"{', '.join(parts)} of {view.array.indices.count}"


def state_of(view: ArrayView) -> State:
    """The one that is shown of an array: that a task of it runs, else the earliest there is."""
    order = [State.RUNNING, *(s for s in State if s is not State.RUNNING)]
    return next((s for s in order if view.states.get(s)), State.QUEUED)


def array_row(view: ArrayView) -> tuple[Any, ...]:
    """An array, as a row among those of tasks."""
    wants, state = view.array.spec.resources, state_of(view)
    doing = ", ".join(filter(None, (summary(view), view.waits)))
    return (
        view.array.id,
        view.array.spec.name,
        ARRAY_KIND,
        coloured(str(state), COLOURS[state]),
        view.array.spec.priority,
        show_share(wants.cpu),
        show_share(wants.gpu) if wants.gpu else "",
        show_size(wants.memory) if wants.memory else "",
        "",
        clipped(f"{doing}: {work_line(view.array.spec.work)}"),
    )
