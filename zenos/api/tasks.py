"""Tasks: submit, list, show, cancel, and their logs."""

from __future__ import annotations

import datetime
import functools
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query, Request
from msgspec.structs import replace
from starlette.responses import Response

from zenos.api.common import (
    TASK_CHARS_MAX,
    IdempotencyKey,
    TaskPath,
    check_depth,
    principal_of,
    system_of,
)
from zenos.api.logs import OFFSET_HEADER, LogAnswer
from zenos.api.once import asked
from zenos.api.ports import System
from zenos.api.rights import check_may_make
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import ArrayView, NiceBody, ResumeBody, TaskList, TaskThreads, TaskView
from zenos.api.streams import Stream
from zenos.core import limits
from zenos.core.arrays import Array
from zenos.core.errors import NotFoundError, RefusedError
from zenos.core.node import Node
from zenos.core.resources import Resources, shortage
from zenos.core.specs import CreateSpec, ServeSpec, TrainSpec
from zenos.core.task import HOLDING, Kind, State, Task, TaskSpec
from zenos.core.wording import FieldError, counted, nearest
from zenos.kernel import gate
from zenos.kernel.estimates import prediction
from zenos.kernel.nodes import kept_out
from zenos.kernel.pool import admits, why_never

router = APIRouter(prefix="/api/tasks", tags=["tasks"])


class Room(NamedTuple):
    """What all tasks of one answer are held against: looked up once, since they may be many.

    nodes: with what is in use of each. is_open: whether what a task comes after has not ended.
    """

    nodes: list[tuple[Node, Resources]]
    is_open: gate.IsOpen


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


@router.get("", **operation(TaskList, also=(404,)))
async def list_tasks(
    request: Request,
    state: States = [],  # noqa: B006 - FastAPI copies it
    kind: Kinds = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=limits.TASKS_LISTED_MAX)] = 1000,
    array: Annotated[
        str | None, Query(max_length=TASK_CHARS_MAX, description="Only those of this array.")
    ] = None,
    collapse: Annotated[
        bool, Query(description="Arrays as wholes, in `arrays`, instead of their tasks.")
    ] = False,
) -> Response:
    """Tasks that have not ended, then ended ones; the newest first in each."""
    system = system_of(request)
    states = _chosen("state", state, [s.value for s in State])
    kinds = _chosen("kind", kind, [k.value for k in Kind])
    if array is None:
        known = system.tasks().values()
        tasks = [task for task in known if not (collapse and task.array is not None)]
    else:
        there = (system.tasks().get(task_id) for task_id in find_array(system, array).tasks)
        tasks = [task for task in there if task is not None]

    def newest(*, ended: bool) -> Iterator[Task]:
        for task in reversed(tasks):
            if task.is_ended is ended and (
                (not states or task.state in states) and (not kinds or task.kind in kinds)
            ):
                yield task

    found = itertools.islice(itertools.chain(newest(ended=False), newest(ended=True)), limit)
    room = _room(system)
    views = [_view(system, task, room) for task in found]
    shown = collapse and array is None and (not kinds or Kind.RUN.value in kinds)
    wholes = (array_view(system, one) for one in reversed(list(system.arrays().values())))
    chosen = (one for one in wholes if not states or states & {str(s) for s in one.states})
    arrays = list(itertools.islice(chosen, limit)) if shown else []
    return reply(TaskList(tasks=views, arrays=arrays))


@router.post("", **operation(Task, body=TaskSpec, status=201, also=(409, 422)))
async def submit(request: Request, key: IdempotencyKey = None) -> Response:
    """Submit a task. The answer comes when it is remembered."""
    spec: TaskSpec = await read(request, TaskSpec)
    if isinstance(spec.work, ServeSpec):
        raise RefusedError("cannot submit a replica by itself: deploy the model (zenos serve)")
    if isinstance(spec.work, CreateSpec | TrainSpec):
        check_depth(spec.work.settings, "settings")
    spec.check()
    await check_may_make(request, [spec])
    system = system_of(request)
    task = await system.submit(spec, principal_of(request), key)
    return reply(task, 201)


@router.get("/{task}", **operation(TaskView, also=(404,)))
async def show(request: Request, task: TaskPath) -> Response:
    """One task."""
    system = system_of(request)
    found = find(system, task)
    view = _view(system, found, _room(system))
    return reply(replace(view, prediction=prediction(found, system.estimates())))


@router.get("/{task}/threads", **operation(TaskThreads, also=(404,)))
async def threads(request: Request, task: TaskPath) -> Response:
    """What the threads of a task's pools do: none of a task that has none, or doesn't run."""
    system = system_of(request)
    found = find(system, task).id
    return reply(TaskThreads(task=found, processes=system.threads(found)))


@router.post("/{task}/cancel", **operation(Task, also=(404, 409)))
async def cancel(request: Request, task: TaskPath, key: IdempotencyKey = None) -> Response:
    """Cancel a task: it ends within the grace time, with its whole process group."""
    system = system_of(request)
    async with asked(request, key) as said:
        if said.before is None:
            who = principal_of(request)
            return reply(await system.cancel(find(system, task).id, who, said.once))
    return reply(find(system, said.before))


@router.post("/{task}/pause", **operation(Task, also=(403, 404, 409)))
async def pause(request: Request, task: TaskPath, key: IdempotencyKey = None) -> Response:
    """Have a task give its CPU back and keep its memory, until it is resumed."""
    system = system_of(request)
    async with asked(request, key) as said:
        if said.before is None:
            who = principal_of(request)
            return reply(await system.pause(find(system, task).id, who, said.once))
    return reply(find(system, said.before))


@router.post("/{task}/suspend", **operation(Task, also=(403, 404, 409)))
async def suspend(request: Request, task: TaskPath, key: IdempotencyKey = None) -> Response:
    """Have a task save its state and give everything back, until it is resumed."""
    system = system_of(request)
    async with asked(request, key) as said:
        if said.before is None:
            who = principal_of(request)
            return reply(await system.suspend(find(system, task).id, who, said.once))
    return reply(find(system, said.before))


@router.post("/{task}/resume", **operation(Task, body=ResumeBody, also=(404, 409)))
async def resume(request: Request, task: TaskPath, key: IdempotencyKey = None) -> Response:
    """Let a paused or held task go on, as soon as it has room."""
    body: ResumeBody = await read(request, ResumeBody)
    system = system_of(request)
    who = principal_of(request)
    async with asked(request, key, body) as said:
        if said.before is None:
            found = find(system, task).id
            return reply(await system.resume(found, who, said.once, inexact=body.inexact))
    return reply(find(system, said.before))


@router.post("/{task}/nice", **operation(Task, body=NiceBody, also=(403, 404, 409)))
async def nice(request: Request, task: TaskPath, key: IdempotencyKey = None) -> Response:
    """Give a task another priority."""
    body: NiceBody = await read(request, NiceBody)
    system = system_of(request)
    who = principal_of(request)
    async with asked(request, key, body) as said:
        if said.before is None:
            return reply(await system.nice(find(system, task).id, body.priority, who, said.once))
    return reply(find(system, said.before))


@router.get("/{task}/log", **operation(also=(404,), media="text/plain"))
async def log(
    request: Request,
    task: TaskPath,
    follow: Annotated[bool, Query(description="Go on until the task has ended.")] = False,
    offset: Annotated[
        int, Query(ge=0, le=2**62, description="Bytes to leave out, of all that was written.")
    ] = 0,
    generation: Annotated[
        int | None,
        Query(ge=1, le=2**62, description="Of this run alone; with `follow` also the next one."),
    ] = None,
) -> Response:
    """What the task's worker has written, as it is; bytes need not be valid UTF-8.

    `Zenos-Log-Offset` says where the answer begins: later than asked for where what was before is
    gone. An answer to a reader that is overtaken ends there; asked again from the byte up to which
    it was read, the next begins after the gap.
    """
    system = system_of(request)
    found = find(system, task)
    if generation is not None and generation > found.generation:
        is_next = generation == found.generation + 1 and not found.is_ended
        if not (follow and is_next):
            raise NotFoundError(
                f"cannot find a generation {generation} of {found.id}: "
                f"it has been started {counted(found.generation, 'time')}"
            )
    answer = LogAnswer(
        system,
        found.id,
        request.app.state.closing,
        follow=follow,
        offset=offset,
        generation=generation,
    )
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
    raise NotFoundError(f"cannot find the task {task!r}{hint or ': zenos ps --all lists them'}")


def find_array(system: System, name: str) -> Array:
    """The array of that id, or the newest of that name; NotFoundError."""
    arrays = system.arrays()
    if name in arrays:
        return arrays[name]
    for array in reversed(list(arrays.values())):
        if array.spec.name == name:
            return array
    hint = nearest(name, [array.name for array in arrays.values()])
    raise NotFoundError(f"cannot find the array {name!r}{hint or ': zenos ps lists them'}")


def array_view(system: System, array: Array) -> ArrayView:
    """An array as it is shown."""
    tasks = system.tasks()
    states = array.states(tasks)
    waits = None
    if State.QUEUED in states and not HOLDING & states.keys():
        there = (tasks.get(task_id) for task_id in array.tasks)
        first = next(task for task in there if task is not None and task.state is State.QUEUED)
        waits = waits_for(first, _room(system), system)
    return ArrayView(array=array, states=states, waits=waits)


def _room(system: System) -> Room:
    used = system.used()
    nodes = [(node, used.get(name, Resources())) for name, node in system.nodes().items()]
    tasks, arrays = system.tasks(), system.arrays()
    return Room(nodes, functools.cache(lambda parent: gate.is_open(parent, tasks, arrays)))


def _view(system: System, task: Task, room: Room) -> TaskView:
    waits = waits_for(task, room, system) if not task.is_ended else None
    return TaskView(
        task=task,
        progress=system.progress(task.id),
        waits=waits,
        threads=system.thread_count(task.id),
    )


def waits_for(task: Task, room: Room, system: System) -> str | None:
    """What a task waits for that doesn't run, in a few words; None of one that does."""
    if task.state is State.PAUSED and not task.stopping:
        return "waits for its CPU" if task.resuming else f"paused; {_RESUME} {task.id}"
    if task.state is not State.QUEUED:
        return None
    if task.held is not None:
        reason = task.outcome.error if task.held == "numerics" and task.outcome else None
        return f"held: {reason or _HELD[task.held]}; {_RESUME} {task.id}"
    if before := gate.waiting_for(task, system.tasks(), system.arrays(), room.is_open):
        return before
    if task.not_before > (now := time.time()):
        left_s = math.ceil(task.not_before - now)
        if task.generation == 0 and task.spec.start_at is not None:
            return f"starts in {datetime.timedelta(seconds=left_s)}"
        return f"starts again in {left_s} s"
    never = why_never(task.spec.request, [node for node, _ in room.nodes])
    if never:
        return f"cannot ever fit: {never}"
    if closed := kept_out(task.spec.request, task.spec.workers, [node for node, _ in room.nodes]):
        return closed
    if full := system.accounts().waiting_for(task):
        return full
    there = [(node, used) for node, used in room.nodes if admits(node, task.spec.request)]
    short = shortage(task.spec.request, [(node.capacity, used) for node, used in there])
    if short:
        return f"waits for {short}"
    return gate.in_its_array(task) or "waits for its turn"


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
