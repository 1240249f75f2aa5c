"""Topics and messages for programs that wait; see sync.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zenos.bus import checks, many, operations
from zenos.bus.bodies import ArrayBuffer, Encoded, stored
from zenos.bus.checks import checked
from zenos.bus.codec import encode_value
from zenos.bus.envelope import Verb
from zenos.bus.inbox import Inbox, Received
from zenos.bus.message import Answerable, BaseMessage, reason_of, settled, unsettled
from zenos.bus.operations import TIMEOUT_S, Sending
from zenos.bus.session import EndedError
from zenos.core import limits
from zenos.core.errors import ConflictError, DeadlineError, InvalidError, UnavailableError

if TYPE_CHECKING:
    from zenos.bus.sync import Bus


class Message(Answerable):
    """A message that was received. In a `with` block it is acknowledged at the end, and given
    back if an exception ends it; a call is replied to, with nothing or with the error.
    """

    def __init__(self, bus: Bus, received: Received) -> None:
        super().__init__(bus, received)
        self._bus = bus

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.let_go()
        if self._settled:
            return
        if error is None:
            self.ack()
        else:
            self.nack(reason=reason_of(error))

    def reply(self, body: Any) -> None:
        """Answer a call. Nobody hears it who has stopped waiting.

        Arrays and many bytes are copied into shared memory; when that is full, this waits.
        """
        self._check_call()
        self._answer(self._bus.encode(body))

    def ack(self) -> None:
        """It was processed. Durable: returns after the commit, ConflictError if the lease ended.

        Said again it does nothing; ConflictError after another word.
        """
        self._settle("ack", "", 0.0)

    @checked
    def nack(self, *, delay_s: float = 0.0, reason: str = "") -> None:
        """It was not processed. Durable: it is delivered again, not before `delay_s` seconds.

        Said again it does nothing; ConflictError after another word.
        """
        self._check_delay(delay_s)
        self._settle("nack", reason, delay_s)

    def extend(self, lease_s: float) -> None:
        """Keep a durable message for `lease_s` seconds from now."""
        lease_s = checks.seconds("lease_s", lease_s)
        if self.is_durable:
            self._bus.run(
                operations.settle(self._bus.session, self.received, "extend", lease_s=lease_s)
            )

    def _settle(self, verb: str, reason: str, delay_s: float) -> None:
        if self._was_settled(verb):
            return
        if self.is_durable:
            self._bus.run(
                operations.settle(
                    self._bus.session, self.received, verb, reason=reason, delay_s=delay_s
                )
            )
        self._end_call(verb, reason)
        self._settled = True


class Messages(list[Message]):
    """Durable messages that were received together. In a `with` block those that nobody has
    acknowledged or given back are acknowledged at the end, together, and given back if an exception
    ends it.
    """

    def __init__(self, bus: Bus, received: Iterable[Received]) -> None:
        super().__init__(Message(bus, one) for one in received)
        self._bus = bus

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            self.ack()
        else:
            with suppress(ConflictError):  # the program's own says more
                self._settle("nack", reason_of(error))

    def ack(self) -> None:
        """All were processed. Returns after the commit; ConflictError if the lease of one ended."""
        self._settle("ack", "")

    def _settle(self, verb: Verb, reason: str) -> None:
        left = unsettled(self)
        if left:
            try:
                self._bus.run(many.settle(self._bus.session, left, verb, reason=reason))
            except ConflictError:
                settled(self, verb)  # the others were; what has no lease can't be
                raise
            settled(self, verb)


class Subscription:
    """What is published on a topic, message by message. The bus's end ends it."""

    def __init__(self, bus: Bus, inbox: Inbox, timeout_s: float | None) -> None:
        self._bus = bus
        self._inbox = inbox
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BaseMessage:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        steps = self._bus.session.next_of(self._inbox, deadline, subscribed=True)
        try:
            return BaseMessage(self._bus.run(steps))
        except EndedError:
            raise StopIteration from None

    def close(self) -> None:
        """Take part no more. Whoever iterates, in whatever thread, comes to the end."""
        self._bus.act(operations.unsubscribe, self._inbox)
        self._bus.wake()


class Topic:
    """Messages of one name."""

    def __init__(self, bus: Bus, name: str, *, durable: bool, prefetch: int) -> None:
        self.name = name
        self.durable = durable
        self._bus = bus
        self._prefetch = checks.prefetch(prefetch)

    @checked
    def send(
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
        plain = not (self.durable or id or delay_s or headers or deadline_s is not None)
        small = type(body) is bytes and len(body) < limits.SHARED_BODY_BYTES_MIN
        if plain and small and self._bus.send_now(self.name, body, priority):
            return ""
        encoded, timeout_s = self._encode(body, timeout_s)
        how = Sending(
            id=id,
            priority=priority,
            delay_s=delay_s,
            deadline_s=deadline_s,
            headers=headers,
            timeout_s=timeout_s,
        )
        send = operations.send_durable if self.durable else operations.send_transient
        return self._bus.run(send(self._bus.session, self.name, encoded, how))

    @checked
    def send_many(
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
        return self._bus.run(many.send(self._bus.session, self.name, bodies, ids, how))

    @checked
    def receive(self, *, timeout_s: float | None = None, lease_s: float | None = None) -> Message:
        """The next message, for this receiver alone. DeadlineError when none came in time.

        lease_s: for how long a durable one stays leased (default: as its topic says).
        """
        session = self._bus.session
        if not self.durable:
            received = self._bus.receive_now(self.name)
            if received is not None:
                return Message(self._bus, received)
        if self.durable:
            steps = operations.receive_durable(
                session, self.name, self._prefetch, timeout_s, lease_s
            )
        else:
            steps = operations.receive_transient(session, self.name, self._prefetch, timeout_s)
        return Message(self._bus, self._bus.run(steps))

    @checked
    def receive_many(
        self, count: int, *, timeout_s: float | None = None, lease_s: float | None = None
    ) -> Messages:
        """As many messages of a durable topic as are there, at most `count`, at least one.

        To be used in `with`, as `receive`: at its end they are acknowledged together. The lease of
        all of them begins when they are received. DeadlineError when none came in time.
        """
        self._only_durable("receive_many")
        count = checks.whole("count", count, 1, limits.PREFETCH_MAX)
        steps = many.receive(
            self._bus.session, self.name, count, self._prefetch, timeout_s, lease_s
        )
        return Messages(self._bus, self._bus.run(steps))

    @checked
    def publish(
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
        encoded, timeout_s = self._encode(body, timeout_s)
        how = Sending(
            priority=priority, deadline_s=deadline_s, headers=headers, timeout_s=timeout_s
        )
        session = self._bus.session
        self._bus.run(operations.send_transient(session, self.name, encoded, how, publish=True))

    @checked
    def subscribe(self, *, timeout_s: float | None = None) -> Subscription:
        """All that is published from now on, as an iterator; to be closed, or used in `with`.

        timeout_s: the iterator raises DeadlineError when nothing came for so long.
        """
        self._only_transient("subscribe")
        inbox = self._bus.run(operations.subscribe(self._bus.session, self.name, TIMEOUT_S))
        return Subscription(self._bus, inbox, timeout_s)

    @checked
    def call(
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
        encoded, timeout_s = self._encode(body, timeout_s)
        how = Sending(priority=priority, headers=headers, timeout_s=timeout_s)
        reply = self._bus.run(operations.call(self._bus.session, self.name, encoded, how))
        return operations.value_of(reply)

    @checked
    def buffer(
        self, shape: Sequence[int], dtype: str = "float32", *, timeout_s: float = TIMEOUT_S
    ) -> ArrayBuffer:
        """Shared memory for an array, to fill in place, and then to send without copying it.

        dtype: by name, also `bfloat16`. What is in it at first is anything. Full shared memory is
        waited for: DeadlineError when it stays so; TooLargeError for what never fits.
        """
        return self._bus.own.buffer(shape, dtype, timeout_s)

    @checked
    def serve(self, function: Callable[[Any], Any], *, timeout_s: float | None = None) -> None:
        """Answer calls with what `function` makes of their bodies, until the bus is closed.

        What it raises is raised where the call was made; what is no Exception (SystemExit) here as
        well, and ends this. timeout_s: stop when nobody has called for so long. Several threads, or
        programs, may serve one topic.
        """
        self._only_transient("serve")
        checks.function(function)
        while True:
            try:
                message = self.receive(timeout_s=timeout_s)
            except DeadlineError:
                return
            except UnavailableError:
                if self._bus.session.closed is not None:
                    return
                raise
            self._do(function, message)
            del message  # it may hold shared memory

    def _do(self, function: Callable[[Any], Any], message: Message) -> None:
        error = encoded = None
        try:
            result = function(message.body)
            if message.is_call:
                encoded = self._bus.encode(result)
        except Exception as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        except BaseException as raised:
            if message.is_call:  # its caller needn't wait on
                self._bus.act(operations.reply_or_fail, message.received, None, raised)
            raise
        if message.is_call:
            do, received = operations.reply_or_fail, message.received
            self._bus.act_before_more(do, received, encoded, error)
        del error  # whose traceback holds this frame, and with it the message

    def _encode(self, body: Any, timeout_s: float) -> tuple[Encoded, float]:
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
        window = self._bus.run(self._bus.session.window(self.name, end))
        wait_s = 0.0 if window.refuses else max(0.0, end - time.monotonic())
        encoded = made.share(self._bus.own.pool, wait_s)
        return encoded, max(0.0, end - time.monotonic())

    def _only_transient(self, what: str) -> None:
        if self.durable:
            raise InvalidError(f"cannot {what} with a durable topic: it has 'send' and 'receive'")

    def _only_durable(self, what: str) -> None:
        if not self.durable:
            raise InvalidError(f"cannot {what} with a transient topic: give it 'durable=True'")
