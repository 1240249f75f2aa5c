"""Topics and messages for event loops; see aio.py."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from zenos.bus import checks, many, operations
from zenos.bus.bodies import AnyDraft, ArrayBuffer, Encoded, stored
from zenos.bus.checks import checked
from zenos.bus.codec import encode_value
from zenos.bus.envelope import Verb
from zenos.bus.inbox import Inbox, Received
from zenos.bus.message import Answerable, BaseMessage, reason_of, settled, unsettled
from zenos.bus.operations import TIMEOUT_S, Sending
from zenos.bus.session import EndedError
from zenos.core import limits
from zenos.core.errors import (
    ConflictError,
    DeadlineError,
    InvalidError,
    UnavailableError,
    ZenosError,
)

if TYPE_CHECKING:
    from zenos.bus.aio import AsyncBus


class Message(Answerable):
    """A message that was received. In an `async with` block it is acknowledged at the end, and
    given back if an exception ends it; a call is replied to, with nothing or with the error.
    """

    def __init__(self, bus: AsyncBus, received: Received) -> None:
        super().__init__(bus, received)
        self._bus = bus

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.let_go()
        if self._settled:
            return
        if error is None:
            await self.ack()
        else:
            await self.nack(reason=reason_of(error))

    def reply(self, body: Any) -> Awaitable[None]:
        """Answer a call. Nobody hears it who has stopped waiting.

        What is small has gone when this returns. Arrays and many bytes are copied into shared
        memory in a thread, and go then; who wants to know of it, or of an error, awaits it.
        """
        self._check_call()
        made = encode_value(body)
        if isinstance(made, Encoded) or made.is_small:
            self._answer(made if isinstance(made, Encoded) else made.inline())
            return self._bus.done()
        self._settled = True
        return self._bus.begin(self._reply_shared(made))

    async def _reply_shared(self, made: AnyDraft) -> None:
        encoded = error = None
        try:
            pool = self._bus.own.pool
            encoded = await self._bus.in_thread(made.share, pool, TIMEOUT_S, drop=Encoded.close)
        except ZenosError as raised:
            error = raised
        self._bus.act(operations.reply, self.received, encoded, error)
        if error is not None:
            raise error

    async def ack(self) -> None:
        """It was processed. Durable: returns after the commit, ConflictError if the lease ended.

        Said again it does nothing; ConflictError after another word.
        """
        await self._settle("ack", "", 0.0)

    @checked
    async def nack(self, *, delay_s: float = 0.0, reason: str = "") -> None:
        """It was not processed. Durable: it is delivered again, not before `delay_s` seconds.

        Said again it does nothing; ConflictError after another word.
        """
        self._check_delay(delay_s)
        await self._settle("nack", reason, delay_s)

    async def extend(self, lease_s: float) -> None:
        """Keep a durable message for `lease_s` seconds from now."""
        lease_s = checks.seconds("lease_s", lease_s)
        if self.is_durable:
            await self._bus.run(
                operations.settle(self._bus.session, self.received, "extend", lease_s=lease_s)
            )

    async def _settle(self, verb: str, reason: str, delay_s: float) -> None:
        if self._was_settled(verb):
            return
        if self.is_durable:
            await self._bus.run(
                operations.settle(
                    self._bus.session, self.received, verb, reason=reason, delay_s=delay_s
                )
            )
        self._end_call(verb, reason)
        self._settled = True


class Messages(list[Message]):
    """Durable messages that were received together. In an `async with` block those that nobody has
    acknowledged or given back are acknowledged at the end, together, and given back if an exception
    ends it.
    """

    def __init__(self, bus: AsyncBus, received: Iterable[Received]) -> None:
        super().__init__(Message(bus, one) for one in received)
        self._bus = bus

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            await self.ack()
        else:
            with suppress(ConflictError):  # the program's own says more
                await self._settle("nack", reason_of(error))

    async def ack(self) -> None:
        """All were processed. Returns after the commit; ConflictError if the lease of one ended."""
        await self._settle("ack", "")

    async def _settle(self, verb: Verb, reason: str) -> None:
        left = unsettled(self)
        if left:
            try:
                await self._bus.run(many.settle(self._bus.session, left, verb, reason=reason))
            except ConflictError:
                settled(self, verb)  # the others were; what has no lease can't be
                raise
            settled(self, verb)


class Subscription:
    """What is published on a topic, message by message. The bus's end ends it."""

    def __init__(self, bus: AsyncBus, inbox: Inbox, timeout_s: float | None) -> None:
        self._bus = bus
        self._inbox = inbox
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BaseMessage:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        steps = self._bus.session.next_of(self._inbox, deadline, subscribed=True)
        try:
            return BaseMessage(await self._bus.run(steps))
        except EndedError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Take part no more. Whoever iterates, in whatever coroutine, comes to the end."""
        self._bus.act(operations.unsubscribe, self._inbox)


M = TypeVar("M", bound=Message | Messages)


class Receiving(Generic[M]):
    """A message that is waited for, or several together."""

    def __init__(self, coming: Coroutine[Any, Any, M]) -> None:
        self._coming = coming
        self._message: M | None = None

    def __await__(self) -> Generator[Any, Any, M]:
        return self._coming.__await__()

    async def __aenter__(self) -> M:
        self._message = message = await self._coming
        await message.__aenter__()
        return message

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._message is not None:
            await self._message.__aexit__(kind, error, tb)


class Topic:
    """Messages of one name."""

    def __init__(self, bus: AsyncBus, name: str, *, durable: bool, prefetch: int) -> None:
        self.name = name
        self.durable = durable
        self._bus = bus
        self._prefetch = checks.prefetch(prefetch)

    @checked
    async def send(
        self,
        body: Any,
        *,
        id: str | None = None,  # noqa: A002 - the message's id, as its receiver calls it
        priority: int | str = limits.PRIORITY_NORMAL,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> str:
        """Send to one of the topic's receivers; returns the message's id.

        Durable: returns after the commit; one with an id that is known is dropped. Transient: at
        most once, returns when it may go; BusyError when the topic is full for `timeout_s` seconds.
        delay_s: not delivered before (durable). deadline_s: not delivered after so many seconds.
        priority: 0 to 100, or `low`, `normal`, `high`. InvalidError for what can't be used.
        """
        priority = checks.priority(priority)
        if self.durable:
            made = encode_value(body)
            encoded = made if isinstance(made, Encoded) else stored(made)
        else:
            encoded, timeout_s = await self._encode(body, timeout_s)
        how = Sending(
            id=id,
            priority=priority,
            delay_s=delay_s,
            deadline_s=deadline_s,
            headers=headers,
            timeout_s=timeout_s,
        )
        send = operations.send_durable if self.durable else operations.send_transient
        return await self._bus.run(send(self._bus.session, self.name, encoded, how))

    @checked
    async def send_many(
        self,
        bodies: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        priority: int | str = limits.PRIORITY_NORMAL,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> list[str]:
        """Send many to a durable topic, in their order; returns their ids after the commit.

        As `send` of each, at a fraction of the cost: they share their way and the wait. No
        transaction: where it raises, some may have been kept, and with `ids` it can be repeated.
        """
        self._only_durable("send_many")
        priority, bodies = checks.priority(priority), checks.several("bodies", bodies)
        ids = (
            None if ids is None else [checks.text("id", id_) for id_ in checks.several("ids", ids)]
        )
        how = Sending(
            priority=priority,
            delay_s=delay_s,
            deadline_s=deadline_s,
            headers=headers,
            timeout_s=timeout_s,
        )
        return await self._bus.run(many.send(self._bus.session, self.name, bodies, ids, how))

    @checked
    def receive(
        self, *, timeout_s: float | None = None, lease_s: float | None = None
    ) -> Receiving[Message]:
        """The next message, for this receiver alone: to await, or for `async with`.

        lease_s: for how long a durable one stays leased (default: as its topic says). DeadlineError
        when none came in time.
        """
        return Receiving(self._receive(timeout_s, lease_s))

    async def _receive(self, timeout_s: float | None, lease_s: float | None) -> Message:
        session = self._bus.session
        if self.durable:
            steps = operations.receive_durable(
                session, self.name, self._prefetch, timeout_s, lease_s
            )
        else:
            steps = operations.receive_transient(session, self.name, self._prefetch, timeout_s)
        return Message(self._bus, await self._bus.run(steps))

    @checked
    def receive_many(
        self, count: int, *, timeout_s: float | None = None, lease_s: float | None = None
    ) -> Receiving[Messages]:
        """As many messages of a durable topic as are there, at most `count`, at least one.

        To await, or for `async with`, as `receive`: at its end they are acknowledged together. The
        lease of all of them begins when they are received. DeadlineError when none came in time.
        """
        self._only_durable("receive_many")
        count = checks.whole("count", count, 1, limits.PREFETCH_MAX)
        return Receiving(self._receive_many(count, timeout_s, lease_s))

    async def _receive_many(
        self, count: int, timeout_s: float | None, lease_s: float | None
    ) -> Messages:
        steps = many.receive(
            self._bus.session, self.name, count, self._prefetch, timeout_s, lease_s
        )
        return Messages(self._bus, await self._bus.run(steps))

    @checked
    async def publish(
        self,
        body: Any,
        *,
        priority: int | str = limits.PRIORITY_NORMAL,
        deadline_s: float | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Send to all that have subscribed. A slow one misses messages; nobody waits for it."""
        self._only_transient("publish")
        priority = checks.priority(priority)
        encoded, timeout_s = await self._encode(body, timeout_s)
        how = Sending(
            priority=priority, deadline_s=deadline_s, headers=headers, timeout_s=timeout_s
        )
        session = self._bus.session
        steps = operations.send_transient(session, self.name, encoded, how, publish=True)
        await self._bus.run(steps)

    @checked
    async def subscribe(self, *, timeout_s: float | None = None) -> Subscription:
        """All that is published from now on, as an iterator; to be closed, or used in `async with`.

        timeout_s: the iterator raises DeadlineError when nothing came for so long.
        """
        self._only_transient("subscribe")
        inbox = await self._bus.run(operations.subscribe(self._bus.session, self.name, TIMEOUT_S))
        return Subscription(self._bus, inbox, timeout_s)

    @checked
    async def call(
        self,
        body: Any,
        *,
        timeout_s: float = TIMEOUT_S,
        priority: int | str = limits.PRIORITY_NORMAL,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Have one of those who serve the topic answer; its error is raised here.

        DeadlineError: no answer in time. UnavailableError: whoever had it went away.
        """
        self._only_transient("call")
        priority = checks.priority(priority)
        encoded, timeout_s = await self._encode(body, timeout_s)
        how = Sending(priority=priority, headers=headers, timeout_s=timeout_s)
        reply = await self._bus.run(operations.call(self._bus.session, self.name, encoded, how))
        return operations.value_of(reply)

    @checked
    async def buffer(
        self, shape: Sequence[int], dtype: str = "float32", *, timeout_s: float = TIMEOUT_S
    ) -> ArrayBuffer:
        """Shared memory for an array, to fill in place, and then to send without copying it.

        dtype: by name, also `bfloat16`. What is in it at first is anything. Full shared memory is
        waited for: DeadlineError when it stays so; TooLargeError for what never fits.
        """
        own = self._bus.own
        return await self._bus.in_thread(
            own.buffer, shape, dtype, timeout_s, drop=ArrayBuffer.close
        )

    @checked
    async def serve(
        self, function: Callable[[Any], Awaitable[Any]], *, timeout_s: float | None = None
    ) -> None:
        """Answer calls, one after another, with what awaiting `function` of their bodies gives.

        What it raises is raised where the call was made; what is no Exception (SystemExit,
        CancelledError) here as well, and ends this. timeout_s: stop when nobody has called for so
        long. Several tasks, or programs, may serve one topic.
        """
        self._only_transient("serve")
        checks.function(function)
        while True:
            try:
                message = await self.receive(timeout_s=timeout_s)
            except DeadlineError:
                return
            except UnavailableError:
                if self._bus.session.closed is not None:
                    return
                raise
            await self._do(function, message)
            del message  # it may hold shared memory

    async def _do(self, function: Callable[[Any], Awaitable[Any]], message: Message) -> None:
        error = encoded = None
        try:
            result = await function(message.body)
            if message.is_call:
                encoded, _ = await self._encode(result, TIMEOUT_S)
        except Exception as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        except BaseException as raised:
            if message.is_call:  # its caller needn't wait on
                self._bus.act(operations.reply_or_fail, message.received, None, raised)
            raise
        if message.is_call:
            self._bus.act(operations.reply_or_fail, message.received, encoded, error)
        del error  # whose traceback holds this frame, and with it the message

    async def _encode(self, body: Any, timeout_s: float) -> tuple[Encoded, float]:
        """A value as it is sent, and the seconds that are left then. Who sends to a topic that
        refuses doesn't wait for shared memory either: BusyError. Else DeadlineError."""
        end = time.monotonic() + timeout_s
        made = encode_value(body)
        if isinstance(made, Encoded):
            return made, timeout_s
        if self.durable:
            return stored(made), timeout_s
        if made.is_small:
            return made.inline(), timeout_s
        window = await self._bus.run(self._bus.session.window(self.name, end))
        wait_s = 0.0 if window.refuses else max(0.0, end - time.monotonic())
        pool = self._bus.own.pool
        encoded = await self._bus.in_thread(made.share, pool, wait_s, drop=Encoded.close)
        return encoded, max(0.0, end - time.monotonic())

    def _only_transient(self, what: str) -> None:
        if self.durable:
            raise InvalidError(f"cannot {what} with a durable topic: it has 'send' and 'receive'")

    def _only_durable(self, what: str) -> None:
        if not self.durable:
            raise InvalidError(f"cannot {what} with a transient topic: give it 'durable=True'")
