"""Events as a stream (SSE) with ids: a reader that was cut goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from zenos.api import errors
from zenos.api.common import TASK_CHARS_MAX, home_of, system_of
from zenos.api.ports import System
from zenos.api.schema import operation
from zenos.api.streams import Stream, until, with_pauses
from zenos.api.tasks import find
from zenos.core import limits
from zenos.core.task import TaskEvent
from zenos.kernel.control import TaskProgress

router = APIRouter(tags=["events"])
PAGE: Final = 500
_encode = msgspec.json.Encoder().encode

LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=2**62,
        description="Send what came after this event first; 0 for all that are kept.",
    ),
]
TaskFilter = Annotated[
    str | None,
    Query(min_length=1, max_length=TASK_CHARS_MAX, description="Of this task only."),
]


@router.get("/api/events", **operation(media="text/event-stream", also=(404,)))
async def events(
    request: Request, task: TaskFilter = None, last_event_id: LastEventId = None
) -> Response:
    """What happens to tasks, from now on or from Last-Event-ID.

    `event: task` carries a TaskEvent and an id; `event: progress` a TaskProgress, without one, as
    it is not kept. A comment comes when nothing happens. A reader that is too slow is cut.
    """
    system = system_of(request)
    task_id = None if task is None else find(system, task).id
    source = _events(system, task_id, last_event_id, request.app.state.closing, home_of(request))
    return Stream(source, "text/event-stream")


async def _events(
    system: System,
    task: str | None,
    after: int | None,
    closing: asyncio.Event,
    home: str | None,
) -> AsyncGenerator[bytes, None]:
    async with system.subscribe() as live:
        # The stream opens with a comment, so that the client knows that it listens, and with the
        # id from which it goes on should it be cut before there is an event.
        since = live.since if after is None else after
        yield b": zenos\nid: %d\n\n" % since
        sent = 0
        try:
            # Subscribed before reading: nothing falls between the stored and the live ones.
            async for event in _stored(system, task, after):
                sent = event.seq
                yield _frame(event)
        except Exception as error:  # noqa: BLE001 - the status has gone: told in the stream
            yield b"event: error\ndata: " + errors.in_stream(error, home) + b"\n\n"
            return
        async with aclosing(with_pauses(until(live, closing), limits.EVENT_HEARTBEAT_S)) as paced:
            async for item in paced:
                if item is None:
                    yield b":\n\n"
                elif (task is None or item.task == task) and not (
                    isinstance(item, TaskEvent) and item.seq <= sent
                ):
                    yield _frame(item)


async def _stored(
    system: System, task: str | None, after: int | None
) -> AsyncGenerator[TaskEvent, None]:
    while after is not None:
        page = await system.events(after, PAGE, task)
        for event in page:
            yield event
        after = page[-1].seq if len(page) == PAGE else None


def _frame(item: TaskEvent | TaskProgress) -> bytes:
    if isinstance(item, TaskEvent):
        return b"id: %d\nevent: task\ndata: %b\n\n" % (item.seq, _encode(item))
    return b"event: progress\ndata: %b\n\n" % _encode(item)
