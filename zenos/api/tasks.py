"""Tasks: submit, list, show, cancel, and their logs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zenos.api.common import (
    IdempotencyKey,
    TaskPath,
    check_depth,
    principal_of,
    system_of,
)
from zenos.api.logs import OFFSET_HEADER, LogAnswer
from zenos.api.ports import System
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import NiceBody, ResumeBody, TaskList, TaskThreads, TaskView
from zenos.api.streams import Stream
from zenos.core import limits
from zenos.core.errors import NotFoundError, RefusedError
from zenos.core.resources import Resources, shortage
from zenos.core.specs import CreateSpec, ServeSpec, TrainSpec
from zenos.core.task import Kind, Node, State, Task, TaskSpec
from zenos.core.wording import FieldError, nearest
from zenos.kernel.resource_manager import why_never

router = APIRouter(prefix="/api/tasks", tags=["tasks"])
Room = list[tuple[Node, Resources]]  # the nodes, and what is in use of each

States = Annotated[
    list[str],
    Query(
        description="Only these states.",
        json_schema_extra={"items": {"type": "string", "enum": [s.value for s in State]}},
    ),
]
Kinds = Annotated[
    list[str],
    Query(
        description="Only these kinds.",
        json_schema_extra={"items": {"type": "string", "enum": [k.value for k in Kind]}},
    ),
]


@router.get("", **operation(TaskList))
async def list_tasks(
    request: Request,
    state: States = [],  # noqa: B006 - FastAPI copies it
    kind: Kinds = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=limits.TASKS_LISTED_MAX)] = 1000,
) -> Response:
    """Tasks that have not ended, then ended ones; the newest first in each."""
    system = system_of(request)
    states = _chosen("state", state, [s.value for s in State])
    kinds = _chosen("kind", kind, [k.value for k in Kind])
    tasks = list(system.tasks().values())

    def newest(*, ended: bool) -> Iterator[Task]:
        for task in reversed(tasks):
            if task.is_ended is ended and (
                (not states or task.state in states) and (not kinds or task.kind in kinds)
            ):
                yield task

    found = itertools.islice(itertools.chain(newest(ended=False), newest(ended=True)), limit)
    room = _room(system)
    return reply(TaskList(tasks=[_view(system, task, room) for task in found]))


@router.post("", **operation(Task, body=TaskSpec, status=201, also=(409, 422)))
async def submit(request: Request, key: IdempotencyKey = None) -> Response:
    """Submit a task. The answer comes when it is remembered."""
    spec: TaskSpec = await read(request, TaskSpec)
    if isinstance(spec.work, ServeSpec):
        raise RefusedError("cannot submit a replica by itself: deploy the model (zenos serve)")
    if isinstance(spec.work, CreateSpec | TrainSpec):
        check_depth(spec.work.settings, "settings")
    spec.check()
    system = system_of(request)
    task = await system.submit(spec, principal_of(request), key)
    return reply(task, 201)


@router.get("/{task}", **operation(TaskView, also=(404,)))
async def show(request: Request, task: TaskPath) -> Response:
    """One task."""
    system = system_of(request)
    return reply(_view(system, find(system, task), _room(system)))


@router.get("/{task}/threads", **operation(TaskThreads, also=(404,)))
async def threads(request: Request, task: TaskPath) -> Response:
    """What the threads of a task's pools do: none of a task that has none, or doesn't run."""
    system = system_of(request)
    found = find(system, task).id
    return reply(TaskThreads(task=found, processes=system.threads(found)))


@router.post("/{task}/cancel", **operation(Task, also=(404, 409)))
async def cancel(request: Request, task: TaskPath) -> Response:
    """Cancel a task: it ends within the grace time, with its whole process group."""
    system = system_of(request)
    return reply(await system.cancel(find(system, task).id, principal_of(request)))


@router.post("/{task}/pause", **operation(Task, also=(403, 404, 409)))
async def pause(request: Request, task: TaskPath) -> Response:
    """Have a task give its CPU back and keep its memory, until it is resumed."""
    system = system_of(request)
    return reply(await system.pause(find(system, task).id, principal_of(request)))


@router.post("/{task}/suspend", **operation(Task, also=(403, 404, 409)))
async def suspend(request: Request, task: TaskPath) -> Response:
    """Have a task save its state and give everything back, until it is resumed."""
    system = system_of(request)
    return reply(await system.suspend(find(system, task).id, principal_of(request)))


@router.post("/{task}/resume", **operation(Task, body=ResumeBody, also=(404, 409)))
async def resume(request: Request, task: TaskPath) -> Response:
    """Let a paused or held task go on, as soon as it has room."""
    body: ResumeBody = await read(request, ResumeBody)
    system = system_of(request)
    who = principal_of(request)
    return reply(await system.resume(find(system, task).id, who, inexact=body.inexact))


@router.post("/{task}/nice", **operation(Task, body=NiceBody, also=(403, 404, 409)))
async def nice(request: Request, task: TaskPath) -> Response:
    """Give a task another priority."""
    body: NiceBody = await read(request, NiceBody)
    system = system_of(request)
    return reply(await system.nice(find(system, task).id, body.priority, principal_of(request)))


@router.get("/{task}/log", **operation(also=(404,), media="text/plain"))
async def log(
    request: Request,
    task: TaskPath,
    follow: Annotated[bool, Query(description="Go on until the task has ended.")] = False,
    offset: Annotated[
        int, Query(ge=0, le=2**62, description="Bytes to leave out, of all that was written.")
    ] = 0,
    generation: Annotated[
        int | None, Query(ge=1, le=2**62, description="Of an earlier run of a restarted task.")
    ] = None,
) -> Response:
    """What the task's worker has written, as it is; bytes need not be valid UTF-8.

    `Zenos-Log-Offset` says where the answer begins: later than asked for where what was before is
    gone. An answer to a reader that is overtaken ends there; asked again from the byte up to which
    it was read, the next begins after the gap.
    """
    system = system_of(request)
    found = find(system, task)
    if generation is not None and generation != found.generation:
        if generation > found.generation:
            raise NotFoundError(
                f"cannot find a generation {generation} of {found.id}: "
                f"it has been started {found.generation} times"
            )
        follow = False
    closing = request.app.state.closing
    answer = LogAnswer(system, found.id, closing, follow=follow, offset=offset)
    await answer.begin(system.log_path(found.id, generation))
    stream = Stream(answer.parts(), "text/plain; charset=utf-8", answer)
    stream.headers[OFFSET_HEADER] = str(answer.offset)
    return stream


def find(system: System, task: str) -> Task:
    """The task of that id, or the newest listed under that name; NotFoundError with the nearest."""
    tasks = system.tasks()
    found = tasks.get(task)
    if found is not None:
        return found
    for other in reversed(list(tasks.values())):
        if other.label == task:
            return other
    names = [t.label for t in itertools.islice(tasks.values(), 1000) if t.label]
    hint = nearest(task, names)
    raise NotFoundError(f"cannot find the task {task!a}{hint or ': zenos ps --all lists them'}")


def _room(system: System) -> Room:
    used = system.used()
    return [(node, used.get(name, Resources())) for name, node in system.nodes().items()]


def _view(system: System, task: Task, room: Room) -> TaskView:
    waits = waits_for(task, room) if not task.is_ended else None
    return TaskView(
        task=task,
        progress=system.progress(task.id),
        waits=waits,
        threads=system.thread_count(task.id),
    )


def waits_for(task: Task, room: Room) -> str | None:
    """What a task waits for that doesn't run, in a few words; None of one that does."""
    if task.state is State.PAUSED and not task.stopping:
        return "waits for its CPU" if task.resuming else f"paused; {_RESUME} {task.id}"
    if task.state is not State.QUEUED:
        return None
    if task.held is not None:
        reason = task.outcome.error if task.held == "numerics" and task.outcome else None
        return f"held: {reason or _HELD[task.held]}; {_RESUME} {task.id}"
    if task.not_before > (now := time.time()):
        return f"starts again in {math.ceil(task.not_before - now)} s"
    never = why_never(task.spec.resources, [node for node, _ in room])
    if never:
        return f"cannot ever fit: {never}"
    short = shortage(task.spec.resources, [(node.capacity, used) for node, used in room])
    return f"waits for {short}" if short else "waits for its turn"


_RESUME = "zenos resume"
_HELD = {
    "pause": "it was paused when it ended",
    "suspend": "suspended",
    "numerics": "it would go on with other numerics",
}


def _chosen(name: str, values: Iterable[str], known: list[str]) -> set[str]:
    chosen = {part for value in values for part in value.split(",") if part}
    for value in chosen:
        if value not in known:
            hint = nearest(value[:100], known) or f": one of {', '.join(known)}"
            raise FieldError(f"cannot use the {name} {value[:64]!r}{hint}", name)
    return chosen
