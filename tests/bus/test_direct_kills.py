"""Direct sockets whose ends are killed, stopped, forked, or left without a daemon: no call is lost
that would not have been, and none is done twice."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.bus.direct_peers import (
    CALLER,
    LONG_S,
    SERVER,
    Counter,
    chat,
    is_direct,
    lines,
    meetings,
    program,
    says,
    sockets,
    talk,
    tell,
    unread,
)
from tests.bus.harness import Station, in_thread, station
from tests.bus.test_direct import held_call, patient
from tests.processes import until
from zenos.bus.stream import Heartbeat
from zenos.core import limits
from zenos.core.errors import InvalidError, UnavailableError

__all__ = ["patient"]  # a fixture
QUICK = Heartbeat(every_s=0.05, silent_s=2.0)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", Heartbeat(every_s=3600.0, silent_s=7200.0)) as made:
        yield made


def test_a_server_that_is_killed_fails_what_it_began_and_leaves_the_rest(
    bus: Station, tmp_path: Path
) -> None:
    caller, done = bus.connect(), tmp_path / "done"
    with program(SERVER, str(bus.path), str(done)) as first:
        assert says(first, b"ready")
        talk(caller)
        calls = [held_call(caller, "hang", 50)]
        until(lambda: "hang" in lines(done))
        calls += [held_call(caller, f"waiting-{n}", 50) for n in range(10)]
        first.kill()
        with pytest.raises(UnavailableError, match="went away"):
            calls[0].result(LONG_S)
        with program(SERVER, str(bus.path), str(done)) as second:
            assert says(second, b"ready")
            assert [call.result(LONG_S) for call in calls[1:]] == [
                f"waiting-{n}" for n in range(10)
            ]
            talk(caller)
    rest = [body for body in lines(done) if body != "talk"]
    assert rest == ["hang", *(f"waiting-{n}" for n in range(10))]


def test_a_storm_of_kills_does_nothing_twice_and_loses_nothing_that_waits(
    bus: Station, tmp_path: Path
) -> None:
    """Callers go on while servers die under them: what was never begun is answered by the next."""
    callers, done, over = [bus.connect() for _ in range(3)], tmp_path / "done", threading.Event()

    def go_on(number: int) -> tuple[list[str], list[str]]:
        answered, failed, count = [], [], 0
        while not over.is_set():
            body = f"{number}-{count}"
            count += 1
            try:
                answered.append(callers[number].topic("work").call(body, timeout_s=LONG_S))
            except UnavailableError:
                failed.append(body)
        return answered, failed

    calling = [in_thread(go_on, number) for number in range(3)]
    for round_ in range(6):
        with program(SERVER, str(bus.path), str(done)) as server:
            assert says(server, b"ready")
            many = len(lines(done)) + 200
            until(lambda n=many: len(lines(done)) >= n)
            until(lambda: any(is_direct(caller) for caller in callers))
            if round_ == 5:
                over.set()
                results = [call.result(LONG_S) for call in calling]
    begun = lines(done)
    assert len(begun) == len(set(begun))
    for answered, _ in results:
        assert set(answered) <= set(begun)
    # Each server had one thread, so it took one call with it, and no other was given up.
    assert sum(len(failed) for _, failed in results) <= 5


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_caller_that_is_killed_leaves_nothing_with_its_server(
    bus: Station, is_begun: bool
) -> None:
    """What it called is not begun; what is begun is answered to nobody."""
    server, other = Counter(bus.connect()), bus.connect()
    talk(other)
    before = sockets()
    with program(CALLER, str(bus.path)) as caller:
        assert says(caller, b"direct")
        held = None if is_begun else server.hold(other.topic("work"))
        tell(caller)
        until(lambda: "last" in server.begun if is_begun else unread(server.bus) == 1)
        caller.kill()
        caller.wait()
    until(lambda: bus.do(lambda: bus.broker.peers) == 2)
    server.open()
    if held is not None:
        assert held.result(LONG_S) == "held"
    chat(other)
    assert ("last" in server.begun) == is_begun
    until(lambda: meetings(bus) == 2)
    until(lambda: sockets() <= before)
    server.close()


def test_without_the_daemon_nobody_talks_and_afterwards_all_is_as_before(bus: Station) -> None:
    server, caller = Counter(bus.connect()), bus.connect()
    for _ in range(3):
        talk(caller)
        held = server.hold(caller.topic("work"))
        bus.stop()
        with pytest.raises(UnavailableError):
            held.result(LONG_S)
        bus.start()
        server.open()
        assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"
    talk(caller)
    server.close()


@pytest.mark.parametrize("ends", ["caller", "server"])
def test_a_bus_that_is_closed_leaves_nothing_open(bus: Station, ends: str) -> None:
    server, caller = Counter(bus.connect()), bus.connect()
    talk(caller)
    before = sockets()
    for _ in range(20):
        if ends == "caller":
            one = bus.connect()
            talk(one)
            one.close()
        else:
            one = bus.connect()
            serving = in_thread(one.topic("other").serve, lambda body: body)
            talk(caller, "other")
            one.close()
            serving.result(LONG_S)
        assert caller.topic("work").call("on", timeout_s=LONG_S) == "on"
    until(lambda: meetings(bus) == 2)
    until(lambda: sockets() <= before)
    server.close()


def test_a_server_that_was_stopped_begins_nothing_that_others_have_done(tmp_path: Path) -> None:
    """Its connection is given up after a while of silence; when it goes on, others have them."""
    with station(tmp_path / "run" / "bus", QUICK) as bus:
        caller, done, other = bus.connect(), tmp_path / "done", tmp_path / "other"
        with program(SERVER, str(bus.path), str(done)) as stopped:
            assert says(stopped, b"ready")
            talk(caller)
            stopped.send_signal(signal.SIGSTOP)
            calls = [held_call(caller, f"waiting-{n}", 50) for n in range(5)]
            with program(SERVER, str(bus.path), str(other)) as second:
                assert says(second, b"ready")
                assert [call.result(LONG_S) for call in calls] == [f"waiting-{n}" for n in range(5)]
                stopped.send_signal(signal.SIGCONT)
                until(lambda: bus.do(lambda: bus.broker.peers) == 3)
                chat(caller)
        assert [body for body in lines(done) if body != "talk"] == []
        assert lines(other)[:5] == [f"waiting-{n}" for n in range(5)]


def test_calls_wait_for_a_task_that_is_frozen_on_purpose_where_others_may_have_them(
    tmp_path: Path,
) -> None:
    with station(tmp_path / "run" / "bus", QUICK) as bus:
        caller, done = bus.connect(), tmp_path / "done"
        task = SERVER.replace('task="", generation=0', 'task="t1", generation=1').replace(
            '"work"', '"t1/desk"'
        )
        with program(task, str(bus.path), str(done)) as frozen:
            assert says(frozen, b"ready")
            talk(caller, "t1/desk")
            bus.paused.add("t1")
            frozen.send_signal(signal.SIGSTOP)
            calling = in_thread(lambda: caller.topic("t1/desk").call("late", timeout_s=LONG_S))
            until(lambda: bus.do(lambda: bus.broker.waiting("t1/desk")) == 1)
            frozen.send_signal(signal.SIGCONT)
            assert calling.result(LONG_S) == "late"
        assert lines(done).count("late") == 1


def test_a_fork_leaves_the_socket_to_its_parent(bus: Station) -> None:
    server, caller = Counter(bus.connect()), bus.connect()
    talk(caller)
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            try:
                caller.topic("work").call("child", timeout_s=1)
            except InvalidError:
                code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_direct(caller)
    assert caller.topic("work").call("parent", timeout_s=LONG_S) == "parent"
    assert is_direct(caller)
    server.close()


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open none while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    kept = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with suppress(OSError):
            while True:
                kept.append(os.dup(0))
        yield
    finally:
        for one in kept:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LIMITED = """
import os, resource, sys
from pathlib import Path
from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus
bus = Bus(Path(sys.argv[1]), Hello(task="", generation=0, token="x", program=True), timeout_s=60)
topic = bus.topic("work")
topic.call("first")
kept = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        kept.append(os.dup(0))
except OSError:
    pass
name = bus.name
for number in range(100):
    assert topic.call(number) == number
assert bus.name == name and not bus.session.direct.callers
print("done", flush=True)
"""


def test_a_program_that_may_open_no_more_goes_on_through_the_broker(bus: Station) -> None:
    server = Counter(bus.connect())
    with program(LIMITED, str(bus.path)) as limited:
        assert says(limited, b"done")
    until(lambda: meetings(bus) == 0)
    server.close()


def test_what_waits_is_bounded(bus: Station) -> None:
    """Beyond that calls wait in the broker, which bounds them by the topic's settings."""
    server, caller = Counter(bus.connect()), bus.connect()
    talk(caller)
    held = server.hold(caller.topic("work"))
    body = "x" * (limits.DIRECT_BYTES_MAX // 40)
    calls = [
        in_thread(lambda: caller.topic("work").call(body, timeout_s=LONG_S)) for _ in range(100)
    ]
    until(lambda: len(caller.session._pending) == 101)
    end = caller.session.direct.callers["work"]
    assert sum(len(call.item.frame) for call in end.pending.values()) <= limits.DIRECT_BYTES_MAX
    until(lambda: bus.do(lambda: bus.broker.waiting("work")) > 0)
    server.open()
    for call in [held, *calls]:
        call.result(LONG_S)
    server.close()


def test_a_caller_that_does_not_read_is_in_nobodys_way(bus: Station) -> None:
    """Replies that it doesn't take wait for it; the server goes on."""
    server = Counter(bus.connect())
    slow, other = bus.connect(), bus.connect()
    for one in (slow, other):
        talk(one)
    held = server.hold(slow.topic("work"))
    end = slow.session.direct.callers["work"]
    slow._polling.closing(end)  # it has stopped looking there
    server.open()
    body = "x" * (limits.DIRECT_CALL_BYTES_MAX // 2)
    calls = [in_thread(lambda: slow.topic("work").call(body, timeout_s=LONG_S)) for _ in range(20)]
    for number in range(50):
        assert other.topic("work").call(number, timeout_s=LONG_S) == number
    slow._polling.opened(end)
    slow.wake()
    assert [call.result(LONG_S) for call in [held, *calls]] == ["held", *[body] * 20]
    server.close()
