"""Durable topics through the HTTP interface: what waits, what is dead, and hands on both."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Literal, Protocol, TypeVar

from zenos.client import bus_calls
from zenos.client.bus_calls import MessageInfo, Sent, TailFeed, TopicInfo, Which
from zenos.client.calls import Call
from zenos.client.feeds import Heard, of_events
from zenos.client.live import AsyncLive, Live
from zenos.core import limits

T = TypeVar("T")


class Run(Protocol):
    """Sends a request, patiently, and gives its answer."""

    def __call__(self, call: Call[T], /) -> T:
        """Raises what the daemon answered."""
        ...


class AsyncRun(Protocol):
    """As `Run`, for asyncio."""

    def __call__(self, call: Call[T], /) -> Awaitable[T]:
        """Raises what the daemon answered."""
        ...


class Stream(Protocol):
    """Opens an answer that comes in parts."""

    def __call__(
        self, call: Call[bytes], deadline: float | None, heard: Heard, /
    ) -> AbstractContextManager[Iterator[bytes]]:
        """deadline: on the monotonic clock; heard: is given the answer's headers."""
        ...


class AsyncStream(Protocol):
    """As `Stream`, for asyncio."""

    def __call__(
        self, call: Call[bytes], deadline: float | None, heard: Heard, /
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """deadline: on the monotonic clock; heard: is given the answer's headers."""
        ...


class Bus:
    """A client's view of durable topics. Programs that process messages use `zenos.bus`."""

    def __init__(self, run: Run, stream: Stream) -> None:
        self._run = run
        self._stream = stream

    def topics(self) -> list[TopicInfo]:
        """All durable topics, by name."""
        return self._run(bus_calls.topics()).topics

    def messages(
        self, topic: str, which: Which = "waiting", *, after: int = 0, limit: int = 100
    ) -> list[MessageInfo]:
        """A topic's messages in the order of arrival; looking takes none away.

        which: `waiting` for a receiver, `leased` to one, or `dead`. after: the last `number` of the
        page before.
        """
        return self._run(bus_calls.messages(topic, which, after, limit)).messages

    def send(
        self,
        topic: str,
        body: str | bytes,
        *,
        id: str | None = None,  # noqa: A002 - as it is called in the message
        headers: Mapping[str, str] | None = None,
        priority: int = limits.PRIORITY_NORMAL,
        delay_s: float = 0.0,
        deadline_s: float = 0.0,
    ) -> Sent:
        """Send a message; returns once it is kept. Of several with one id only the first counts.

        delay_s: seconds before it may be delivered; deadline_s: after which it is dead (0: never).
        """
        call = bus_calls.send(
            topic,
            body,
            id_=id,
            headers=headers,
            priority=priority,
            delay_s=delay_s,
            deadline_s=deadline_s,
        )
        return self._run(call)

    def replay(self, topic: str, ids: Sequence[str] | None = None) -> int:
        """Deliver dead messages again, those of `ids` or all; how many it was."""
        return self._run(bus_calls.replay(topic, ids)).count

    def purge(self, topic: str, which: Literal["waiting", "dead"] = "waiting") -> int:
        """Drop what waits, or what is dead; how many it was."""
        return self._run(bus_calls.purge(topic, which)).count

    def tail(self, topic: str) -> Live[MessageInfo]:
        """What happens on a topic from this call on; `event` says what. Ends with the daemon."""
        return Live(self._tail(topic))

    def _tail(self, topic: str) -> Generator[MessageInfo | None]:
        feed = TailFeed()
        with self._stream(bus_calls.tail(topic), None, of_events) as parts:
            for part in parts:
                yield None  # it listens
                yield from feed.feed(part)


class AsyncBus:
    """As `Bus`, for asyncio."""

    def __init__(self, run: AsyncRun, stream: AsyncStream) -> None:
        self._run = run
        self._stream = stream

    async def topics(self) -> list[TopicInfo]:
        """All durable topics, by name."""
        return (await self._run(bus_calls.topics())).topics

    async def messages(
        self, topic: str, which: Which = "waiting", *, after: int = 0, limit: int = 100
    ) -> list[MessageInfo]:
        """A topic's messages in the order of arrival. See `Bus.messages`."""
        return (await self._run(bus_calls.messages(topic, which, after, limit))).messages

    async def send(
        self,
        topic: str,
        body: str | bytes,
        *,
        id: str | None = None,  # noqa: A002 - as it is called in the message
        headers: Mapping[str, str] | None = None,
        priority: int = limits.PRIORITY_NORMAL,
        delay_s: float = 0.0,
        deadline_s: float = 0.0,
    ) -> Sent:
        """Send a message; returns once it is kept. See `Bus.send`."""
        call = bus_calls.send(
            topic,
            body,
            id_=id,
            headers=headers,
            priority=priority,
            delay_s=delay_s,
            deadline_s=deadline_s,
        )
        return await self._run(call)

    async def replay(self, topic: str, ids: Sequence[str] | None = None) -> int:
        """Deliver dead messages again, those of `ids` or all; how many it was."""
        return (await self._run(bus_calls.replay(topic, ids))).count

    async def purge(self, topic: str, which: Literal["waiting", "dead"] = "waiting") -> int:
        """Drop what waits, or what is dead; how many it was."""
        return (await self._run(bus_calls.purge(topic, which))).count

    def tail(self, topic: str) -> AsyncLive[MessageInfo]:
        """What happens on a topic from now on; `event` says what. Ends with the daemon.

        Listens from `async with` or `await` on, else from the first step of an `async for`.
        """
        return AsyncLive(self._tail(topic))

    async def _tail(self, topic: str) -> AsyncGenerator[MessageInfo | None]:
        feed = TailFeed()
        async with self._stream(bus_calls.tail(topic), None, of_events) as parts:
            async for part in parts:
                yield None  # it listens
                for message in feed.feed(part):
                    yield message
