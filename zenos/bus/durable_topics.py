"""The loop around the durable topics: decide, remember, answer, as the kernel's loop does.

What comes while a transaction is being written waits for the next one, so that however many send
at once share one write to the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, Protocol

import msgspec
from msgspec.structs import replace

from zenos.bus import topics as ev
from zenos.bus.topic import Delivery
from zenos.bus.topics import Result, Topics
from zenos.core import failpoints, limits
from zenos.core.clock import Clock
from zenos.core.errors import BusyError, StorageError, UnavailableError, ZenosError
from zenos.core.messages import Message, MessageChanges, TopicSettings, check_topic
from zenos.core.seldom import Seldom

log = logging.getLogger(__name__)
COMMIT_RETRY_S: Final = 0.5
LOG_EVERY_S: Final = 60.0  # between two lines about what goes on failing
EVENTS_WAITING_MAX: Final = 100_000


class Remember(Protocol):
    """The store, as this loop sees it."""

    async def commit_messages(self, changes: MessageChanges) -> None:
        """Write one transaction, whole, or raise StorageError."""
        ...


class TopicEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message, once it is remembered.

    type: `waiting` (accepted, or replayed), `delivered` (to a receiver, whose work isn't known
    yet), `failed` (it will be delivered again), `acknowledged`, `dead`. at: seconds since 1970.
    body and headers: not of `delivered` and `acknowledged`.
    """

    type: Literal["waiting", "delivered", "failed", "acknowledged", "dead"]
    at: float
    message: Message
    receiver: str = ""


class DurableTopics:
    """Takes events from anywhere in the event loop; answers when all is remembered."""

    def __init__(
        self,
        store: Remember,
        clock: Clock,
        messages: Iterable[Message],
        settings: Callable[[str], TopicSettings] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        # Numbers of deliveries grow from one run of the daemon to the next, as its clock does.
        first = int(clock.now() * 1e6)
        self._topics = Topics(messages, settings, first_delivery=first)
        self._next_request = 1
        self._watches = itertools.count(1)
        self._asked: dict[int, Callable[[Result], None]] = {}
        self._events: list[ev.Event] = []
        self._waiting = 0  # of these, each part of one counted
        self._there = asyncio.Event()
        self.storage_error: StorageError | None = None
        self._watchers: dict[int, tuple[str, asyncio.Queue[TopicEvent | None]]] = {}
        self._closed = False

    @property
    def topics(self) -> Topics:
        """To look at, between two steps."""
        return self._topics

    def next_request(self, count: int = 1) -> int:
        """A number for an event; the first of `count`, for one that has several parts."""
        number = self._next_request
        self._next_request += count
        return number

    def post(self, event: ev.Event, answer: Callable[[Result], None] | None = None) -> None:
        """Take an event; `answer` is called once, after what it changed is remembered.

        Raises UnavailableError while nothing can be remembered, BusyError when too many wait.
        """
        if self._closed:
            raise UnavailableError("cannot take messages: the daemon goes down")
        if answer is not None:
            if self.storage_error is not None:
                raise UnavailableError(str(self.storage_error), retry_after_s=5)
            if self._waiting >= EVENTS_WAITING_MAX:
                raise BusyError("cannot take more messages at the moment", retry_after_s=1)
            self._asked[event.request] = answer
        self._events.append(event)
        self._waiting += _parts(event)
        self._there.set()

    def expect(self, request: int, answer: Callable[[Result], None]) -> None:
        """Have a part of an event that was posted answered later."""
        self._asked[request] = answer

    async def ask(self, event: ev.Event) -> Result:
        """Post an event and wait for its answer; raises it when it is an error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def answer(result: Result) -> None:
            if not future.done():
                future.set_result(result)

        self.post(event, answer)
        try:
            result = await future
        except asyncio.CancelledError:
            self.withdraw(event.request)
            raise
        if isinstance(result, ZenosError):
            raise result
        return result

    def withdraw(self, request: int) -> None:
        """Whoever asked no longer waits. What was done already stays done."""
        self._asked.pop(request, None)
        if not self._closed:
            self.post(ev.Withdraw(request=request))

    def gone(self, receiver: str) -> None:
        """A receiver has gone away."""
        if not self._closed:
            self.post(ev.Gone(request=0, receiver=receiver))

    def give_back(self, delivery: Delivery) -> None:
        """It did not reach its receiver: others may have it at once, and it has not failed."""
        if self._closed:
            return  # a lease isn't remembered
        message = delivery.message
        self.post(
            ev.Nack(
                request=self.next_request(),
                topic=message.topic,
                delivery=delivery.number,
                id=message.id,
                failed=False,
            )
        )

    def bury(self, delivery: Delivery, reason: str) -> None:
        """It can reach no receiver: it is dead."""
        if self._closed:
            return
        message = delivery.message
        self.post(
            ev.Bury(
                request=self.next_request(),
                topic=message.topic,
                delivery=delivery.number,
                id=message.id,
                reason=reason,
            )
        )

    @contextlib.contextmanager
    def watch(self, topic: str) -> Iterator[asyncio.Queue[TopicEvent | None]]:
        """What happens on a topic from now on; None ends it: the reader is too slow, or the daemon
        goes down."""
        queue: asyncio.Queue[TopicEvent | None] = asyncio.Queue(limits.TOPIC_EVENTS_WAITING_MAX)
        number = next(self._watches)
        self._watchers[number] = (check_topic(topic), queue)
        try:
            yield queue
        finally:
            self._watchers.pop(number, None)

    async def run(self) -> None:
        """Run until closed; who still waits then hears that the daemon goes down."""
        try:
            wake = self._clock.now()
            while not self._closed:
                events = await self._drain(wake - self._clock.now())
                changes, answers, wake = self._topics.step(events, self._clock.now())
                failpoints.passing("topics.decided")
                if changes and not await self._commit(changes):
                    return
                failpoints.passing("topics.committed")
                if self._watchers:
                    self._tell_watchers(changes, answers)
                self._answer(answers)
        finally:
            error = UnavailableError("cannot say what became of this: the daemon goes down")
            for tell in self._asked.values():
                tell(error)
            self._asked.clear()

    def _answer(self, answers: list[ev.Answer]) -> None:
        for answer in answers:
            tell = self._asked.pop(answer.request, None)
            if tell is not None:
                tell(answer.result)
            elif isinstance(answer.result, list) and not self._closed:
                # Who asked for these has gone since: others may have them at once.
                for given in answer.result:
                    self.give_back(given)

    def close(self) -> None:
        """Stop after the present step. See `run`."""
        self._closed = True
        self._there.set()
        for number in list(self._watchers):
            self._cut(number)

    def _tell_watchers(self, changes: MessageChanges, answers: list[ev.Answer]) -> None:
        now = self._clock.now()
        happened = [
            TopicEvent(type=_what(message), at=now, message=message)
            for message in changes.put.values()
        ]
        for answer in answers:
            if isinstance(answer.result, list):
                happened += [
                    TopicEvent(
                        type="delivered",
                        at=now,
                        message=replace(given.message, body=b"", headers={}),
                        receiver=given.receiver,
                    )
                    for given in answer.result
                ]
        for number, (topic, queue) in list(self._watchers.items()):
            for event in happened:
                if event.message.topic != topic:
                    continue
                if queue.full():
                    self._cut(number)
                    break
                queue.put_nowait(event)

    def _cut(self, number: int) -> None:
        _, queue = self._watchers.pop(number)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    async def _drain(self, timeout_s: float) -> list[ev.Event]:
        if not self._events and timeout_s > 0 and not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._there.wait(), min(timeout_s, limits.LEASE_S_MAX))
        self._there.clear()
        events, self._events, self._waiting = self._events, [], 0
        return events

    async def _commit(self, changes: MessageChanges) -> bool:
        """Commit until it is remembered; False when the daemon goes down before."""
        told, now = Seldom(LOG_EVERY_S), asyncio.get_running_loop().time
        while True:
            try:
                await self._store.commit_messages(changes)
            except StorageError as error:
                if told.times(now()):
                    log.error("%s; trying again", error)  # noqa: TRY400 - the message says it all
                self.storage_error = error
                if self._closed:
                    return False
                await asyncio.sleep(COMMIT_RETRY_S)
            else:
                if self.storage_error is not None:
                    log.warning("messages are stored again")
                self.storage_error = None
                return True


def _parts(event: ev.Event) -> int:
    match event:
        case ev.SendSeveral():
            return len(event.messages)
        case ev.AckSeveral():
            return len(event.settled)
        case _:
            return 1


def _what(message: Message) -> Literal["waiting", "failed", "acknowledged", "dead"]:
    if message.dead is not None:
        return "dead"
    if message.is_done:
        return "acknowledged"
    return "failed" if message.failures else "waiting"
