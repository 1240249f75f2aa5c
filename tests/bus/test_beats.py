"""Peers that are stopped, and a broker that is: it is noticed, and what they held is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.bus.harness import Station, in_thread, station
from tests.bus.test_stuck import stopped
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.channel import Channel
from zenos.bus.envelope import Hello
from zenos.bus.stream import Heartbeat, greet
from zenos.core.errors import UnavailableError

LONG_S = 60.0
# Far from each other: a machine that is busy delays a beat, and who is cut for that comes back.
QUICK = Heartbeat(every_s=0.05, silent_s=2.0)
NEVER = Heartbeat(every_s=0.05, silent_s=3600.0)

# Leases a message, says so, and waits for more; or serves calls, and says that it has one.
PEER = """
import sys, time
from pathlib import Path
from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus
where, task, what = sys.argv[1:]
hello = Hello(task=task, generation=1 if task else 0, token="x", program=True)
bus = Bus(Path(where), hello, timeout_s=60)
topic = bus.topic(f"{task or 't'}/jobs", durable=what == "lease")
message = topic.receive(lease_s=3600)
print("has it", flush=True)
if what == "lease":
    time.sleep(0.1)
    topic.receive(timeout_s=60)
print("has more", flush=True)
time.sleep(600)
"""


@contextmanager
def peer(bus: Station, what: str, task: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own, killed at the end."""
    argv = [sys.executable, "-c", PEER, str(bus.path), task, what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[bytes], line: bytes) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == line + b"\n"


def peers(bus: Station) -> int:
    return bus.do(lambda: bus.broker.peers)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", QUICK) as made:
        yield made


def test_what_a_stopped_receiver_holds_goes_to_others(bus: Station) -> None:
    topic = bus.connect().topic("t/jobs", durable=True)
    topic.send(b"held", timeout_s=LONG_S)
    with peer(bus, "lease") as process:
        assert says(process, b"has it")
        process.send_signal(signal.SIGSTOP)
        with topic.receive(timeout_s=LONG_S) as message:  # its lease has an hour to go
            assert message.body == b"held"
        # It goes on, connects again, and is given what comes now.
        process.send_signal(signal.SIGCONT)
        topic.send(b"new", timeout_s=LONG_S)
        assert says(process, b"has more")


def test_a_call_that_a_stopped_program_has_fails(bus: Station) -> None:
    calling = in_thread(lambda: bus.connect().topic("t/jobs").call(b"", timeout_s=LONG_S))
    with peer(bus, "serve") as process:
        assert says(process, b"has it")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError, match="went away"):
            calling.result(2 * LONG_S)


def test_who_is_frozen_on_purpose_keeps_its_connection_and_is_given_nothing(bus: Station) -> None:
    with peer(bus, "lease", "t1") as process:
        sender = bus.connect()
        topic = sender.topic("t1/jobs", durable=True)
        topic.send(b"first", timeout_s=LONG_S)
        assert says(process, b"has it")
        bus.paused.add("t1")
        process.send_signal(signal.SIGSTOP)
        frozen = next(p for p in bus.do(lambda: list(bus.broker._peers)) if p.task == "t1")
        until(lambda: bus.do(lambda: frozen.is_silent))
        assert bus.do(lambda: not frozen.is_closed and not frozen.has_room)
        process.send_signal(signal.SIGCONT)
        until(lambda: bus.do(lambda: not frozen.is_silent))
        topic.send(b"second", timeout_s=LONG_S)
        assert says(process, b"has more")
        assert bus.do(lambda: not frozen.is_closed)


@pytest.mark.parametrize("waits", [True, False])
def test_who_only_waits_or_does_other_things_is_heard(bus: Station, waits: bool) -> None:
    one = bus.connect()
    if waits:
        in_thread(one.topic("orders").receive)
    (at,) = bus.do(lambda: list(bus.broker._peers))
    heard = [bus.do(lambda: at.heard)]

    def is_heard_again() -> bool:
        heard.append(bus.do(lambda: at.heard))
        return len(set(heard)) > 5

    until(is_heard_again)
    assert not at.is_closed


async def test_a_loop_is_heard(tmp_path: Path) -> None:
    with station(tmp_path / "run" / "bus", NEVER) as bus:
        hello = Hello(task="", generation=0, token="x", program=True)
        async with AsyncBus(bus.path, hello) as one:
            await one.topic("settled", durable=True).send(b"", timeout_s=LONG_S)
            (at,) = bus.broker._peers
            heard = set()
            while len(heard) < 5:
                heard.add(at.heard)
                await one.topic("orders").send(b"")  # beats all the same
                assert one._beating is not None
                when = one._beating.when()
                await one.in_thread(until, lambda w=when: beat_since(one, w), drop=print)


def beat_since(one: AsyncBus, when: float) -> bool:
    return one._beating is not None and one._beating.when() > when


def test_a_worker_is_heard(tmp_path: Path) -> None:
    with station(tmp_path / "run" / "bus", NEVER) as bus:
        channel = Channel(bus.path, "t1", 1, "x")
        try:
            until(lambda: channel.connected)
            (at,) = bus.do(lambda: list(bus.broker._peers))
            heard = {bus.do(lambda: at.heard)}

            def is_heard_again() -> bool:
                heard.add(bus.do(lambda: at.heard))
                return len(heard) > 5

            until(is_heard_again)
            assert channel.poll() == []  # answers to beats are nobody's messages
        finally:
            channel.close()


def test_who_has_not_said_that_it_beats_need_not(tmp_path: Path) -> None:
    with station(tmp_path / "run" / "bus", NEVER) as bus:
        hello = Hello(task="", generation=0, token="x", program=True)
        with greet(str(bus.path), hello, LONG_S) as older:  # a program of an older version
            assert older.recv(4096)
            (at,) = bus.do(lambda: list(bus.broker._peers))

            def look() -> bool:
                at.heard -= 7200.0
                bus.broker._looking.cancel()
                bus.broker._look()
                return not at.is_closed

            assert bus.do(look)


@pytest.mark.parametrize("kind", ["waits", "worker"])
def test_a_stopped_broker_is_noticed_and_found_again(bus: Station, kind: str) -> None:
    channel = Channel(bus.path, "t1", 1, "x") if kind == "worker" else None
    one, topic = bus.connect(), bus.connect().topic("jobs", durable=True)
    try:
        if channel is not None:
            until(lambda: channel.connected)
            channel.send("state", "progress", b"state")
        waiting = in_thread(lambda: one.topic("jobs", durable=True).receive(timeout_s=2 * LONG_S))
        until(lambda: bus.do(bus.requests))
        with stopped(bus):
            until(lambda: not one.session.is_connected)
            if channel is not None:
                until(lambda: channel.disconnected_s > 0)
        topic.send(b"now", timeout_s=LONG_S)
        assert waiting.result(LONG_S).body == b"now"
        if channel is not None:
            until(lambda: [e.body for _, e in bus.heard if e.topic == "progress"][1:] == [b"state"])
    finally:
        if channel is not None:
            channel.close()


def test_a_broker_that_was_stopped_itself_blames_nobody(tmp_path: Path) -> None:
    with station(tmp_path / "run" / "bus", NEVER) as bus:
        one = bus.connect()
        (at,) = bus.do(lambda: list(bus.broker._peers))

        def look_after(passed_s: float) -> bool:
            """Whether it is still there when the broker looks, after so long without a look."""
            now = bus.loop.time()
            at.heard, bus.broker._looked = now - 7200.0, now - passed_s
            bus.broker._looking.cancel()
            bus.broker._look()
            return not at.is_closed

        assert bus.do(lambda: look_after(7200.0))
        assert not bus.do(lambda: look_after(0.0))
        one.topic("orders", durable=True).send(b"", timeout_s=LONG_S)  # it has come back


def test_a_fork_leaves_beating_to_its_parent(bus: Station) -> None:
    one = bus.connect()
    pid = os.fork()
    if pid == 0:  # which may have a connection of its own
        with suppress(BaseException):
            ours = bus.connect()
            names = {thread.name for thread in threading.enumerate()}
            ours.topic("orders", durable=True).send(b"", timeout_s=LONG_S)
            os._exit(0 if "bus-beat" in names else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    one.topic("orders", durable=True).send(b"", timeout_s=LONG_S)
