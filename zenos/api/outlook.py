"""What lies ahead: why a task waits, and the schedule as it is expected."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from msgspec.structs import replace
from starlette.responses import Response

from zenos.api.common import TaskPath, system_of
from zenos.api.ports import System
from zenos.api.schema import operation, reply
from zenos.api.shapes import History
from zenos.api.tasks import find
from zenos.core import limits
from zenos.core.outlook import Plan, Why
from zenos.core.task import State, TaskEvent
from zenos.core.wording import FieldError

router = APIRouter(prefix="/api", tags=["outlook"])
# What of a task's history tells how it came to wait, to be paused or to end.
_TELLING: Final = frozenset(
    {"suspending", "suspended", "pausing", "held", "stopping", "restarting", "not paused"}
    | {"stopped", "delayed", "resumed", "resuming", "cancelled"}
)
_PAGE: Final = 1000
HISTORY_MAX: Final = 1000


@router.get("/tasks/{task}/why", **operation(Why, also=(404, 504)))
async def why(request: Request, task: TaskPath) -> Response:
    """Why a task waits, with its place, score and expected start, and what would let it start now.

    Of a running one, why it is where it is; of an ended one, how it ended.
    """
    system = system_of(request)
    made = await system.why(find(system, task).id)
    if made.state not in (State.STARTING, State.RUNNING):
        told = await _told(system, made.task)
        if told is not None:
            line = f"{told.type}: {told.detail}" if told.detail else told.type
            made = replace(made, because=line, because_at=told.at)
    return reply(made)


@router.get("/tasks/{task}/history", **operation(History, also=(404,)))
async def history(request: Request, task: TaskPath) -> Response:
    """What has become of a task, the latest last."""
    system = system_of(request)
    found = find(system, task).id
    kept: deque[TaskEvent] = deque(maxlen=HISTORY_MAX)
    count, after = 0, 0
    while page := await system.events(after, _PAGE, found):
        kept.extend(page)
        count, after = count + len(page), page[-1].seq
    return reply(History(task=found, events=[*kept], left_out=count - len(kept)))


@router.get("/plan", **operation(Plan, also=(504,)))
async def plan(
    request: Request,
    ahead_s: Annotated[
        float,
        Query(gt=0, le=limits.FORECAST_S_MAX, description="How many seconds to look ahead."),
    ] = limits.FORECAST_S_MAX,
) -> Response:
    """The schedule ahead: a forecast with expected run times."""
    for name in request.query_params:
        if name != "ahead_s":  # a typo would look ahead for thirty days
            raise FieldError(
                f"cannot use the parameter {name[:64]!a}: ahead_s is the only one", name
            )
    return reply(await system_of(request).plan(ahead_s))


async def _told(system: System, task: str) -> TaskEvent | None:
    """The newest line of a task's history that tells."""
    found: TaskEvent | None = None
    after, more = 0, True
    while more:
        events = await system.events(after, _PAGE, task)
        more = len(events) == _PAGE
        for event in events:
            after = event.seq
            if event.type in _TELLING:
                found = event
    return found
