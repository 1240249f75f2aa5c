"""Durable topics, as a pure state machine: what happened and the time in, what to remember and to
answer out. No I/O, no clock; durable_topics.py is the loop around it.

A message is accepted once it is remembered. It is *waiting*, or *leased* to one receiver; it leaves
when that one acknowledges it, or is given up as *dead* after too many failed deliveries. So each is
delivered at least once; of several with the same id on a topic only the first is delivered.

A lease is not remembered: after a restart a leased message waits again. A receiver that went on
working meanwhile may still acknowledge it, as long as nobody else was given it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from zenos.bus.topic import Delivery, Topic
from zenos.core import limits
from zenos.core.errors import BusyError, NotFoundError, ZenosError
from zenos.core.messages import (
    NO_SETTINGS,
    Message,
    MessageChanges,
    TopicSettings,
    check_message,
    check_seconds,
    check_topic,
)
from zenos.core.wording import nearest

Select = Literal["waiting", "dead"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events. request: the number by which it is answered, once."""

    request: int


class Send(Event, frozen=True, kw_only=True):
    """Keep a message. Its number is given here; due and deadline are seconds from now (0: none)."""

    message: Message


class SendSeveral(Event, frozen=True, kw_only=True):
    """As many Sends to one topic. That of a message is `request` and its place among them: by that
    number it is answered where it has to wait for room; all others are answered together."""

    topic: str
    messages: list[Message]


class Receive(Event, frozen=True, kw_only=True):
    """Lease up to `count` messages to `receiver`, as soon as there is one."""

    topic: str
    receiver: str
    count: int = 1
    lease_s: float | None = None


class Withdraw(Event, frozen=True, kw_only=True):
    """Whoever made `request`, a Receive or a blocked Send, no longer waits. Never answered."""


class Ack(Event, frozen=True, kw_only=True):
    """A message was processed: it is done with."""

    topic: str
    delivery: int
    id: str


class AckSeveral(Event, frozen=True, kw_only=True):
    """As many Acks on one topic: of each its delivery and its message's id."""

    topic: str
    settled: list[tuple[int, str]]


class Nack(Event, frozen=True, kw_only=True):
    """A message was not processed: deliver it again, not before `delay_s` seconds.

    failed: it was tried; else it never reached its receiver, and that doesn't count.
    """

    topic: str
    delivery: int
    id: str
    delay_s: float = 0.0
    reason: str = ""
    failed: bool = True


class Bury(Event, frozen=True, kw_only=True):
    """A message cannot be delivered, to nobody: it is dead."""

    topic: str
    delivery: int
    id: str
    reason: str


class Extend(Event, frozen=True, kw_only=True):
    """A receiver needs `lease_s` more seconds, from now on."""

    topic: str
    delivery: int
    id: str
    lease_s: float


class Gone(Event, frozen=True, kw_only=True):
    """A receiver has gone away: what it was given goes to others. Never answered.

    What it waited for, and what it waited to send, is withdrawn.
    """

    receiver: str


class Replay(Event, frozen=True, kw_only=True):
    """Deliver dead messages again: those of `ids`, or all."""

    topic: str
    ids: list[str] | None = None


class Purge(Event, frozen=True, kw_only=True):
    """Drop what waits (not what is leased), or what is dead."""

    topic: str
    select: Select = "waiting"


class Accepted(msgspec.Struct, frozen=True):
    """A message is remembered. duplicate: it was already; this one was dropped."""

    id: str
    duplicate: bool = False


class Several(msgspec.Struct, frozen=True):
    """What became of several, by their places: errors, and those that wait and are answered later.
    All others went well."""

    errors: dict[int, ZenosError]
    later: list[int]


Result = Accepted | Several | list[Delivery] | int | ZenosError


class Answer(msgspec.Struct, frozen=True):
    """Answers a request: to be given after what the same step changed is remembered."""

    request: int
    result: Result


class Topics:
    """All durable topics. `step` is its whole interface, beside looking."""

    def __init__(
        self,
        messages: Iterable[Message] = (),
        settings: Callable[[str], TopicSettings] | None = None,
        *,
        first_delivery: int = 1,
    ) -> None:
        """messages: what is remembered. first_delivery: above all that were ever given out."""
        self._settings = settings or (lambda _: NO_SETTINGS)
        self._topics: dict[str, Topic] = {}
        self._alarms: list[tuple[float, str]] = []
        self._alarm: dict[str, float] = {}  # the one of each topic that counts
        self._waiting: dict[int, str] = {}  # requests that wait, and on which topic
        self._next_number = 1
        self._first_delivery = self._next_delivery = first_delivery
        for message in sorted(messages, key=lambda message: (message.ended, message.number)):
            self._next_number = max(self._next_number, message.number + 1)
            self._topic(message.topic).restore(message)
        self._changes = MessageChanges()
        self._answers: list[Answer] = []
        self._touched = set(self._topics)

    @property
    def topics(self) -> Mapping[str, Topic]:
        """By name, to look at."""
        return self._topics

    def step(
        self, events: Iterable[Event], now: float
    ) -> tuple[MessageChanges, list[Answer], float]:
        """What to remember, then what to answer, and when to call again without an event.

        1. What was to happen by now happens: leases run out, messages fall due or pass their
           deadline. So who acknowledges too late has no lease any more.
        2. Events, in their order.
        3. Where there is room, senders that wait for it get in; then messages go to receivers.
        4. Ids and dead messages that have been kept long enough are forgotten; so are empty topics.
        """
        self._changes, self._answers = MessageChanges(now=now), []
        while self._alarms and self._alarms[0][0] <= now:  # 1
            when, name = heapq.heappop(self._alarms)
            if self._alarm.get(name) == when:
                del self._alarm[name]
                self._touched.add(name)
        for name in self._touched:
            if name in self._topics:
                self._topics[name].expire(now, self._changes)
        for event in events:  # 2
            self._handle(event, now)
        for name in self._touched:
            topic = self._topics.get(name)
            if topic is None:
                continue
            self._admit(topic, now)  # 3
            self._deliver(topic, now)
            topic.forget(now, self._changes)  # 4
            if topic.is_empty:
                del self._topics[name]
                self._alarm.pop(name, None)
            elif (wake := topic.wake()) < self._alarm.get(name, math.inf):
                self._alarm[name] = wake
                heapq.heappush(self._alarms, (wake, name))
        self._touched = set()
        return self._changes, self._answers, self._alarms[0][0] if self._alarms else math.inf

    # -- events

    def _handle(self, event: Event, now: float) -> None:
        try:
            match event:
                case Send():
                    self._send(event, now)
                case SendSeveral():
                    self._send_several(event, now)
                case AckSeveral():
                    self._acknowledge(event, now)
                case Receive():
                    self._receive(event)
                case Withdraw():
                    self._withdraw(event)
                case Gone():
                    for topic in self._topics.values():
                        requests = topic.let_go(event.receiver, now, self._changes)
                        for request in requests or ():
                            del self._waiting[request]
                        if requests is not None:
                            self._touched.add(topic.name)
                case _:
                    self._answer(event.request, self._on_topic(event, now))
        except ZenosError as error:
            self._answer(event.request, error)

    def _on_topic(self, event: Event, now: float) -> int:
        """What concerns messages that are there; returns how many."""
        match event:
            case Ack() | Nack() | Bury() | Extend() | Replay() | Purge():
                topic = self._known(event.topic)
            case _:
                raise TypeError(event)
        self._touched.add(topic.name)
        match event:
            case Ack():
                self._done(topic, event.delivery, event.id, now)
            case Nack():
                check_seconds("delay_s", event.delay_s, 0)
                reason = event.reason[: limits.ERROR_CHARS_MAX] or "its receiver gave it back"
                due = now + event.delay_s if event.delay_s else 0.0
                if event.failed:
                    topic.give_back(event.delivery, event.id, reason, due, now, self._changes)
                else:
                    topic.take_back(event.delivery, event.id)
            case Bury():
                topic.bury(event.delivery, event.id, event.reason, now, self._changes)
            case Extend():
                check_seconds("lease_s", event.lease_s, 0.01)
                topic.extend(event.delivery, event.id, now + event.lease_s)
            case Replay():
                return topic.replay(event.ids, self._changes)
            case Purge():
                return topic.purge(event.select, self._changes)
        return 1

    def _done(self, topic: Topic, delivery: int, id_: str, now: float) -> None:
        old = delivery < self._first_delivery
        topic.acknowledge(delivery, id_, now, self._changes, old=old)

    def _acknowledge(self, event: AckSeveral, now: float) -> None:
        topic, errors = self._known(event.topic), dict[int, ZenosError]()
        self._touched.add(topic.name)
        for place, (delivery, id_) in enumerate(event.settled):
            try:
                self._done(topic, delivery, id_, now)
            except ZenosError as error:
                errors[place] = error
        self._answer(event.request, Several(errors, []))

    def _send(self, event: Send, now: float) -> None:
        message = event.message
        topic = self._topic(check_topic(message.topic))
        accepted = self._take(topic, event.request, message, now)
        if accepted is not None:
            self._answer(event.request, accepted)

    def _send_several(self, event: SendSeveral, now: float) -> None:
        topic = self._topic(check_topic(event.topic))
        errors, later = dict[int, ZenosError](), list[int]()
        for place, message in enumerate(event.messages):
            try:
                if self._take(topic, event.request + place, message, now) is None:
                    later.append(place)
            except ZenosError as error:
                errors[place] = error
        self._answer(event.request, Several(errors, later))

    def _take(self, topic: Topic, request: int, message: Message, now: float) -> Accepted | None:
        """Take a message into its topic; None when it waits for room there."""
        self._touched.add(topic.name)
        message = replace(
            message,
            number=self._next_number,  # if it is accepted now
            topic=topic.name,
            sent=now,
            due=now + message.due if message.due > 0 else 0.0,
            deadline=now + message.deadline if message.deadline > 0 else 0.0,
        )
        check_message(message)
        if topic.knows(message.id):
            return Accepted(message.id, duplicate=True)
        if not topic.senders and topic.make_room(message, self._changes):
            self._next_number += 1
            topic.add(message, self._changes)
            return Accepted(message.id)
        if topic.settings.when_full == "block" and len(topic.senders) < limits.TOPIC_WAITERS_MAX:
            topic.senders[request] = message
            self._waiting[request] = topic.name
            return None
        raise BusyError(
            f"cannot send to {topic.name}: {len(topic.live)} messages with {topic.bytes} bytes"
            " wait there; receive some, or drop them with 'zenos bus purge'",
            retry_after_s=1,
        )

    def _receive(self, event: Receive) -> None:
        topic = self._topic(check_topic(event.topic))
        self._touched.add(topic.name)
        if event.lease_s is not None:
            check_seconds("lease_s", event.lease_s, 0.01)
        if len(topic.receivers) >= limits.TOPIC_WAITERS_MAX:
            raise BusyError(f"cannot receive from {topic.name}: too many receivers wait there")
        count = max(1, min(event.count, limits.DELIVERED_AT_ONCE_MAX))
        lease_s = topic.settings.lease_s if event.lease_s is None else event.lease_s
        topic.receivers[event.request] = (event.receiver, count, lease_s)
        self._waiting[event.request] = topic.name

    def _withdraw(self, event: Withdraw) -> None:
        name = self._waiting.pop(event.request, None)
        if name is not None:
            self._topics[name].receivers.pop(event.request, None)
            self._topics[name].senders.pop(event.request, None)
            self._touched.add(name)

    # -- what follows

    def _admit(self, topic: Topic, now: float) -> None:
        while topic.senders:
            request, message = next(iter(topic.senders.items()))
            known, late = topic.knows(message.id), 0 < message.deadline <= now
            if not (known or late or topic.make_room(message, self._changes)):
                return
            del topic.senders[request], self._waiting[request]
            if known:
                self._answer(request, Accepted(message.id, duplicate=True))
            elif late:
                error = BusyError(f"cannot send to {topic.name}: it was full until the deadline")
                self._answer(request, error)
            else:
                topic.add(replace(message, number=self._next_number), self._changes)
                self._next_number += 1
                self._answer(request, Accepted(message.id))

    def _deliver(self, topic: Topic, now: float) -> None:
        topic.wake_due(now)
        while topic.receivers and topic.has_ready():
            request, (receiver, count, lease_s) = next(iter(topic.receivers.items()))
            del topic.receivers[request], self._waiting[request]
            given: list[Delivery] = []
            while len(given) < count and topic.has_ready():
                given.append(topic.lease(self._next_delivery, receiver, now + lease_s))
                self._next_delivery += 1
            self._answer(request, given)

    def _answer(self, request: int, result: Result) -> None:
        self._answers.append(Answer(request, result))

    def _topic(self, name: str) -> Topic:
        if name not in self._topics:
            if len(self._topics) >= limits.TOPICS_MAX:
                raise BusyError(f"cannot use the topic {name}: there are {limits.TOPICS_MAX}")
            self._topics[name] = Topic(name, self._settings(name))
        return self._topics[name]

    def _known(self, name: str) -> Topic:
        topic = self._topics.get(check_topic(name))
        if topic is None:
            hint = nearest(name, list(itertools.islice(self._topics, 1000)))
            says = hint or ": nothing waits there ('zenos bus topics' lists them)"
            raise NotFoundError(f"cannot find the topic {name}{says}")
        return topic
