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

from zenos.bus import many
from zenos.bus.envelope import Decoder, Envelope, body_in, encode
from zenos.bus.inbox import Received, Slot
from zenos.bus.operations import receive_durable
from zenos.bus.order import Policy
from zenos.bus.session import Session, Steps
from zenos.bus.several import body_of_envelopes
from zenos.bus.terms import Nacked, Want
from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError

RECEIVERS_MAX = 4


class Receiver:
    """One that receives, until it has a message, or several."""

    def __init__(
        self, steps: Steps[list[Received]], lease_s: float | None, most: int, *, timeout: bool
    ) -> None:
        self.steps = steps
        self.lease_s = lease_s
        self.most = most  # that may be asked for on its behalf
        self.may_time_out = timeout
        self.slot: Slot | None = None
        self.deadline: float | None = None
        self.found: list[Received] = []

    @property
    def waits(self) -> bool:
        """For a message, not for word that its request is withdrawn."""
        return self.slot is not None and not self.slot.done and not self.is_late

    @property
    def is_late(self) -> bool:
        """Whether it gives up."""
        return self.deadline is not None and self.deadline < 1e5 + time.monotonic()

    def go_on(self, came: bool | None) -> bool:
        """Whether it has ended."""
        try:
            step = next(self.steps) if came is None else self.steps.send(came)
        except StopIteration as end:
            self.found = end.value
            return True
        except (BusyError, DeadlineError):
            return True
        self.slot, self.deadline = step
        return False


def one_of(steps: Steps[Received]) -> Steps[list[Received]]:
    return [(yield from steps)]


class Receiving(RuleBasedStateMachine):
    """The broker: `backlog`, `requests` that wait, and two wires on which frames are on their way:
    commands, which may overtake, and data.

    several: it gives what it gives together in few frames, to who asks once for all that wait, of
    whom `more` may begin in one turn.
    """

    several = False

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(0, lambda: None, gathers=self.several)
        self.session.connect("one", Policy(), several=self.several)
        self.receivers: list[Receiver] = []
        self.backlog: list[int] = []
        self.requests: dict[int, Want] = {}
        self.leases: dict[int, float | None] = {}  # of what was given, by message
        self.commands: deque[bytes] = deque()
        self.data: deque[bytes] = deque()
        self.sent = 0
        self.taken: list[int] = []
        self.keeps = False  # messages may be left to who receives next

    @rule(
        prefetch=st.sampled_from([1, 1, 3]),
        timeout=st.booleans(),
        lease=st.integers(0, 2),
        more=st.booleans(),
    )
    @precondition(lambda self: len(self.receivers) < RECEIVERS_MAX)
    def receive(self, prefetch: int, timeout: bool, lease: int, more: bool) -> None:
        lease_s, timeout_s = [None, None, 5.0][lease], 1e6 if timeout else None
        steps = one_of(receive_durable(self.session, "jobs", prefetch, timeout_s, lease_s))
        self._begin(Receiver(steps, lease_s, prefetch, timeout=timeout), more)
        self.keeps |= prefetch > 1

    @rule(count=st.integers(1, 6), timeout=st.booleans(), lease=st.integers(0, 2))
    @precondition(lambda self: len(self.receivers) < RECEIVERS_MAX)
    def receive_many(self, count: int, timeout: bool, lease: int) -> None:
        lease_s, timeout_s = [None, None, 5.0][lease], 1e6 if timeout else None
        steps = many.receive(self.session, "jobs", count, 1, timeout_s, lease_s)
        self._begin(Receiver(steps, lease_s, count, timeout=timeout), more=False)

    @rule(count=st.integers(1, 6))
    def send(self, count: int) -> None:
        self.backlog += range(self.sent, self.sent + count)
        self.sent += count
        self._hand_out()

    @rule(count=st.integers(1, 4), commands=st.booleans())
    def arrive(self, count: int, commands: bool) -> None:
        for _ in range(count):
            wire = (self.commands if commands else self.data) or self.commands or self.data
            if wire:
                self._take(wire.popleft())

    @rule(data=st.data())
    @precondition(lambda self: any(r.slot and r.slot.done for r in self.receivers))
    def go_on(self, data: Any) -> None:
        ready = [r for r in self.receivers if r.slot is not None and r.slot.done]
        self._go_on(data.draw(st.sampled_from(ready)), True)

    @rule(data=st.data())
    @precondition(lambda self: any(r.may_time_out and r.waits for r in self.receivers))
    def time_out(self, data: Any) -> None:
        late = [r for r in self.receivers if r.may_time_out and r.waits]
        self._go_on(data.draw(st.sampled_from(late)), False)

    @rule()
    def time_out_together(self) -> None:
        for one in list(self.receivers):
            if one.may_time_out and one.waits:
                self._go_on(one, False)

    @rule(data=st.data())
    @precondition(lambda self: self.receivers)
    def interrupt(self, data: Any) -> None:
        one = data.draw(st.sampled_from(self.receivers))
        assert one.slot is not None
        one.slot.abandon()
        one.steps.close()
        self.receivers.remove(one)
        self.keeps = True
        self._listen()

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def refuse(self, data: Any) -> None:
        number = data.draw(st.sampled_from([*self.requests]))
        del self.requests[number]
        headers = {"code": BusyError.code, "error": "cannot: no"}
        self._say(verb="answer", kind="command", to=number, headers=headers)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        inbox = self.session.received.get(("jobs", True))
        if inbox is not None:
            waiting = {slot.wish.lease_s for slot in inbox.waiters if not slot.done}
            assert not waiting & {received.lease_s for received in inbox.messages}

    @invariant()
    def no_more_is_asked_for_than_is_wanted(self) -> None:
        for lease_s in (None, 5.0):
            who = [r for r in self.receivers if r.lease_s == lease_s and not r.is_late]
            most = max(len(who), *(r.most for r in who)) if who else 0
            asked = sum(want.count for want in self.requests.values() if want.lease_s == lease_s)
            assert asked <= most

    def teardown(self) -> None:
        """Who is late ends, whatever comes; in the end there is a message for each who waits on,
        each gets one, and nothing is left where nobody looks for it."""
        self._listen()  # the turn ends in which the last of several began
        self._settle()
        self.time_out_together()
        self._settle()
        assert not [r for r in self.receivers if r.may_time_out], "these are late"
        if self.receivers:
            self.send(sum(r.most for r in self.receivers))
            self._settle()
        inbox = self.session.received.get(("jobs", True))
        kept = [number_of(received) for received in inbox.messages] if inbox else []
        assert not self.receivers
        assert not self.requests
        assert sorted([*self.taken, *kept, *self.backlog]) == list(range(self.sent))
        assert self.keeps or not kept, "nobody knows of these"
        assert inbox is None or not (inbox.coming or inbox.asked or inbox.leaving)
        assert inbox is None or not inbox.listeners
        self.session.hand_back()
        self._listen()
        assert sorted([*self.taken, *self.backlog]) == list(range(self.sent))

    def _begin(self, made: Receiver, more: bool) -> None:
        self.receivers.append(made)
        self._go_on(made, None, listen=not (more and self.several))

    def _settle(self) -> None:
        wires = (self.commands, self.data)
        while any(wires) or any(r.slot is not None and r.slot.done for r in self.receivers):
            for wire in wires:
                if wire:
                    self._take(wire.popleft())
            for one in list(self.receivers):
                if one.slot is not None and one.slot.done:
                    self._go_on(one, True)

    def _go_on(self, one: Receiver, came: bool | None, *, listen: bool = True) -> None:
        if one.go_on(came):
            self.receivers.remove(one)
            for received in one.found:
                number = number_of(received)
                assert self.leases.pop(number) == one.lease_s
                self.taken.append(number)
        if listen:
            self._listen()

    def _take(self, frame: bytes) -> None:
        decoder = Decoder(limits.FRAME_BYTES_MAX)
        decoder.room()[: len(frame)] = frame
        ((envelope, data),) = decoder.received(len(frame))
        self.session.take(envelope, data, ())
        self._listen()

    def _listen(self) -> None:
        """What the session has said."""
        self.session.gather()
        decoder = Decoder(limits.FRAME_BYTES_MAX)
        for item in self.session.output.take(time.monotonic(), limits.MIB):
            decoder.room()[: len(item.frame)] = item.frame
            ((envelope, frame),) = decoder.received(len(item.frame))
            match envelope.verb:
                case "want":
                    self.requests[envelope.id] = msgspec.msgpack.decode(body_in(frame), type=Want)
                case "nack":
                    assert not msgspec.msgpack.decode(body_in(frame), type=Nacked).failed
                    number = int(envelope.key)
                    del self.leases[number]  # else it was taken, or given back before
                    self.backlog = sorted([*self.backlog, number])
                    self._say(verb="answer", kind="command", to=envelope.id)
                case verb:
                    assert verb == "withdraw"
                    back = int(self.requests.pop(envelope.to, None) is not None)
                    body = msgspec.msgpack.encode(back)
                    self._say(verb="answer", kind="command", to=envelope.id, body=body)
        self._hand_out()

    def _hand_out(self) -> None:
        while self.requests and self.backlog:
            number = next(iter(self.requests))
            want = self.requests.pop(number)
            given, self.backlog = self.backlog[: want.count], self.backlog[want.count :]
            self.leases.update(dict.fromkeys(given, want.lease_s))
            together = len(given) if self.sent % 3 else 0  # as when its queue is nearly full
            self.keeps |= not together and len(given) > 1  # nobody knows that more come
            of = {"durable": True, "to": number, "credit": together}
            parts = [
                Envelope(verb="send", topic="jobs", durable=True, key=str(one), body=b"%d" % one)
                for one in given
            ]
            if not self.several:
                for part in parts:
                    self._say(verb="send", key=part.key, body=part.body, **of)
                continue
            for some in (parts[:2], parts[2:]):
                if some:
                    self._say(verb="several", body=body_of_envelopes(some), **of)

    def _say(self, **fields: Any) -> None:
        wire = self.commands if fields.get("kind") == "command" else self.data
        wire.append(encode(Envelope(topic="jobs", **fields)))


def number_of(received: Received) -> int:
    return int(bytes(received.body))


Receiving.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestReceiving = Receiving.TestCase


class ReceivingSeveral(Receiving):
    """The same between those that take frames of several."""

    several = True


ReceivingSeveral.TestCase.settings = Receiving.TestCase.settings
TestReceivingSeveral = ReceivingSeveral.TestCase
