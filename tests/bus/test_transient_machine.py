"""A transient topic in any order of what happens: senders, some of which wait for room, receivers
that ask, change their mind and go away. Nobody waits for what is there, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.bus.test_direct_machine import frame_of
from zenos.bus.envelope import Envelope, body_in, encode
from zenos.bus.exchange import Exchange
from zenos.bus.order import Policy
from zenos.bus.peer import Peer
from zenos.bus.terms import Want
from zenos.core import limits
from zenos.core.messages import TopicSettings, WhenFull

TOPIC = "work"
SMALL, LARGE = 10, 1000  # bytes of a body
UNREAD_MAX = 2  # frames that wait for a peer; it is given no more until it reads


class Part:
    """A program as the broker has it, and what it has heard."""

    def __init__(self, name: str) -> None:
        self.ours, theirs = socket.socketpair()
        self.peer = Peer(theirs, Policy(), lambda _: None)
        self.peer.name = name
        self.ids = itertools.count(1)
        self.sent: list[int] = []  # ids of messages
        self.settled = 0  # of these, so many were said to be taken or refused
        self.refused: set[int] = set()
        self.credit = 0
        self.got: list[Envelope] = []

    def read(self) -> None:
        """All that was said to it."""
        self.peer.confirm()
        for item in self.peer.waiting.take(time.monotonic(), limits.GIB):
            envelope, frame = frame_of(item)
            if envelope.verb == "send":
                self.got.append(envelope)
                self.credit -= 1
                assert self.credit >= 0, "more came than was asked for"
            elif envelope.verb == "taken":
                self.settled += msgspec.msgpack.decode(body_in(frame))[0]
            elif envelope.to in self.sent:
                self.settled += 1
                if envelope.headers:
                    assert envelope.headers["code"] == "busy"
                    self.refused.add(envelope.to)
            else:  # of a withdrawal: so much of what was wanted doesn't come any more
                self.credit -= msgspec.msgpack.decode(body_in(frame))

    def close(self) -> None:
        self.ours.close()
        self.peer.socket.close()


class Topic(RuleBasedStateMachine):
    @initialize(
        when_full=st.sampled_from(["block", "refuse", "drop_oldest"]),
        messages=st.integers(1, 3),
        size=st.sampled_from([LARGE + 500, limits.MIB]),
    )
    def begin(self, when_full: WhenFull, messages: int, size: int) -> None:
        self.settings = TopicSettings(messages=messages, bytes=size, when_full=when_full)
        self.loop = asyncio.new_event_loop()
        self.names = itertools.count(1)
        self.exchange = self._make(lambda: Exchange(lambda *_: True, lambda _: self.settings))
        self.senders = [self._part(), self._part()]
        self.receivers = [self._part(), self._part()]
        self.parts = [*self.senders, *self.receivers]
        self.gone: list[Part] = []

    def _make(self, make: Any) -> Any:
        async def inside() -> Any:
            return make()

        return self.loop.run_until_complete(inside())

    def _part(self) -> Part:
        made: Part = self._make(lambda: Part(f"user.{next(self.names)}"))
        return made

    def _say(self, part: Part, verb: Any, body: bytes, **more: Any) -> int:
        number = next(part.ids)
        envelope = Envelope(
            id=number, verb=verb, topic=TOPIC, sender=part.peer.name, body=body, **more
        )
        self._make(lambda: self.exchange.take(part.peer, envelope, encode(envelope), ()))
        return number

    @rule(
        sender=st.integers(0, 1),
        priority=st.sampled_from([20, 50, 50, 80]),
        size=st.sampled_from([SMALL, LARGE]),
    )
    def send(self, sender: int, priority: int, size: int) -> None:
        part = self.senders[sender]
        part.sent.append(self._say(part, "send", bytes(size), priority=priority))

    @rule(receiver=st.integers(0, 1), count=st.integers(1, 3))
    def want(self, receiver: int, count: int) -> None:
        part = self.receivers[receiver]
        part.credit += count
        self._say(part, "want", msgspec.msgpack.encode(Want(count=count)))

    @rule(receiver=st.integers(0, 1))
    def withdraw(self, receiver: int) -> None:
        self._say(self.receivers[receiver], "withdraw", b"")

    @rule(part=st.integers(0, 3))
    def read(self, part: int) -> None:
        self._read(self.parts[part])

    def _read(self, part: Part) -> None:
        part.read()
        if part.peer.is_stalled:  # as the broker does
            part.peer.is_stalled = False
            self._make(lambda: self.exchange.resume(part.peer))

    @rule(sender=st.integers(0, 1))
    @precondition(lambda self: len(self.gone) < 3)
    def a_sender_goes(self, sender: int) -> None:
        """What it was told was taken stays; what waits for room goes with it."""
        self._end(self.senders[sender])
        self.senders[sender] = self._part()
        self.parts = [*self.senders, *self.receivers]

    @rule(receiver=st.integers(0, 1))
    @precondition(lambda self: len(self.gone) < 3)
    def a_receiver_goes(self, receiver: int) -> None:
        self._end(self.receivers[receiver])
        self.receivers[receiver] = self._part()
        self.parts = [*self.senders, *self.receivers]

    def _end(self, part: Part) -> None:
        part.read()
        part.peer.is_closed = True
        self._make(lambda: self.exchange.gone(part.peer))
        self.gone.append(part)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        topic = self.exchange._topics.get(TOPIC)
        if topic is None:
            return
        backlog = topic.backlog
        reads = [peer for peer in topic.credit if peer.waiting.count < UNREAD_MAX]
        assert not (backlog.head() and reads), "a message waits, and who wants it"
        first = next((item for item in topic.blocked if not item.is_gone), None)
        assert first is None or not backlog.has_room(first.size), "one waits for room that is there"
        assert backlog.count <= self.settings.messages
        assert backlog.count <= 1 or backlog.bytes <= self.settings.bytes

    def teardown(self) -> None:
        if not hasattr(self, "parts"):
            return
        try:
            self._finish()
        finally:
            for part in [*self.parts, *self.gone]:
                part.close()
            self.exchange.close()
            self.loop.close()

    def _finish(self) -> None:
        """Somebody takes all there is; then every sender has heard of each of its messages."""
        for part in self.parts:
            self._read(part)
        last = self.receivers[0]
        for _ in range(sum(len(part.sent) for part in [*self.senders, *self.gone]) + 1):
            last.credit += 1
            self._say(last, "want", msgspec.msgpack.encode(Want(count=1)))
            for part in self.parts:
                self._read(part)
        assert self.exchange.waiting(TOPIC) == 0
        got = [(e.sender, e.id) for part in [*self.parts, *self.gone] for e in part.got]
        assert len(got) == len(set(got)), "one came twice"
        for part in self.senders:
            assert part.settled == len(part.sent), "a sender waits for ever"
            came = {number for sender, number in got if sender == part.peer.name}
            assert not came & part.refused, "what was refused came"
            if self.settings.when_full != "drop_oldest":
                assert came | part.refused == set(part.sent), "a message is lost"
        for part in [*self.parts, *self.gone]:
            for key in {(e.sender, e.priority) for e in part.got}:
                order = [e.id for e in part.got if (e.sender, e.priority) == key]
                assert order == sorted(order), "one has overtaken another of its sender"


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    with mock.patch.object(limits, "SEND_QUEUE_FRAMES_MAX", 2 * UNREAD_MAX):
        yield


Topic.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTopic = Topic.TestCase
