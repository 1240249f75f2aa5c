"""Answers that come piece by piece, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
CLIENT_GONE: Final = 499  # as nginx writes it in its log; nobody hears it


class Closable(Protocol):
    """What is to be closed when an answer is over: an async generator, for one."""

    async def aclose(self) -> None:
        """Close it; once or again."""


class Stream(Response):
    """Sends what an async generator makes; closes it when done and when the client has gone."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        media_type: str,
        source: Closable | None = None,
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._content = content
        # Closed too: a generator that was never begun runs no `finally` and closes nothing.
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pump_ended = pump.done()
            await _end(pump, gone)
            await self._content.aclose()
            if self._source is not None:
                await self._source.aclose()
        if pump_ended:
            pump.result()

    async def _pump(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for part in self._content:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; cancels it and returns None when the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _end(task, gone)


async def until(live: AsyncIterator[T], closing: asyncio.Event) -> AsyncGenerator[T, None]:
    """What is live, until the daemon goes down."""
    closed = asyncio.ensure_future(closing.wait())
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(live))
            await asyncio.wait({pending, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                return
            try:
                yield pending.result()
            except StopAsyncIteration:
                return
    finally:
        closed.cancel()
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what has not ended and wait for it, so that all its `finally` have run."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def with_pauses(source: AsyncIterator[T], pause_s: float) -> AsyncGenerator[T | None, None]:
    """The items of `source`, and None each time that it has been silent for `pause_s` seconds."""
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(_next(source))
            await asyncio.wait({pending}, timeout=pause_s)
            if not pending.done():
                yield None
                continue
            done, pending = pending, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if pending is not None:
            await _end(pending)


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source)


async def closed_after(source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The same items; `aclose()` reaches the source, which need not be a generator by type."""
    try:
        async for item in source:
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def merged(sources: list[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all sources as they come, with the source's number.

    The first error ends all; closing closes all.
    """
    if len(sources) == 1:
        async with aclosing(closed_after(sources[0])) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(64)

    async def pump(number: int, source: AsyncIterator[T]) -> None:
        try:
            async with aclosing(closed_after(source)) as one:
                async for item in one:
                    await queue.put((number, item))
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.ensure_future(pump(i, source)) for i, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            got = await queue.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        await _end(*tasks)
