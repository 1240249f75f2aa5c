"""A broker that has stopped reading, one that has moved, and a connection on the wrong side of a
fork."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bus.harness import Station, in_thread, station
from zenos.bus.aio import AsyncBus
from zenos.bus.envelope import Decoder, Envelope, Hello
from zenos.bus.order import Policy
from zenos.bus.session import Session
from zenos.bus.stream import Heartbeat
from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, InvalidError

LONG_S = 60.0
HELLO = Hello(task="", generation=0, token="x", program=True)
LARGE = bytes(limits.MIB)  # more than a socket holds


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


@contextmanager
def stopped(bus: Station) -> Iterator[None]:
    """The broker does nothing while the block runs."""
    go_on, there = threading.Event(), threading.Event()

    def stop() -> None:
        there.set()
        go_on.wait(2 * LONG_S)

    bus.loop.call_soon_threadsafe(stop)
    there.wait(LONG_S)
    try:
        yield
    finally:
        go_on.set()


def test_a_broker_that_does_not_read_holds_nobody_longer_than_asked(bus: Station) -> None:
    one = bus.connect()
    jobs = one.topic("jobs", durable=True)
    jobs.send(b"")
    with stopped(bus):
        sending = in_thread(lambda: jobs.send(LARGE, timeout_s=0.1))
        with pytest.raises(DeadlineError):
            sending.result(LONG_S)
        calling = in_thread(lambda: one.topic("work").call(LARGE, timeout_s=0.1))
        with pytest.raises(DeadlineError):
            calling.result(LONG_S)
        in_thread(one.close).result(LONG_S)


def test_what_was_sent_meanwhile_comes_when_it_reads_again(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    topic = sender.topic("data")
    topic.send(b"first")
    sent = 1

    def send_until_full() -> None:
        nonlocal sent
        while True:
            topic.send(LARGE, timeout_s=0.1)
            sent += 1

    with stopped(bus), pytest.raises((BusyError, DeadlineError)):
        in_thread(send_until_full).result(LONG_S)
    for _ in range(sent):
        with receiver.topic("data").receive(timeout_s=LONG_S) as message:
            assert message.body in (b"first", LARGE)


def test_a_bus_is_of_no_use_after_a_fork_and_its_parent_keeps_it(bus: Station) -> None:
    one = bus.connect()
    topic = one.topic("jobs", durable=True)
    topic.send(b"before")
    held = one._lock
    with held:  # as another thread may have it at that moment
        pid = os.fork()
        if pid == 0:
            said = 0
            for do in (lambda: topic.send(b"of the child", timeout_s=LONG_S), one.flush):
                try:
                    do()
                except InvalidError as error:
                    said += "before a fork: connect again" in str(error)
            one.close()
            os._exit(2 - said)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    topic.send(b"after")
    for body in (b"before", b"after"):
        with topic.receive(timeout_s=LONG_S) as message:
            assert message.body == body


def _sent(session: Session) -> Envelope:
    (item,) = session.output.take(time.monotonic(), limits.MIB)
    decoder, size = Decoder(limits.FRAME_BYTES_MAX), len(item.frame)
    decoder.room()[:size] = item.frame
    ((envelope, _),) = decoder.received(size)
    return envelope


def test_times_of_a_message_count_from_when_it_was_sent_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(0, lambda: None)
    session.connect("one", Policy())
    steps = session.request("send", "t", deadline=None, durable=True, delay_s=30.0, deadline_s=50.0)
    slot, _ = next(steps)
    first = _sent(session)
    session.disconnect()
    session.connect("two", Policy())
    assert slot.lost
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun + 20.0)
    steps.send(True)
    again = _sent(session)
    monkeypatch.undo()
    steps.close()
    assert first.delay_s > 29.0
    assert first.left_s > 49.0
    assert again.delay_s <= 10.0
    assert 0 < again.left_s <= 30.1


def test_it_listens_at_its_new_place_before_it_leaves_the_old_one(
    bus: Station, tmp_path: Path
) -> None:
    def listen_again(path: Path) -> None:
        moving = bus.broker.listen_again(path)
        asyncio.run_coroutine_threadsafe(moving, bus.loop).result(LONG_S)

    one = bus.connect()
    with pytest.raises(OSError, match="too long"):
        listen_again(tmp_path / ("x" * 200))
    bus.connect().topic("t", durable=True).send(b"at the old place")
    old, bus.path = bus.path, tmp_path / "new" / "bus"
    listen_again(bus.path)
    old.unlink()
    bus.connect().topic("t", durable=True).send(b"at the new one")
    for body in (b"at the old place", b"at the new one"):
        with one.topic("t", durable=True).receive(timeout_s=LONG_S) as message:
            assert message.body == body


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Station]:
    """One that nobody takes to be gone for its silence."""
    with station(tmp_path / "run" / "patient", Heartbeat(every_s=3600, silent_s=7200)) as made:
        yield made


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("prefetch", [1, 8])
def test_who_receives_from_a_broker_that_has_stopped_is_told_in_time(
    patient: Station, durable: bool, prefetch: int
) -> None:
    one = patient.connect()
    topic = one.topic("jobs", durable=durable, prefetch=prefetch)
    topic.send(b"before")
    topic.receive(timeout_s=LONG_S).ack()
    with stopped(patient):
        for _ in range(2):
            receiving = in_thread(lambda: topic.receive(timeout_s=0.1))
            with pytest.raises(DeadlineError):
                receiving.result(LONG_S)
    # What was asked for then is given to nobody, or to who receives next.
    other = patient.connect().topic("jobs", durable=durable)
    for number in range(10):
        other.send(number)
    found = []
    for _ in range(10):
        with topic.receive(timeout_s=LONG_S) as message:
            found.append(message.body)
    assert found == [*range(10)]
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0)
    other.send("last")
    assert other.receive(timeout_s=LONG_S).body == "last"


@pytest.mark.parametrize("durable", [False, True])
def test_so_is_an_event_loop(patient: Station, durable: bool) -> None:
    async def main() -> None:
        async with AsyncBus(patient.path, HELLO) as one:
            topic = one.topic("jobs", durable=durable)
            await topic.send(b"before")
            async with topic.receive(timeout_s=LONG_S):
                pass
            with stopped(patient):
                async with asyncio.timeout(LONG_S):
                    with pytest.raises(DeadlineError):
                        await topic.receive(timeout_s=0.1)
            await topic.send(b"after")
            async with topic.receive(timeout_s=LONG_S) as message:
                assert message.body == b"after"

    asyncio.run(main())
