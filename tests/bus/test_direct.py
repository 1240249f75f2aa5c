"""Direct sockets: who gets one, and that nobody sees a difference but in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.bus import harness
from tests.bus.direct_peers import (
    LONG_S,
    Counter,
    chat,
    garbage,
    is_direct,
    meetings,
    talk,
)
from tests.bus.harness import Station, in_thread, station
from tests.bus.test_stuck import stopped
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.envelope import Hello
from zenos.bus.stream import Heartbeat
from zenos.bus.sync import Bus
from zenos.core import limits
from zenos.core.errors import (
    DeadlineError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WorkerError,
)
from zenos.core.messages import TopicSettings

SETTINGS = {
    "refusing": TopicSettings(when_full="refuse"),
    "newest": TopicSettings(when_full="drop_oldest"),
    "narrow": TopicSettings(messages=2),
    "slim": TopicSettings(bytes=limits.MIB),
}
CALM = Heartbeat(every_s=3600.0, silent_s=7200.0)
HELLO = Hello(task="", generation=0, token="x", program=True)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", CALM, **SETTINGS) as made:
        yield made


@pytest.fixture
def server(bus: Station) -> Iterator[Counter]:
    made = Counter(bus.connect())
    yield made
    made.close()


# -- who gets one


def test_peers_that_talk_much_need_the_broker_no_more(bus: Station, server: Counter) -> None:
    caller = bus.connect()
    talk(caller)
    with stopped(bus):
        assert [caller.topic("work").call(n, timeout_s=LONG_S) for n in range(100)] == [*range(100)]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who talks much does so on a slow machine, too."""
    monkeypatch.setattr(limits, "DIRECT_WITHIN_S", 3600.0)
    monkeypatch.setattr(limits, "DIRECT_ASKED_MAX", limits.GIB)


def test_who_talks_seldom_goes_through_the_broker(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few times, or over a long time."""
    for _ in range(5):
        one = bus.connect()
        for number in range(limits.DIRECT_CALLS - 1):
            one.topic("work").call(number, timeout_s=LONG_S)
        assert not is_direct(one)
    monkeypatch.setattr(limits, "DIRECT_WITHIN_S", 0.0)
    chat(bus.connect())
    assert meetings(bus) == 0


@pytest.mark.parametrize("topic", ["refusing", "newest", "narrow", "slim"])
def test_what_a_direct_socket_cannot_keep_goes_through_the_broker(bus: Station, topic: str) -> None:
    one, two = bus.connect(), bus.connect()
    serving = in_thread(one.topic(topic).serve, lambda body: body)
    chat(two, topic)
    assert not is_direct(two, topic)
    one.close()
    serving.result(LONG_S)


def test_messages_asked_for_in_advance_come_through_the_broker(bus: Station) -> None:
    one, two = bus.connect(), bus.connect()
    serving = in_thread(one.topic("work", prefetch=10).serve, lambda body: body)
    chat(two)
    until(lambda: meetings(bus) == 0)
    chat(two)
    assert not is_direct(two)
    one.close()
    serving.result(LONG_S)


def test_who_has_not_said_that_it_can_goes_through_the_broker(
    bus: Station, server: Counter
) -> None:
    """So do programs of an older version."""
    with Bus(bus.path, HELLO, timeout_s=LONG_S, direct=False) as older:
        chat(older)
    assert meetings(bus) == 0
    one = bus.connect()
    with Bus(bus.path, HELLO, timeout_s=LONG_S, direct=False) as older:
        serving = in_thread(older.topic("other").serve, lambda body: body)
        chat(one, "other")
        assert meetings(bus) == 0
    serving.result(LONG_S)


async def test_a_loop_goes_through_the_broker(bus: Station) -> None:
    """It has no thread that waits, so there would be nothing to gain."""
    async with AsyncBus(bus.path, HELLO) as loop:

        async def echo(body: Any) -> Any:
            return body

        one = bus.connect()
        serving = in_thread(one.topic("work").serve, lambda body: body)
        for number in range(3 * limits.DIRECT_CALLS):
            assert await loop.topic("work").call(number, timeout_s=LONG_S) == number
        assert not any(peer.meetings for peer in list(bus.broker._peers))
        one.close()
        await loop.in_thread(serving.result, LONG_S, drop=print)


def test_who_calls_itself_does_so_through_the_broker(bus: Station) -> None:
    one = bus.connect()
    serving = in_thread(one.topic("work").serve, lambda body: body)
    chat(one)
    assert not is_direct(one)
    one.close()
    serving.result(LONG_S)


def test_a_task_calls_directly_what_it_was_granted_and_while_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = Heartbeat(every_s=0.05, silent_s=3600.0)
    with station(tmp_path / "run" / "bus", often) as bus:
        one, program = bus.connect(), bus.connect("t1")
        serving = in_thread(one.topic("shared").serve, lambda body: body)
        talk(program, "shared")
        monkeypatch.setattr(harness, "GRANTS", set())
        until(lambda: meetings(bus) == 0)
        chat(program, "shared")  # as long as the broker lets it
        assert not is_direct(program, "shared")
        one.close()
        serving.result(LONG_S)


# -- what is said over it


def test_all_that_a_call_says_arrives_directly_too(bus: Station) -> None:
    one, caller = bus.connect(), bus.connect()
    heard: list[Any] = []

    def serve() -> None:
        topic = one.topic("work")
        while True:
            message = topic.receive(timeout_s=LONG_S)
            body = message.body
            heard.append((message.topic, message.sender, message.priority, message.is_call))
            heard.append(message.headers.get("k"))
            if isinstance(body, str) and body == "end":
                message.reply(None)
                return
            with message:
                message.reply(body)

    serving = in_thread(serve)
    topic = caller.topic("work")
    talk(caller)
    heard.clear()
    with stopped(bus):
        assert topic.call({"a": [1, "ä"]}, priority=7, headers={"k": "v"}, timeout_s=LONG_S) == {
            "a": [1, "ä"]
        }
        assert heard == [("work", caller.name, 7, True), "v"]
        small = topic.call(numpy.arange(1000), timeout_s=LONG_S)
        assert (small == numpy.arange(1000)).all()
        assert topic.call(b"", timeout_s=LONG_S) == b""
    large = numpy.arange(1_000_000)  # in shared memory, both ways
    topic.call(large, timeout_s=LONG_S)  # which asks the broker for the topic's terms, once
    talk(caller)
    with stopped(bus):
        for _ in range(20):
            assert (topic.call(large, timeout_s=LONG_S) == large).all()
    assert topic.call("x" * limits.MIB, timeout_s=LONG_S) == "x" * limits.MIB
    topic.call("end", timeout_s=LONG_S)
    serving.result(LONG_S)


def test_errors_are_raised_as_ever(bus: Station) -> None:
    def work(body: object) -> object:
        match body:
            case "missing":
                raise NotFoundError("cannot find it")
            case "wrong":
                raise ValueError(body)
            case "unsendable":
                return object()
        return body

    one, caller = bus.connect(), bus.connect()
    serving = in_thread(one.topic("work").serve, work)
    topic = caller.topic("work")
    talk(caller)
    with stopped(bus):
        with pytest.raises(NotFoundError, match="cannot find it"):
            topic.call("missing", timeout_s=LONG_S)
        with pytest.raises(WorkerError, match="cannot answer: ValueError: wrong"):
            topic.call("wrong", timeout_s=LONG_S)
        with pytest.raises(InvalidError, match="of type object"):
            topic.call("unsendable", timeout_s=LONG_S)
    with pytest.raises(InvalidError, match="priority 101"):
        topic.call("", priority=101, timeout_s=LONG_S)
    assert topic.call("on", timeout_s=LONG_S) == "on"
    one.close()
    serving.result(LONG_S)


def test_many_threads_call_and_many_serve(bus: Station) -> None:
    server = Counter(bus.connect(), threads=3)
    callers = [bus.connect(), bus.connect()]
    for one in callers:
        talk(one)
    calls = [
        in_thread(lambda n=n, one=one: [one.topic("work").call([n, k]) for k in range(100)])
        for n, one in enumerate(callers * 3)
    ]
    for n, call in enumerate(calls):
        assert call.result(LONG_S) == [[n, k] for k in range(100)]
    done = [tuple(body) for body in server.begun if isinstance(body, list)]
    assert len(done) == len(set(done)) == 600
    server.close()


# -- in which order


def test_the_more_urgent_goes_first_whichever_way_it_came(bus: Station, server: Counter) -> None:
    """And of equals what came first; nobody who comes through the broker is passed over."""
    near, far = bus.connect(), bus.connect()
    talk(near)
    held, calls = server.hold(near.topic("work")), [held_call(near, "near 50", 50)]
    until(lambda: waiting_at(bus) == 0)
    for caller, priority in ((far, 50), (near, 60), (far, 90), (near, 95), (far, 97), (near, 40)):
        body = f"{'near' if caller is near else 'far'} {priority}"
        before = waiting_at(bus)
        calls.append(held_call(caller, body, priority))
        if caller is far:
            until(lambda n=before: waiting_at(bus) == n + 1)
    begun = len(server.begun)
    server.open()
    for call in [held, *calls]:
        call.result(LONG_S)
    assert server.begun[begun:] == [
        "far 97",
        "near 95",
        "far 90",
        "near 60",
        "near 50",
        "far 50",
        "near 40",
    ]


def test_the_more_urgent_goes_first_however_much_waits_before_it(
    bus: Station, server: Counter
) -> None:
    caller = bus.connect()
    talk(caller)
    held = server.hold(caller.topic("work"))
    large = "x" * 25_000
    calls = [held_call(caller, f"{n} {large}", 50) for n in range(4)]
    calls.append(held_call(caller, "urgent", 90))
    assert len(caller.session.direct.callers["work"].pending) == 6  # none through the broker
    begun = len(server.begun)
    server.open()
    for call in [held, *calls]:
        call.result(LONG_S)
    assert [body.split()[0] for body in server.begun[begun:]] == ["urgent", "0", "1", "2", "3"]


def held_call(caller: Bus, body: str, priority: int) -> Any:
    """A call that is on its way when this returns."""
    count = len(caller.session._pending)
    calling = in_thread(
        lambda: caller.topic("work").call(body, priority=priority, timeout_s=LONG_S)
    )
    until(lambda: len(caller.session._pending) > count or calling.done())
    return calling


def waiting_at(bus: Station) -> int:
    return bus.do(lambda: bus.broker.waiting("work"))


def test_a_busy_caller_starves_nobody(bus: Station) -> None:
    """However much it calls, what comes through the broker has its turn."""
    server, near = Counter(bus.connect()), bus.connect()
    talk(near)
    end = threading.Event()

    def go_on() -> None:
        while not end.is_set():
            near.topic("work").call("near", timeout_s=LONG_S)

    calling = [in_thread(go_on) for _ in range(4)]
    for number in range(20):
        assert bus.connect().topic("work").call(number, timeout_s=LONG_S) == number
    end.set()
    for call in calling:
        call.result(LONG_S)
    server.close()


def test_what_was_sent_before_a_call_comes_before_it(bus: Station) -> None:
    one, caller = bus.connect(), bus.connect()
    heard: list[Any] = []
    serving = in_thread(one.topic("work").serve, heard.append)
    for round_ in range(10):
        talk(caller)
        heard.clear()
        for number in range(5):
            caller.topic("work").send(["sent", round_, number], timeout_s=LONG_S)
        caller.topic("work").call(["called", round_], timeout_s=LONG_S)
        assert heard == [*(["sent", round_, n] for n in range(5)), ["called", round_]]
    one.close()
    serving.result(LONG_S)


def test_a_call_whose_time_is_over_is_never_begun(bus: Station, server: Counter) -> None:
    caller = bus.connect()
    talk(caller)
    held = server.hold(caller.topic("work"))
    with pytest.raises(DeadlineError, match="no reply"):
        caller.topic("work").call("late", timeout_s=0.05)
    server.open()
    held.result(LONG_S)
    assert caller.topic("work").call("next", timeout_s=LONG_S) == "next"
    assert is_direct(caller)
    assert "late" not in server.begun


# -- a second server


def test_no_server_that_is_idle_is_passed_by(bus: Station, server: Counter) -> None:
    """What waits for the first, and was not begun, is the second's at once."""
    caller = bus.connect()
    talk(caller)
    held = server.hold(caller.topic("work"))
    calls = [held_call(caller, f"waiting {n}", 50) for n in range(5)]
    begun = len(server.begun)
    second = Counter(bus.connect())
    assert [call.result(LONG_S) for call in calls] == [f"waiting {n}" for n in range(5)]
    assert second.begun == [f"waiting {n}" for n in range(5)]
    assert not is_direct(caller)
    chat(caller)  # to both in turn
    assert not is_direct(caller)
    assert len(server.begun) == begun
    server.open()
    assert held.result(LONG_S) == "held"  # over the socket that was given up
    until(lambda: meetings(bus) == 0)
    second.close()


def test_the_last_of_two_servers_is_talked_to_directly_again(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIRECT_AGAIN_S", 0.0)
    caller, second = bus.connect(), Counter(bus.connect())
    chat(caller)
    assert not is_direct(caller)
    second.close()
    talk(caller)


def test_a_flood_of_messages_ends_it(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would have to be asked for by itself."""
    monkeypatch.setattr(limits, "DIRECT_ASKED_MAX", 100)
    caller, sender = bus.connect(), bus.connect()
    talk(caller)
    for number in range(3 * limits.DIRECT_ASKED_MAX):
        sender.topic("work").send(number, timeout_s=LONG_S)
    until(lambda: server.begun[-1] == 3 * limits.DIRECT_ASKED_MAX - 1)
    until(lambda: meetings(bus) == 0)
    assert [b for b in server.begun if isinstance(b, int)] == [*range(3 * limits.DIRECT_ASKED_MAX)]


# -- what ends it


@pytest.mark.parametrize("whose", ["caller's", "server's"])
def test_what_is_malformed_ends_that_socket_alone(
    bus: Station, server: Counter, whose: str
) -> None:
    caller, other = bus.connect(), bus.connect()
    for one in (caller, other):
        talk(one)
    names = [caller.name, server.bus.name]
    if whose == "caller's":
        garbage(caller.session.direct.callers["work"])
    else:
        ends = server.bus.session.direct.desks["work"].ends.values()
        garbage(next(end for end in ends if end.peer == caller.name))
    with suppress(UnavailableError):  # should it have begun by then
        caller.topic("work").call("on", timeout_s=LONG_S)
    assert not is_direct(caller)
    assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"
    assert is_direct(other)
    assert [caller.name, server.bus.name] == names  # no connection to the broker has ended


def test_a_call_that_the_rules_forbid_ends_that_socket_alone(bus: Station, server: Counter) -> None:
    caller = bus.connect()
    talk(caller)
    end, made = caller.session.direct.callers["work"], list[Any]()
    caller.session.emit("call", "other", b"", into=made)
    end.socket.send(made[0].frame)
    assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"
    until(lambda: not is_direct(caller))


def test_a_server_that_stops_leaves_its_calls_to_others(bus: Station) -> None:
    one, caller = bus.connect(), bus.connect()
    serving = in_thread(lambda: one.topic("work").serve(lambda body: body, timeout_s=0.3))
    talk(caller)
    serving.result(LONG_S)
    until(lambda: meetings(bus) == 0)
    calling = held_call(caller, "waits", 50)
    other = Counter(bus.connect())
    assert calling.result(LONG_S) == "waits"
    other.close()


def test_a_thread_that_leaves_takes_no_calls_with_it(bus: Station) -> None:
    one, caller = bus.connect(), bus.connect()
    leaving = in_thread(lambda: one.topic("work").serve(lambda body: body, timeout_s=0.5))
    staying = in_thread(lambda: one.topic("work").serve(lambda body: body))
    talk(caller)
    leaving.result(LONG_S)
    assert is_direct(caller)  # for somebody still waits
    chat(caller)
    one.close()
    staying.result(LONG_S)


def test_what_is_not_used_is_given_up(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = bus.connect()
    talk(caller)
    monkeypatch.setattr(limits, "DIRECT_IDLE_S", -1.0)
    caller._beat_due = 0.0
    caller.beat()
    assert not is_direct(caller)
    until(lambda: meetings(bus) == 0)
    assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"
