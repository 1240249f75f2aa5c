"""The two ends of a direct socket alone: what both know of each other's calls, which way a call
goes, and what is asked back of the broker."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.bus.test_direct_machine import TOPIC, Call, Talking, Worker, frame_of, soon
from zenos.bus import marks, segment
from zenos.bus.calling import CallerEnd, Pending
from zenos.bus.envelope import Envelope, body_in, encode
from zenos.bus.marks import Marks, new_marks
from zenos.bus.order import Item, Policy
from zenos.bus.session import Session
from zenos.core import limits
from zenos.core.errors import DeadlineError, HandleError

__all__ = ["soon"]  # a fixture


@pytest.fixture
def ends() -> tuple[Marks, Marks]:
    """The caller's and the server's."""
    descriptor = new_marks()
    return Marks(os.dup(descriptor)), Marks(descriptor)


@pytest.mark.parametrize(
    "order", ["caller first", "server first", "caller within", "server within"]
)
def test_a_call_is_taken_back_or_begun_and_never_both(
    ends: tuple[Marks, Marks], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, server = ends
    found: dict[str, bool] = {}
    caller.want(3, 7)

    def take_back() -> None:
        found["taken back"] = caller.take_back(3, 7)

    def begin() -> None:
        found["begun"] = server.begin(3, 7)

    def at_once(other: Callable[[], None]) -> Callable[[Marks], None]:
        def settle(_: Marks) -> None:
            monkeypatch.setattr(Marks, "_settle", lambda _: None)
            other()

        return settle

    match order:
        case "caller first":
            take_back()
            begin()
            assert found == {"taken back": True, "begun": False}
        case "server first":
            begin()
            take_back()
            assert found == {"taken back": False, "begun": True}
        case "caller within":
            monkeypatch.setattr(Marks, "_settle", at_once(take_back))
            begin()
        case "server within":
            monkeypatch.setattr(Marks, "_settle", at_once(begin))
            take_back()
    assert found.keys() == {"taken back", "begun"}
    assert not (found["taken back"] and found["begun"])


def test_what_is_no_page_of_marks_is_refused() -> None:
    with pytest.raises(HandleError):
        Marks(segment.create(segment.PAGE_BYTES * 2))
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(HandleError):
        Marks(reading)
    unsealed = os.memfd_create("marks")
    os.ftruncate(unsealed, marks.BYTES)
    with pytest.raises(HandleError, match="not sealed"):
        Marks(unsealed)


def test_a_place_that_is_used_again_is_not_mistaken() -> None:
    """A call that was taken back, and still waits there, says nothing of the next at its place."""
    machine = Talking()
    caller, server = machine.callers[0], machine._program()
    machine.servers.append(server)
    for _ in range(2):
        machine._work(server)

    def call(body: str, priority: int) -> Call:
        made = Call(caller, body, priority)
        machine.calls.append(made)
        return made

    def busy() -> list[Worker]:
        return [worker for worker in machine.workers if worker.received is not None]

    call("meet", 50)
    machine._pump()
    machine._answer(busy()[0])
    machine._pump()
    call("one", 50)
    call("two", 50)
    machine._pump()
    assert len(busy()) == 2
    end = caller.session.direct.callers[TOPIC]
    old = call("old", 50)
    (place,) = {end.pending[number].place for number in list(end.pending)[-1:]}
    machine.calls.remove(old)
    end.is_stuck = True  # so that no word of it goes
    with pytest.raises(DeadlineError):
        old.steps.send(False)
    end.is_stuck = False
    call("new", 80)
    number, pending = list(end.pending.items())[-1]
    assert pending.place == place
    for _ in range(2):
        machine._answer(busy()[0])
        machine._pump()
    assert machine.begun["new"] == 1
    assert machine.begun["old"] == 0
    assert not end.marks.take_back(place, number)  # it has begun, as its caller must know
    machine.teardown()


def talking() -> tuple[Talking, CallerEnd]:
    """A caller that has a direct socket to a server with one thread, which is busy."""
    machine = Talking()
    server = machine._program()
    machine.servers.append(server)
    machine._work(server)
    machine.calls.append(Call(machine.callers[0], "met", 50))
    machine._pump()
    machine._answer(machine.workers[0])
    machine._pump()
    machine.calls.append(Call(machine.callers[0], "busy", 50))
    machine._pump()
    return machine, machine.callers[0].session.direct.callers[TOPIC]


def test_a_call_never_overtakes_one_that_went_through_the_broker() -> None:
    machine, end = talking()
    caller = machine.callers[0]
    end.is_stuck = True
    first = Call(caller, "first", 50)
    end.is_stuck = False
    second = Call(caller, "second", 50)
    assert "first" not in (bodies := [call_body(call) for call in end.pending.values()])
    assert "second" not in bodies
    machine.calls += [first, second]
    machine.teardown()
    assert machine.begun["first"] == machine.begun["second"] == 1


def test_no_more_goes_directly_than_its_server_has_to_keep() -> None:
    machine, end = talking()
    caller, server = machine.callers[0], machine.servers[0]
    size = limits.DIRECT_CALL_BYTES_MAX // 2
    for number in range(2 * limits.DIRECT_BYTES_MAX // size):
        machine.calls.append(Call(caller, f"{number} ".ljust(size, "x"), 50))
        server.look()
        assert sum(len(call.item.frame) for call in end.pending.values()) <= limits.DIRECT_BYTES_MAX
    assert 0 < len(end.pending) < len(machine.calls)
    assert not end.is_over
    machine.teardown()


def call_body(call: Pending) -> str:
    return bytes(body_in(call.item.frame)).decode()


def test_who_leaves_while_the_broker_takes_back_waits_for_nothing() -> None:
    """Two threads, one after the other; what they asked for is counted once."""
    session = Session(0, lambda: None)
    session.connect("one", Policy())
    inbox = session.inbox(TOPIC, 1, durable=False)

    def asked() -> dict[str, int]:
        frames = [frame_of(item)[0] for item in session.output.take(0.0, limits.MIB)]
        return {envelope.verb: envelope.id for envelope in frames}

    def say(**fields: Any) -> None:
        item = Item("command", 50, "", TOPIC, encode(Envelope(topic=TOPIC, **fields)))
        session.take(*frame_of(item), ())

    def leave(steps: Any) -> int:
        steps.send(False)
        return asked()["withdraw"]

    def answer(steps: Any, request: int, back: int) -> None:
        say(verb="answer", to=request, body=msgspec.msgpack.encode(back))
        with pytest.raises(DeadlineError):
            steps.send(True)

    one, two = (session.next_of(inbox, None, subscribed=False) for _ in range(2))
    next(one)
    assert "want" in asked()
    first = leave(one)
    say(verb="waits", credit=1)  # the broker has taken it back of its own accord
    next(two)
    assert "want" in asked()
    second = leave(two)
    answer(one, first, 0)
    answer(two, second, 1)
    assert (inbox.credit, inbox.owed) == (0, 0)
