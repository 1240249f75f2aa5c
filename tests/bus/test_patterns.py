"""What programs do with topics, over a real socket: send, publish, call, and who may what."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bus.harness import Station, in_thread, station
from tests.processes import until
from zenos.bus import broker
from zenos.bus.envelope import Envelope, Hello, encode
from zenos.bus.stream import greet
from zenos.bus.sync import Bus
from zenos.bus.sync_topics import Topic
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    InvalidError,
    NotFoundError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
    WorkerError,
)
from zenos.core.messages import TopicSettings

SETTINGS = {
    "narrow": TopicSettings(messages=2),
    "refusing": TopicSettings(messages=2, when_full="refuse"),
    "newest": TopicSettings(messages=2, when_full="drop_oldest"),
    "once": TopicSettings(deliveries=1),
}
HELLO = Hello(task="", generation=0, token="x", program=True)
LONG_S = 60.0  # what is waited for comes; this is for the day on which it doesn't


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", **SETTINGS) as made:
        yield made


def bodies(topic: Topic, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        with topic.receive(timeout_s=LONG_S) as message:
            found.append(message.body)
    return found


def settle(bus: Bus) -> None:
    """All that was sent before is there: what is answered stands behind it."""
    bus.topic("settled", durable=True).send(b"", timeout_s=LONG_S)


@pytest.mark.parametrize("durable", [False, True])
def test_each_message_goes_to_one_receiver_in_the_order_of_sending(
    bus: Station, durable: bool
) -> None:
    sender, receivers = bus.connect(), [bus.connect(), bus.connect()]
    topic = sender.topic("orders", durable=durable)
    for number in range(20):
        topic.send({"number": number})
    first, second = (one.topic("orders", durable=durable) for one in receivers)
    found = [bodies(first if number % 2 else second, 1)[0] for number in range(20)]
    assert found == [{"number": number} for number in range(20)]
    with pytest.raises(DeadlineError):
        first.receive(timeout_s=0)


@pytest.mark.parametrize("durable", [False, True])
def test_higher_priority_goes_first(bus: Station, durable: bool) -> None:
    sender = bus.connect()
    topic = sender.topic("orders", durable=durable)
    for priority, body in ((50, b"normal"), (20, b"low"), (90, b"urgent"), (50, b"normal too")):
        topic.send(body, priority=priority)
    settle(sender)
    assert bodies(topic, 4) == [b"urgent", b"normal", b"normal too", b"low"]


def test_a_message_says_what_it_is(bus: Station) -> None:
    sender, receiver = bus.connect("t1"), bus.connect("t1")
    for durable in (False, True):
        topic = sender.topic("t1/x", durable=durable)
        assert topic.send([1, "ä"], id="a", headers={"k": "v"}, priority=7) == "a"
        with receiver.topic("t1/x", durable=durable).receive(timeout_s=LONG_S) as message:
            assert (message.topic, message.id, message.sender) == ("t1/x", "a", sender.name)
            assert (message.body, message.priority, message.is_durable) == ([1, "ä"], 7, durable)
            assert message.headers["k"] == "v"
            assert message.read(tuple[int, str]) == (1, "ä")
            with pytest.raises(InvalidError, match="cannot read"):
                message.read(list[int])


def test_large_messages_arrive_whole(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    for durable, size in ((False, 9 * limits.MIB), (True, limits.MIB), (False, 40_000)):
        body = os.urandom(size)
        sender.topic("large", durable=durable).send(body)
        assert bodies(receiver.topic("large", durable=durable), 1) == [body]
    with pytest.raises(InvalidError, match="cannot send a message of"):
        sender.topic("large").send("x" * (limits.FRAME_BYTES_MAX + 1))
    with pytest.raises(InvalidError, match="durable one"):
        sender.topic("large", durable=True).send(bytes(limits.MESSAGE_BYTES_MAX + 1))


def test_what_is_published_goes_to_all_who_have_subscribed(bus: Station) -> None:
    connection = bus.connect()
    publisher = connection.topic("news")
    publisher.publish(b"nobody hears this")
    settle(connection)
    with (
        bus.connect().topic("news").subscribe(timeout_s=LONG_S) as one,
        bus.connect().topic("news").subscribe(timeout_s=LONG_S) as two,
    ):
        for number in range(1000):
            publisher.publish(number)
        for subscription in (one, two):
            assert [next(subscription).body for _ in range(1000)] == list(range(1000))
    publisher.publish(b"nor this")
    settle(connection)
    with bus.connect().topic("news").subscribe(timeout_s=0) as late, pytest.raises(DeadlineError):
        next(late)


def test_a_slow_subscriber_misses_the_oldest_and_is_told_how_many(bus: Station) -> None:
    slow = bus.connect().topic("narrow").subscribe(timeout_s=LONG_S)
    fast = bus.connect().topic("narrow").subscribe(timeout_s=LONG_S)
    publisher = bus.connect().topic("narrow")
    heard, missed = 0, 0
    for number in range(2000):
        publisher.publish(number)
        assert next(fast).body == number
    publisher.publish(b"last")
    while True:
        message = next(slow)
        heard, missed = heard + 1, missed + message.missed
        if message.body == b"last":
            break
    assert missed > 0
    assert heard + missed == 2001


def test_a_call_is_answered_and_its_error_is_raised(bus: Station) -> None:
    def work(body: object) -> object:
        match body:
            case int():
                return body * 2
            case "missing":
                raise NotFoundError("cannot find it")
            case "unsendable":
                return object()
        raise ValueError(body)

    server, caller = bus.connect(), bus.connect()
    serving = in_thread(server.topic("work").serve, work)
    topic = caller.topic("work")
    assert [topic.call(number, timeout_s=LONG_S) for number in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(NotFoundError, match="cannot find it"):
        topic.call("missing", timeout_s=LONG_S)
    with pytest.raises(WorkerError, match="cannot answer: ValueError: other"):
        topic.call("other", timeout_s=LONG_S)
    with pytest.raises(InvalidError, match="of type object"):
        topic.call("unsendable", timeout_s=LONG_S)
    server.close()
    serving.result(LONG_S)


def test_many_threads_share_a_connection(bus: Station) -> None:
    server, caller = bus.connect(), bus.connect()
    servers = [in_thread(server.topic("double").serve, lambda n: n * 2) for _ in range(3)]
    calls = [
        in_thread(lambda n=n: [caller.topic("double").call(n + k) for k in range(50)])
        for n in range(0, 400, 50)
    ]
    results = [result for call in calls for result in call.result(LONG_S)]
    assert results == [2 * n for n in range(400)]
    server.close()
    for one in servers:
        one.result(LONG_S)


def test_a_call_ends_at_its_deadline_and_what_waited_for_a_server_is_gone(bus: Station) -> None:
    caller, server = bus.connect(), bus.connect()
    with pytest.raises(DeadlineError, match="no reply"):
        caller.topic("work").call(b"first", timeout_s=0.05)
    served = in_thread(lambda: server.topic("work").receive(timeout_s=LONG_S))
    calling = in_thread(lambda: caller.topic("work").call(b"second", timeout_s=LONG_S))
    message = served.result(LONG_S)
    assert message.body == b"second"
    message.reply(b"done")
    assert calling.result(LONG_S) == b"done"


def test_a_server_that_goes_away_fails_its_calls(bus: Station) -> None:
    caller, server = bus.connect(), bus.connect()
    calling = in_thread(lambda: caller.topic("work").call(b"", timeout_s=LONG_S))
    server.topic("work").receive(timeout_s=LONG_S)
    server.close()
    with pytest.raises(UnavailableError, match="went away"):
        calling.result(LONG_S)


def test_a_call_that_is_given_back_fails_and_one_that_is_done_returns(bus: Station) -> None:
    caller, server = bus.connect(), bus.connect()
    calling = in_thread(lambda: caller.topic("work").call(b"", timeout_s=LONG_S))
    with (
        pytest.raises(ZeroDivisionError),
        server.topic("work").receive(timeout_s=LONG_S) as message,
    ):
        raise ZeroDivisionError
    assert message.is_call
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):
        calling.result(LONG_S)
    calling = in_thread(lambda: caller.topic("work").call(b"", timeout_s=LONG_S))
    with server.topic("work").receive(timeout_s=LONG_S):
        pass
    assert calling.result(LONG_S) is None


def test_a_full_topic_lets_its_senders_wait_and_nobody_overtakes(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    topic = sender.topic("narrow")
    for number in range(4):  # two wait there, two for room
        topic.send(number, timeout_s=LONG_S)
    with pytest.raises(BusyError, match="full until the deadline"):
        topic.send(b"too much", timeout_s=0.05)
    # Only that topic's senders wait: the connection goes on.
    sender.topic("other").send(b"on", timeout_s=LONG_S)
    assert bodies(receiver.topic("other"), 1) == [b"on"]
    waiting = in_thread(lambda: [topic.send(number, timeout_s=LONG_S) for number in range(4, 50)])
    assert bodies(receiver.topic("narrow"), 50) == list(range(50))
    waiting.result(LONG_S)


def test_a_full_topic_refuses_or_drops_the_oldest_as_its_settings_say(bus: Station) -> None:
    topic = bus.connect().topic("refusing")
    topic.send(1)
    topic.send(2)
    with pytest.raises(BusyError, match="2 messages wait"):
        topic.send(3)
    assert bodies(topic, 1) == [1]
    topic.send(4)
    assert bodies(topic, 2) == [2, 4]
    sender = bus.connect()
    topic = sender.topic("newest")
    for number in range(10):
        topic.send(number)
    settle(sender)
    assert bodies(topic, 2) == [8, 9]


def test_what_is_too_late_makes_room_and_is_never_delivered(bus: Station) -> None:
    topic = bus.connect().topic("narrow")
    topic.send(b"late", deadline_s=0.02)
    topic.send(b"late too", deadline_s=0.02)
    too_late = time.monotonic() + 0.5  # it counts from its arrival, which is later
    topic.send(b"in time", deadline_s=LONG_S)
    topic.send(b"for ever", timeout_s=LONG_S)
    topic.send(b"has room by and by", timeout_s=LONG_S)
    until(lambda: time.monotonic() > too_late)
    assert bodies(topic, 3) == [b"in time", b"for ever", b"has room by and by"]
    with pytest.raises(InvalidError, match="durable"):
        topic.send(b"", delay_s=1)


def test_a_durable_message_that_was_not_acknowledged_comes_again(bus: Station) -> None:
    topic = bus.connect().topic("jobs", durable=True)
    topic.send(b"job")
    with pytest.raises(ZeroDivisionError), topic.receive(timeout_s=LONG_S):
        raise ZeroDivisionError("no")
    with topic.receive(timeout_s=LONG_S) as again:
        assert (again.body, again.failures) == (b"job", 1)
        again.extend(LONG_S)
        again.nack(delay_s=0.01, reason="not yet")
    third = topic.receive(timeout_s=LONG_S)
    assert third.failures == 2
    third.ack()
    third.ack()  # once is enough
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0.05)


def test_a_duplicate_is_dropped_and_a_delay_kept(bus: Station) -> None:
    topic = bus.connect().topic("jobs", durable=True)
    topic.send(b"later", delay_s=2.0)
    assert [topic.send(b"one", id="same") for _ in range(3)] == ["same"] * 3
    assert bodies(topic, 2) == [b"one", b"later"]
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0)


def test_a_late_word_about_a_lease_is_refused(bus: Station) -> None:
    one, two = bus.connect(), bus.connect()
    one.topic("jobs", durable=True).send(b"job")
    slow = one.topic("jobs", durable=True).receive(timeout_s=LONG_S, lease_s=0.05)
    other = two.topic("jobs", durable=True).receive(timeout_s=LONG_S)
    with pytest.raises(ConflictError, match="lease has ended"):
        slow.ack()
    other.ack()


def test_a_dead_message_is_not_delivered(bus: Station) -> None:
    topic = bus.connect().topic("once", durable=True)
    topic.send(b"poison")
    topic.receive(timeout_s=LONG_S).nack(reason="poison")
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0.05)


@pytest.mark.parametrize("durable", [False, True])
def test_who_stops_waiting_takes_nothing_from_others(bus: Station, durable: bool) -> None:
    one, two = (bus.connect().topic("orders", durable=durable) for _ in range(2))
    for number in range(20):
        with pytest.raises(DeadlineError):
            one.receive(timeout_s=0.001)
        two.send(number, timeout_s=LONG_S)
        assert bodies(two, 1) == [number]


@pytest.mark.parametrize("durable", [False, True])
def test_a_receiver_that_dies_leaves_the_rest_to_others(bus: Station, durable: bool) -> None:
    sender = bus.connect()
    topic = sender.topic("jobs", durable=durable)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom zenos.bus.envelope import Hello\n"
        "from zenos.bus.sync import Bus\n"
        "bus = Bus(Path(sys.argv[1]), Hello(task='', generation=0, token='x', program=True))\n"
        f"bus.topic('jobs', durable={durable}).receive(lease_s=3600)\n"
        "print('has it', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(bus.path)], stdout=subprocess.PIPE
    ) as dying:
        topic.send(b"first")
        topic.send(b"second")
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"has it\n"
        dying.send_signal(signal.SIGKILL)
    # The first was transient: it was delivered, at most once. A durable one comes again.
    expected = [b"first", b"second"] if durable else [b"second"]
    assert bodies(topic, len(expected)) == expected


def test_a_peer_that_does_not_read_harms_nobody(bus: Station) -> None:
    stuck = bus.connect().topic("flood", prefetch=limits.PREFETCH_MAX)
    sender, receiver = bus.connect(), bus.connect()
    sender.topic("flood").send(b"first")
    stuck.receive(timeout_s=LONG_S)  # and never again, though it has said that it takes many
    flood = sender.topic("flood")
    body = bytes(100_000)
    for _ in range(200):
        flood.send(body, timeout_s=LONG_S)
    for number in range(100):
        sender.topic("calm").send(number, timeout_s=LONG_S)
        assert bodies(receiver.topic("calm"), 1) == [number]


def test_a_reader_that_was_slow_gets_everything_in_the_end(bus: Station) -> None:
    sender, slow = bus.connect(), bus.connect()
    topic = slow.topic("many", prefetch=limits.PREFETCH_MAX)
    sender.topic("many").send(0)
    assert bodies(topic, 1) == [0]  # it may be sent thousands more, and doesn't read
    count = limits.SEND_QUEUE_FRAMES_MAX
    for number in range(1, count):
        sender.topic("many").send([number, bytes(2000)], timeout_s=LONG_S)
    settle(sender)
    assert bus.do(lambda: bus.broker.waiting("many")) > 0
    assert [number for number, _ in bodies(topic, count - 1)] == list(range(1, count))


def test_a_task_may_use_its_own_topics_and_those_it_was_granted(bus: Station) -> None:
    program, user = bus.connect("t1"), bus.connect()
    for name in ("t1", "t1/a/b", "shared"):
        program.topic(name).send(b"yes")
        assert bodies(user.topic(name), 1) == [b"yes"]
    for name in ("t11", "t2/a", "orders"):
        topic, durable = program.topic(name), program.topic(name, durable=True)
        refused: list[Callable[[], object]] = [
            partial(topic.send, b"no"),
            partial(topic.publish, b"no"),
            partial(topic.call, b"no"),
            topic.subscribe,
            partial(durable.send, b"no"),
            partial(topic.receive, timeout_s=LONG_S),
            partial(durable.receive, timeout_s=LONG_S),
        ]
        for ask in refused:
            with pytest.raises(RefusedError, match=f"cannot use the topic {name}"):
                ask()
    with pytest.raises(InvalidError, match="cannot use"):
        program.topic("no good/name")


def test_a_wrong_token_is_refused(bus: Station) -> None:
    with pytest.raises(UnauthorizedError, match="token"):
        _connect_wrong(bus)


def test_another_users_process_is_refused_whatever_it_knows(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is at the other end is what the system says, here of a broker that is somebody else's."""
    bus.connect().topic("t").send(b"")
    others = SimpleNamespace(**{**vars(os), "getuid": lambda: os.getuid() + 1})
    monkeypatch.setattr(broker, "os", others)
    with pytest.raises((UnavailableError, UnauthorizedError)):
        Bus(bus.path, Hello(task="", generation=0, token="right", program=True), timeout_s=0.2)


def _connect_wrong(bus: Station) -> None:
    Bus(bus.path, Hello(task="", generation=0, token="wrong", program=True), timeout_s=0.2)


def test_it_goes_on_after_a_restart_of_the_daemon(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    durable = sender.topic("jobs", durable=True)
    durable.send(b"before")
    held = receiver.topic("jobs", durable=True).receive(timeout_s=LONG_S)
    news = receiver.topic("news").subscribe(timeout_s=LONG_S)
    bus.stop()
    sending = in_thread(lambda: durable.send(b"meanwhile", id="m", timeout_s=LONG_S))
    waiting = in_thread(lambda: receiver.topic("orders").receive(timeout_s=LONG_S))
    bus.start()
    assert sending.result(LONG_S) == "m"
    held.ack()  # nobody else had it meanwhile
    assert bodies(receiver.topic("jobs", durable=True), 1) == [b"meanwhile"]
    sender.topic("orders").send(b"now", timeout_s=LONG_S)
    assert waiting.result(LONG_S).body == b"now"
    until(lambda: bus.do(lambda: bus.broker.peers) == 2)
    sender.topic("news").publish(b"still there")
    assert next(news).body == b"still there"


def test_a_closed_bus_says_so_to_whoever_waits(bus: Station) -> None:
    one = bus.connect()
    waiting = in_thread(one.topic("orders").receive)
    begun = threading.Event()
    begun.wait(0.05)
    one.close()
    with pytest.raises(UnavailableError, match="closed"):
        waiting.result(LONG_S)
    with pytest.raises(UnavailableError, match="closed"):
        one.topic("orders").send(b"")


def test_many_connections(bus: Station) -> None:
    ours = [bus.connect() for _ in range(196)]
    for number, one in enumerate(ours):
        one.topic(f"x{number % 7}").send(number)
    found = sorted(number for k in range(7) for number in bodies(ours[0].topic(f"x{k}"), 28))
    assert found == list(range(196))


def cut_for(bus: Station, hello: Hello, said: bytes) -> None:
    """Whoever has got in and says that is cut: it comes to the end of what it reads."""
    with greet(str(bus.path), hello, LONG_S) as peer:
        assert peer.recv(1)  # of its welcome
        peer.sendall(said)
        while peer.recv(4096):
            pass


@pytest.mark.parametrize(
    "lengths",
    [(100, limits.FRAME_BYTES_MAX + 1), (limits.FRAME_HEADER_BYTES_MAX + 1, 0), (100, 2**32 - 1)],
)
def test_a_frame_that_is_too_long_cuts_its_peer_before_it_has_come(
    bus: Station, lengths: tuple[int, int]
) -> None:
    """Also of one that is known: it has said its lengths alone, and nothing is kept for it."""
    other = bus.connect()
    cut_for(bus, HELLO, struct.pack(">II", *lengths))
    other.topic("orders").send(b"")
    assert bodies(other.topic("orders"), 1) == [b""]


def test_what_a_peer_may_not_say_cuts_it_alone(bus: Station) -> None:
    other = bus.connect()
    program = Hello(task="t1", generation=1, token="x", program=True)
    worker = Hello(task="t1", generation=1, token="x")
    for wrong in (
        Envelope(generation=1, verb="send", topic="t1", sender="user.1"),  # in another's name
        Envelope(generation=2, verb="tell", topic="progress"),
        Envelope(generation=1, verb="tell", topic="progress"),
        Envelope(generation=1, verb="want", topic="t1", body=b"\xc1"),
    ):
        hello = worker if wrong.generation == 2 else program
        cut_for(bus, hello, encode(wrong))
    other.topic("orders").send(b"")
    assert bodies(other.topic("orders"), 1) == [b""]
