"""Ends of direct sockets whose other end goes at a bad moment, stops reading, or is hostile."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from tests.bus.direct_peers import LONG_S, Counter, chat, is_direct, sockets, talk
from tests.bus.harness import Station, in_thread, station
from tests.bus.test_stuck import stopped
from tests.processes import until
from zenos.bus import meetings, sync
from zenos.bus.bodies import Encoded
from zenos.bus.envelope import Hello
from zenos.bus.inbox import Received
from zenos.bus.marks import Marks, new_marks
from zenos.bus.operations import Sending, call
from zenos.bus.order import Item
from zenos.bus.serving import FEW, ServerEnd
from zenos.bus.session import Session
from zenos.bus.stream import Heartbeat, enter
from zenos.bus.sync import Bus
from zenos.core import limits


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", Heartbeat(every_s=3600.0, silent_s=7200.0)) as made:
        yield made


@pytest.fixture
def server(bus: Station) -> Iterator[Counter]:
    made = Counter(bus.connect())
    yield made
    made.close()


def only_end(server: Counter) -> ServerEnd:
    """The server's end of its only direct socket."""
    ((_, end),) = server.bus.session.direct.desks["work"].ends.items()
    return end


# -- the other end goes


@pytest.mark.parametrize("noticed", ["by the broker's word", "by a call"])
def test_what_a_server_replied_before_it_went_is_still_heard(
    bus: Station, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, caller = Counter(bus.connect()), bus.connect()
    talk(caller)
    end, at_server = caller.session.direct.callers["work"], only_end(server)
    held = server.hold(caller.topic("work"))
    # It doesn't look there before it hears otherwise that the server has gone.
    monkeypatch.setattr(caller.session.direct, "read", lambda descriptors: None)
    server.open()
    until(lambda: not at_server.begun)
    if noticed == "by a call":
        with stopped(bus):
            server.close()
            caller.act(lambda _: end.send(end.pending[next(iter(end.pending))].item))
    else:
        server.close()
    assert held.result(LONG_S) == "held"
    assert not is_direct(caller)


def test_a_fork_amid_a_call_of_another_thread_leaves_the_child_able_to_serve(bus: Station) -> None:
    """Whatever that thread held then, nobody gives back in the child."""
    server, caller = Counter(bus.connect()), bus.connect()
    talk(caller)
    fence = only_end(server).marks._fence
    fence.acquire()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(LONG_S))
        marks = Marks(new_marks())
        marks.want(0, 1)
        os._exit(0 if marks.begin(0, 1) else 1)
    fence.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    server.close()


def test_in_a_fork_a_bus_that_was_closed_closes_nothing_again(bus: Station) -> None:
    """Its descriptors are others' by now."""
    one = bus.connect()
    one.close()
    mine = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    one.forget()  # as a fork's child does with all that there are
    for descriptor in mine:
        os.close(descriptor)


# -- the other end does not read


def test_what_goes_elsewhere_does_not_wait_for_who_reads_nothing(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only thread is busy, so nobody reads there. Others get what is sent at once."""
    monkeypatch.setattr(sync, "STUCK_S", 3600.0)
    caller, other = bus.connect(), bus.connect()
    for one in (caller, other):
        talk(one)
    held, end = server.hold(other.topic("work")), caller.session.direct.callers["work"]
    body = b"x" * (limits.DIRECT_CALL_BYTES_MAX // 2)
    calls = []
    while not end.is_stuck:  # and no thread of the caller waits for anything
        calls.append(call(caller.session, "work", Encoded(body), Sending()))
        caller.act(lambda _: next(calls[-1]))
    until(lambda: not caller._flush_due.is_set())  # by now it waits for the server to read
    for number in range(500):
        caller.topic("other").send(b"%d" % number)
    topic = other.topic("other", prefetch=500)
    assert [topic.receive(timeout_s=LONG_S / 6).body for _ in range(500)] == [
        b"%d" % number for number in range(500)
    ]
    server.open()
    assert held.result(LONG_S) == "held"
    for one in calls:
        caller.act(lambda _, one=one: one.close())


# -- the other end is hostile


def test_a_direct_call_cannot_pass_for_a_durable_message(bus: Station, server: Counter) -> None:
    """Whoever serves it would acknowledge to the broker what its caller has made up."""
    caller = bus.connect()
    talk(caller)
    made: list[Item] = []
    number, _ = caller.act(Session.emit, "call", "work", b"made up", durable=True, into=made)
    end, at_server = caller.session.direct.callers["work"], only_end(server)
    end.marks.want(0, number)
    caller.act(lambda _: end.send(made[0]))
    until(lambda: at_server.is_closed or b"made up" in server.begun)
    assert b"made up" not in server.begun
    assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"


# -- nothing grows without bound


def test_calls_that_were_given_up_leave_nothing_with_a_busy_server(bus: Station) -> None:
    server, caller, other = Counter(bus.connect()), bus.connect(), bus.connect()
    talk(caller)
    held, end = server.hold(caller.topic("work")), only_end(server)
    # Somebody reads, while the only one who serves is busy.
    reading = in_thread(lambda: server.bus.topic("other").receive(timeout_s=LONG_S))
    for _ in range(3 * FEW // 20):
        for _ in range(20):
            calling = call(caller.session, "work", Encoded(b"given up"), Sending())
            caller.act(lambda _, calling=calling: (next(calling), calling.close()))
        until(lambda: end.waiting < FEW // 10)  # of some it isn't told when the socket is full
    assert is_direct(caller)

    def kept() -> int:
        gc.collect()
        bodies = [one.body for one in gc.get_objects() if type(one) is Received]
        return bodies.count(b"given up")

    until(lambda: kept() <= end.waiting)  # one may be just on its way in
    until(lambda: len(end.desk._calls) <= FEW + FEW // 5)
    other.topic("other").send(1)
    reading.result(LONG_S)
    server.open()
    assert held.result(LONG_S) == "held"
    server.close()


def flood(caller: Bus, server_end: ServerEnd, body: bytes, most: int) -> None:
    """Call, and never read what is replied, until that is not put up with, or so often."""
    end, places = caller.session.direct.callers["work"], limits.DIRECT_PENDING_MAX
    for count in range(most):
        made: list[Item] = []
        number, _ = caller.act(Session.emit, "call", "work", body, to=count % places, into=made)
        end.marks.want(count % places, number)
        caller.act(lambda _, made=made: end.send(made[0]))
        if count % 50 == 49:
            until(lambda: server_end.is_closed or not (server_end.waiting or end.is_stuck))
        if server_end.is_closed:
            return


def test_replies_that_nobody_reads_are_bounded(bus: Station, server: Counter) -> None:
    caller, other = bus.connect(), bus.connect()
    for one in (caller, other):
        talk(one)
    ends = server.bus.session.direct.desks["work"].ends.values()
    theirs = next(end for end in ends if end.peer == caller.name)
    flood(caller, theirs, b"x" * limits.KIB, 2 * limits.SEND_QUEUE_FRAMES_MAX)
    assert theirs.is_closed
    assert other.topic("work").call("on", timeout_s=LONG_S) == "on"


def test_who_does_not_read_gets_few_descriptors(bus: Station) -> None:
    """They would be all that a server may open."""
    one, caller = bus.connect(), bus.connect()
    array = numpy.zeros(limits.MIB // 4, dtype="uint8")
    serving = in_thread(one.topic("work").serve, lambda body: array if body == b"array" else body)
    talk(caller)
    ((_, theirs),) = one.session.direct.desks["work"].ends.items()
    before = sockets()
    flood(caller, theirs, b"array", 1000)
    # Beside those in the socket, which the system bounds; the server's pool has one of each, too.
    assert sockets() < before + 1000
    one.close()
    serving.result(LONG_S)


def test_a_peer_that_does_not_read_is_given_no_more_sockets(bus: Station, server: Counter) -> None:
    """They would wait in the daemon, and be all that it may open."""
    hello = Hello(task="", generation=0, token="x", program=True)
    connection, _, welcome = enter(str(bus.path), hello, LONG_S, direct=True)
    connection.settimeout(LONG_S)
    session, before = Session(0, lambda: None), sockets()
    session.name = welcome.name
    for round_ in range(1, 101):
        made: list[Item] = []
        for _ in range(limits.DIRECT_CALLS):
            session.emit("call", "work", b"x" * limits.KIB, into=made)
        connection.sendall(b"".join(item.frame for item in made))
        until(lambda n=round_: len(server.begun) >= n * limits.DIRECT_CALLS)
        made.clear()
        for number in range(1, round_ + 1):
            session.emit("indirect", "work", kind="command", to=number, into=made)
        connection.sendall(b"".join(item.frame for item in made))
    assert sockets() < before + 100
    connection.close()


def test_a_daemon_that_can_make_no_socket_does_not_try_at_each_call(
    bus: Station, server: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[None] = []

    def fail() -> None:
        tried.append(None)
        raise OSError

    monkeypatch.setattr(meetings, "_pair", fail)
    chat(bus.connect())
    assert len(tried) == 1
