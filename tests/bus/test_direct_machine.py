"""Calls over direct sockets and through the broker, in any order of what happens: the sessions of
callers and servers, the broker's own part, and real sockets between them, without threads."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zenos.bus.bodies import Encoded
from zenos.bus.envelope import LENGTHS, Envelope, body_in, close_all, header_of
from zenos.bus.exchange import Exchange
from zenos.bus.inbox import Received, Slot
from zenos.bus.operations import Sending, call, reply_or_fail
from zenos.bus.order import Item, Policy
from zenos.bus.peer import Peer
from zenos.bus.session import Session
from zenos.core import limits
from zenos.core.errors import DeadlineError, UnavailableError
from zenos.core.messages import TopicSettings

TOPIC = "work"
SERVERS_MAX = 2
WORKERS_MAX = 2
MANY = limits.GIB


class Watch:
    """Nobody waits here: the machine reads when it wants to."""

    def opened(self, end: Any) -> None: ...

    def closing(self, end: Any) -> None: ...

    def stuck(self, end: Any) -> None: ...


class Program:
    """A session, its peer at the broker, and what is on its way between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = Session(0, lambda: None)
        self.session.direct.watching = Watch()
        self.ours, theirs = socket.socketpair()
        self.peer = Peer(theirs, Policy(), lambda _: None)
        self.peer.name, self.peer.direct = name, True
        self.session.connect(name, Policy())
        self.said: deque[Item] = deque()
        self.coming: deque[Item] = deque()

    def collect(self) -> None:
        now = time.monotonic()
        self.said += self.session.output.take(now, MANY)
        self.coming += self.peer.waiting.take(now, MANY)

    def hear(self) -> None:
        """One frame of the broker."""
        item = self.coming.popleft()
        self.session.take(*frame_of(item), item.descriptors)

    def look(self) -> None:
        """All that has come over direct sockets."""
        self.session.direct.read(list(self.session.direct._ends))

    def close(self) -> None:
        self.ours.close()
        self.peer.socket.close()
        for item in [*self.said, *self.coming, *self.peer.waiting.clear()]:
            close_all(item.descriptors)
        self.said.clear()
        self.coming.clear()


class Call:
    """One that waits for its reply."""

    def __init__(self, program: Program, body: str, priority: int) -> None:
        self.body = body
        how = Sending(priority=priority, timeout_s=1e6)
        self.steps = call(program.session, TOPIC, Encoded(body.encode()), how)
        self.slot, _ = next(self.steps)


class Worker:
    """A thread of a server: it waits for a call (slot), or does one (received)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps = program.session.next_of(
            program.session.inbox(TOPIC, 1, durable=False), None, subscribed=False
        )
        self.slot: Slot | None = None
        self.received: Received | None = None
        self.leaves = False
        self.go_on(None)

    @property
    def has(self) -> str:
        """The body of what it does, or is given right now."""
        given = self.received
        if given is None and self.slot is not None and isinstance(self.slot.value, Received):
            given = self.slot.value
        if given is None or given.envelope.verb != "call":
            return ""
        return bytes(given.body).decode()

    def go_on(self, came: bool | None) -> bool:
        """Whether it has got something to do, or left."""
        try:
            self.slot, _ = next(self.steps) if came is None else self.steps.send(came)
        except StopIteration as end:
            self.slot, self.received = None, end.value
            return True
        except DeadlineError:
            self.slot = None
            return True
        return False


def frame_of(item: Item) -> tuple[Envelope, bytes]:
    frame = bytes(item.frame)
    header_bytes, _ = LENGTHS.unpack_from(frame)
    return header_of(frame[LENGTHS.size : LENGTHS.size + header_bytes]), frame


class Talking(RuleBasedStateMachine):
    """begun: how often each call was. lost: those that a killed server had."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.names = 0
        self.exchange = self._make(lambda: Exchange(lambda *_: True, lambda _: TopicSettings()))
        self.callers = [self._program() for _ in range(2)]
        self.servers: list[Program] = []
        self.workers: list[Worker] = []
        self.calls: list[Call] = []
        self.number = 0
        self.begun: Counter[str] = Counter()
        self.lost: set[str] = set()
        self.met = False

    def _make(self, make: Any) -> Any:
        async def inside() -> Any:
            return make()

        return self.loop.run_until_complete(inside())

    def _program(self) -> Program:
        self.names += 1
        made: Program = self._make(lambda: Program(f"user.{self.names}"))
        return made

    @rule(caller=st.integers(0, 1), priority=st.sampled_from([20, 50, 50, 80]))
    def call(self, caller: int, priority: int) -> None:
        self.number += 1
        self.calls.append(Call(self.callers[caller], f"c{self.number}", priority))

    @rule(data=st.data())
    def serve(self, data: Any) -> None:
        """One more thread, in a new program or an old one."""
        choices: list[Program | None] = [
            p for p in self.servers if sum(w.program is p for w in self.workers) < WORKERS_MAX
        ]
        if len(self.servers) < SERVERS_MAX:
            choices.append(None)
        if not choices:
            return
        program = data.draw(st.sampled_from(choices))
        if program is None:
            program = self._program()
            self.servers.append(program)
        self._work(program)

    @rule(data=st.data(), count=st.integers(1, 5))
    def happen(self, data: Any, count: int) -> None:
        """Frames arrive, here or there."""
        for _ in range(count):
            self._collect()
            steps = self._what_may_happen()
            if not steps:
                return
            data.draw(st.sampled_from(steps))()

    @rule(rounds=st.integers(1, 4))
    def answer_all(self, rounds: int) -> None:
        """Everybody is quick: so they talk much."""
        for _ in range(rounds):
            self._pump()
            for worker in list(self.workers):
                self._answer(worker)
        self._pump()

    @rule(data=st.data())
    @precondition(lambda self: any(w.received for w in self.workers))
    def answer(self, data: Any) -> None:
        self._answer(data.draw(st.sampled_from([w for w in self.workers if w.received])))

    @rule(data=st.data())
    @precondition(lambda self: any(not c.slot.done for c in self.calls))
    def time_out(self, data: Any) -> None:
        one = data.draw(st.sampled_from([c for c in self.calls if not c.slot.done]))
        self.calls.remove(one)
        with pytest.raises(DeadlineError):
            one.steps.send(False)

    @rule(data=st.data())
    @precondition(lambda self: any(w.slot and not w.slot.done for w in self.workers))
    def leave(self, data: Any) -> None:
        """A thread waits no more."""
        idle = [w for w in self.workers if w.slot and not w.slot.done and not w.leaves]
        if idle:
            one = data.draw(st.sampled_from(idle))
            one.leaves = True
            self._go_on(one, came=False)

    @rule(data=st.data())
    @precondition(lambda self: self.servers)
    def kill(self, data: Any) -> None:
        """A server: what it has begun is lost, and what it was handed; nothing else."""
        server = data.draw(st.sampled_from(self.servers))
        self._collect()
        while server.said:  # it was written
            self._tell(server)
        self._collect()
        self.lost |= {w.has for w in self.workers if w.program is server}
        handed = [frame_of(item) for item in server.coming]
        self.lost |= {bytes(body_in(f)).decode() for e, f in handed if e.verb == "call"}
        inbox = server.session.received[TOPIC, False]
        self.lost |= {bytes(received.body).decode() for received in inbox.messages}
        for end in list(server.session.direct._ends.values()):
            end.socket.close()
        server.peer.is_closed = True
        self.exchange.gone(server.peer)
        server.close()
        self.servers.remove(server)
        self.workers = [w for w in self.workers if w.program is not server]

    @invariant()
    def nothing_is_begun_twice(self) -> None:
        assert all(count == 1 for count in self.begun.values())

    def teardown(self) -> None:
        """In the end each call is answered, if somebody serves; and nothing is left open."""
        try:
            self._finish()
        finally:
            for program in [*self.callers, *self.servers]:
                program.session.close(UnavailableError("cannot go on: it is over"))
                program.close()
            self.exchange.close()
            self.loop.close()

    def _finish(self) -> None:
        self._pump()
        if all(w.leaves for w in self.workers):
            self.servers.append(self._program())
            self._work(self.servers[-1])
        for _ in range(self.number + len(self.calls) + 2):  # those that are late take their time
            self._pump()
            for worker in list(self.workers):
                self._answer(worker)
        self._pump()
        assert not self.calls

    # -- what goes on

    def _collect(self) -> None:
        for program in [*self.callers, *self.servers]:
            program.session.direct.hand_out()
            program.collect()
            self.met = self.met or bool(program.peer.meetings)

    def _what_may_happen(self) -> list[Any]:
        steps: list[Any] = []
        for program in [*self.callers, *self.servers]:
            if program.said:
                steps.append(lambda p=program: self._tell(p))
            if program.coming:
                steps.append(program.hear)
            if program.session.direct._ends:
                steps.append(program.look)
        steps += [
            (lambda w=worker: self._go_on(w, came=True))
            for worker in self.workers
            if worker.slot is not None and worker.slot.done
        ]
        steps += [(lambda c=one: self._end(c)) for one in self.calls if one.slot.done]
        return steps

    def _pump(self) -> None:
        """Until nothing more comes of itself. Then nobody who is free is passed by."""
        while True:
            self._collect()
            steps = self._what_may_happen()
            before = self._state()
            for step in steps:
                step()
            self._collect()
            if before == self._state() and not any(
                p.said or p.coming for p in [*self.callers, *self.servers]
            ):
                break
        free = [w for w in self.workers if w.slot is not None and not w.leaves]
        if free:
            waiting = sum(
                end.waiting
                for server in self.servers
                for desk in server.session.direct.desks.values()
                for end in desk.ends.values()
            )
            assert waiting + self.exchange.waiting(TOPIC) == 0

    def _state(self) -> Any:
        return (
            len(self.calls),
            sum(self.begun.values()),
            [(len(p.said), len(p.coming)) for p in [*self.callers, *self.servers]],
            [(w.slot is not None, w.slot is not None and w.slot.done) for w in self.workers],
            [sorted(p.session.direct._ends) for p in [*self.callers, *self.servers]],
        )

    def _tell(self, program: Program) -> None:
        item = program.said.popleft()
        envelope, frame = frame_of(item)
        self.exchange.take(program.peer, envelope, frame, item.descriptors)

    def _go_on(self, worker: Worker, *, came: bool) -> None:
        if not worker.go_on(came):
            return
        if worker.received is None:
            self.workers.remove(worker)
        else:
            self.begun[worker.has] += 1

    def _answer(self, worker: Worker) -> None:
        if worker.received is None:
            return
        body = bytes(worker.received.body)
        reply_or_fail(worker.program.session, worker.received, Encoded(body), None)
        self.workers.remove(worker)
        self._work(worker.program)  # that it was about to leave has come to nothing

    def _work(self, program: Program) -> None:
        worker = Worker(program)
        self.workers.append(worker)
        if worker.received is not None:
            self.begun[worker.has] += 1

    def _end(self, one: Call) -> None:
        self.calls.remove(one)
        reply = one.body
        try:
            one.steps.send(True)
        except StopIteration as end:
            reply = bytes(end.value.body).decode()
        except UnavailableError:
            assert one.body in self.lost
        assert reply == one.body
        assert one.body in self.lost or self.begun[one.body] == 1


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    with (
        mock.patch.object(limits, "DIRECT_CALLS", 1),
        mock.patch.object(limits, "DIRECT_WITHIN_S", 3600.0),
        mock.patch.object(limits, "DIRECT_AGAIN_S", 0.0),
        mock.patch.object(limits, "DIRECT_ASKED_MAX", MANY),
    ):
        yield


Talking.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestTalking = Talking.TestCase
