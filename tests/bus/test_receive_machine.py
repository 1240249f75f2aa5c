"""Receivers that share a connection, in any order of what happens to them: the session alone, with
a model of the broker's side of a durable topic."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zenos.bus.envelope import Decoder, Envelope, body_in, encode
from zenos.bus.inbox import Received, Slot
from zenos.bus.operations import receive_durable
from zenos.bus.order import Policy
from zenos.bus.session import Session, Steps
from zenos.bus.terms import Want
from zenos.core import limits
from zenos.core.errors import DeadlineError

RECEIVERS_MAX = 4


class Receiver:
    """One that receives, until it has a message."""

    def __init__(self, steps: Steps[Received]) -> None:
        self.steps = steps
        self.slot: Slot | None = None
        self.waits_for_message = True  # else for word that its request is withdrawn
        self.found: Received | None = None

    def go_on(self, came: bool | None) -> bool:
        """Whether it has ended."""
        try:
            step = next(self.steps) if came is None else self.steps.send(came)
        except StopIteration as end:
            self.found = end.value
            return True
        except DeadlineError:
            return True
        self.slot = step[0]
        return False


class Receiving(RuleBasedStateMachine):
    """The broker: `backlog`, `requests` that wait, and `wire` on which frames are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(0, lambda: None)
        self.session.connect("one", Policy())
        self.receivers: list[Receiver] = []
        self.backlog: deque[int] = deque()
        self.requests: dict[int, int] = {}
        self.wire: deque[bytes] = deque()
        self.sent = 0
        self.taken: list[int] = []

    @rule(prefetch=st.integers(1, 5), timeout=st.booleans())
    @precondition(lambda self: len(self.receivers) < RECEIVERS_MAX)
    def receive(self, prefetch: int, timeout: bool) -> None:
        timeout_s = 1e6 if timeout else None
        made = Receiver(receive_durable(self.session, "jobs", prefetch, timeout_s, None))
        self.receivers.append(made)
        self._go_on(made, None)

    @rule(count=st.integers(1, 6))
    def send(self, count: int) -> None:
        self.backlog += range(self.sent, self.sent + count)
        self.sent += count
        self._hand_out()

    @rule(count=st.integers(1, 4))
    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            frame = self.wire.popleft()
            decoder = Decoder(limits.FRAME_BYTES_MAX)
            decoder.room()[: len(frame)] = frame
            ((envelope, data),) = decoder.received(len(frame))
            self.session.take(envelope, data, ())

    @rule(data=st.data())
    @precondition(lambda self: any(r.slot and r.slot.done for r in self.receivers))
    def go_on(self, data: Any) -> None:
        ready = [r for r in self.receivers if r.slot is not None and r.slot.done]
        self._go_on(data.draw(st.sampled_from(ready)), True)

    @rule(data=st.data())
    @precondition(lambda self: any(r.waits_for_message for r in self.receivers))
    def time_out(self, data: Any) -> None:
        one = data.draw(st.sampled_from([r for r in self.receivers if r.waits_for_message]))
        assert one.slot is not None
        if not one.slot.done:
            one.waits_for_message = False
            self._go_on(one, False)

    @rule(data=st.data())
    @precondition(lambda self: self.receivers)
    def interrupt(self, data: Any) -> None:
        one = data.draw(st.sampled_from(self.receivers))
        assert one.slot is not None
        one.slot.abandon()
        one.steps.close()
        self.receivers.remove(one)
        self._listen()

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        inbox = self.session.received.get(("jobs", True))
        waiting = [r for r in self.receivers if r.waits_for_message and r.slot and not r.slot.done]
        if inbox is not None and inbox.messages:
            assert not waiting

    def teardown(self) -> None:
        """In the end there is a message for each who waits, and each gets one."""
        self._settle()
        if self.receivers:
            self.send(len(self.receivers))
            self._settle()
        inbox = self.session.received.get(("jobs", True))
        kept = [int(bytes(m.body)) for m in inbox.messages] if inbox else []
        assert not self.receivers
        assert not self.requests
        assert sorted([*self.taken, *kept, *self.backlog]) == list(range(self.sent))
        assert inbox is None or not inbox.coming

    def _settle(self) -> None:
        while self.wire or any(r.slot is not None and r.slot.done for r in self.receivers):
            self.arrive(1)
            for one in list(self.receivers):
                if one.slot is not None and one.slot.done:
                    self._go_on(one, True)

    def _go_on(self, one: Receiver, came: bool | None) -> None:
        if one.go_on(came):
            self.receivers.remove(one)
            if one.found is not None:
                self.taken.append(int(bytes(one.found.body)))
        self._listen()

    def _listen(self) -> None:
        """What the session has said."""
        decoder = Decoder(limits.FRAME_BYTES_MAX)
        for item in self.session.output.take(time.monotonic(), limits.MIB):
            decoder.room()[: len(item.frame)] = item.frame
            ((envelope, frame),) = decoder.received(len(item.frame))
            if envelope.verb == "want":
                want = msgspec.msgpack.decode(body_in(frame), type=Want)
                self.requests[envelope.id] = want.count
            else:
                assert envelope.verb == "withdraw"
                back = int(self.requests.pop(envelope.to, None) is not None)
                self._say(verb="answer", to=envelope.id, body=msgspec.msgpack.encode(back))
        self._hand_out()

    def _hand_out(self) -> None:
        while self.requests and self.backlog:
            number = next(iter(self.requests))
            count = min(self.requests.pop(number), len(self.backlog))
            for _ in range(count):
                body = str(self.backlog.popleft()).encode()
                together = count if self.sent % 3 else 0  # as when its queue is nearly full
                self._say(verb="send", durable=True, to=number, credit=together, body=body)

    def _say(self, **fields: Any) -> None:
        self.wire.append(encode(Envelope(topic="jobs", **fields)))


Receiving.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestReceiving = Receiving.TestCase
