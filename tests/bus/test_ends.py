"""What ends: subscriptions that somebody else waits on, requests that are taken back, connections
whose daemon has moved, replies that take long, and descriptors of a flood."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.bus.harness import Station, in_thread, station
from tests.bus.test_stuck import stopped
from tests.processes import until
from zenos.bus import envelope, operations
from zenos.bus.aio import AsyncBus
from zenos.bus.aio_topics import Message
from zenos.bus.bodies import Encoded
from zenos.bus.envelope import Envelope, Hello, body_in, encode
from zenos.bus.memory import Buffer, Pool
from zenos.bus.operations import Sending
from zenos.bus.order import Policy
from zenos.bus.session import Session
from zenos.bus.stream import FrameReader, Heartbeat, Welcome, greet
from zenos.bus.sync import Bus
from zenos.core import limits
from zenos.core.errors import DeadlineError, TooLargeError, UnavailableError
from zenos.core.messages import TopicSettings

LONG_S = 60.0
HELLO = Hello(task="", generation=0, token="x", program=True)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    calm = Heartbeat(every_s=3600.0, silent_s=7200.0)  # nobody wakes because it is time to
    with station(tmp_path / "run" / "bus", calm, narrow=TopicSettings(messages=1)) as made:
        yield made


@pytest.mark.parametrize("another_leads", [False, True])
def test_a_subscription_that_is_closed_ends_whoever_iterates(
    bus: Station, another_leads: bool
) -> None:
    one = bus.connect()
    leading = in_thread(lambda: one.topic("work").receive(timeout_s=LONG_S))
    if another_leads:
        until(lambda: one._leading)
    news = one.topic("news").subscribe()
    heard = in_thread(lambda: [message.body for message in news])
    until(lambda: news._inbox.waiters)
    bus.connect().topic("news").publish(b"one", timeout_s=LONG_S)
    until(lambda: news._inbox.arrived == 1 and news._inbox.waiters)
    with stopped(bus):  # so nothing comes that would wake anybody
        news.close()
        assert heard.result(LONG_S) == [b"one"]
    assert list(news) == []
    with one.topic("news").subscribe(timeout_s=LONG_S) as again:
        news.close()  # once more is no harm to the next one
        bus.connect().topic("news").publish(b"two", timeout_s=LONG_S)
        assert next(again).body == b"two"
    bus.connect().topic("work").send(b"", timeout_s=LONG_S)
    assert leading.result(LONG_S).body == b""


async def test_a_subscription_of_a_loop_ends_whoever_iterates(bus: Station) -> None:
    async with AsyncBus(bus.path, HELLO) as one:
        news = await one.topic("news").subscribe()

        async def listen() -> list[Any]:
            return [message.body async for message in news]

        listening = asyncio.create_task(listen())
        await one.topic("news").publish(b"one")
        await asyncio.to_thread(until, lambda: news._inbox.arrived and news._inbox.waiters)
        news.close()
        assert await asyncio.wait_for(listening, LONG_S) == [b"one"]


def test_who_is_waken_while_there_is_no_daemon_does_not_spin(bus: Station) -> None:
    one = bus.connect()
    news = one.topic("news").subscribe()
    waiting = in_thread(lambda: one.topic("work").receive(timeout_s=LONG_S))
    until(lambda: one._leading)
    bus.stop()
    until(lambda: not one.session.is_connected)
    news.close()
    until(lambda: not one._polling.is_woken)
    bus.start()
    bus.connect().topic("work").send(b"", timeout_s=LONG_S)
    assert waiting.result(LONG_S).body == b""


def frames_of(error: BaseException) -> int:
    """How many frames an error keeps."""
    return len(list(traceback.walk_tb(error.__traceback__)))


@pytest.mark.parametrize("why", ["lost", "closed"])
def test_an_error_keeps_nothing_of_those_who_have_heard_it_before(why: str) -> None:
    session = Session(0, lambda: None)
    session.connect("me", Policy())

    def call() -> None:
        steps = operations.call(session, "work", Encoded(bytes(1000)), Sending())
        slot, _ = next(steps)
        slot.fill(lost=True)
        steps.send(True)

    def failed() -> int:
        with pytest.raises(UnavailableError) as raised:
            call()
        return frames_of(raised.value)

    if why == "closed":
        session.close(UnavailableError("cannot use the bus: it was closed"))
    assert failed() == failed()


def test_what_is_taken_back_is_said_though_the_operation_fails(bus: Station) -> None:
    """A call whose time is over leaves nothing in the broker, even if its caller says no more."""
    one = bus.connect()
    with pytest.raises(DeadlineError):
        one.topic("work").call(b"", timeout_s=0.05)
    until(lambda: bus.do(lambda: bus.broker.waiting("work")) == 0)

    def interrupted() -> None:
        def steps() -> Any:
            one.session.emit("send", "orders", b"said")
            raise KeyboardInterrupt
            yield

        with suppress(KeyboardInterrupt):
            one.run(steps())

    interrupted()
    until(lambda: bus.do(lambda: bus.broker.waiting("orders")) == 1)


@pytest.mark.parametrize("loop", [False, True])
def test_a_program_finds_a_daemon_that_listens_elsewhere(
    bus: Station, tmp_path: Path, loop: bool
) -> None:
    one: Any
    if loop:
        asyncio.run(moved_under_a_loop(bus, tmp_path))
        return
    with Bus(lambda: bus.path, HELLO, timeout_s=LONG_S) as one:
        one.topic("jobs", durable=True).send(b"before")
        move(bus, tmp_path)
        one.topic("jobs", durable=True).send(b"after", timeout_s=LONG_S)


async def moved_under_a_loop(bus: Station, tmp_path: Path) -> None:
    async with AsyncBus(lambda: bus.path, HELLO) as one:
        await one.topic("jobs", durable=True).send(b"before")
        await asyncio.to_thread(move, bus, tmp_path)
        await one.topic("jobs", durable=True).send(b"after", timeout_s=LONG_S)


def move(bus: Station, tmp_path: Path) -> None:
    bus.stop()
    bus.path = tmp_path / "elsewhere" / "bus"
    bus.start()


async def test_a_reply_of_many_bytes_is_copied_beside_the_loop(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Awaited or not; small ones go at once."""
    large, copied = bytes(3 * limits.MIB), []
    async with AsyncBus(bus.path, HELLO) as caller, AsyncBus(bus.path, HELLO) as server:
        allocate = Pool.allocate

        def allocating(pool: Pool, size: int, *, wait_s: float = 0.0) -> Buffer:
            copied.append(threading.current_thread() is threading.main_thread())
            return allocate(pool, size, wait_s=wait_s)

        monkeypatch.setattr(Pool, "allocate", allocating)
        for awaited in (True, False):
            calling = asyncio.create_task(caller.topic("work").call(b"", timeout_s=LONG_S))
            message: Message = await server.topic("work").receive(timeout_s=LONG_S)
            replying = message.reply(large)
            if awaited:
                await replying
            assert await calling == large
        assert copied == [False, False]
        calling = asyncio.create_task(caller.topic("work").call(b"", timeout_s=LONG_S))
        async with server.topic("work").receive(timeout_s=LONG_S) as message:
            message.reply(b"small")
        assert await calling == b"small"


async def test_a_reply_that_cannot_be_sent_is_heard_by_both(bus: Station) -> None:
    async with (
        AsyncBus(bus.path, HELLO) as caller,
        AsyncBus(bus.path, HELLO, shared_bytes_max=2 * limits.MIB) as server,
    ):
        calling = asyncio.create_task(caller.topic("work").call(b"", timeout_s=LONG_S))
        message = await server.topic("work").receive(timeout_s=LONG_S)
        with pytest.raises(TooLargeError):
            await message.reply(bytes(limits.FRAME_BYTES_MAX // 2 + 1))
        with pytest.raises(TooLargeError):
            await calling


def test_descriptors_of_a_flood_are_closed_once(
    bus: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What waits for room belongs to the topic; what was too much, to who cuts the connection."""
    sent = tmp_path / "sent"  # a file that nothing else in this process opens
    sent.touch()
    closed: list[int] = []
    twice: list[int] = []
    close = os.close

    def closing(descriptor: int) -> None:
        closed.append(descriptor)
        try:
            close(descriptor)
        except OSError:
            twice.append(descriptor)
            raise

    def descriptors() -> int:
        """Of what is sent: others come and go with what else this process does."""
        found = 0
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found += descriptor.readlink() == sent
        return found

    bus.connect().topic("narrow").send(b"fills it", timeout_s=LONG_S)
    until(lambda: bus.do(lambda: bus.broker.waiting("narrow")) == 1)  # before the flood comes
    before = descriptors()
    monkeypatch.setattr(envelope.os, "close", closing)
    null = os.open(sent, os.O_RDONLY)
    count = limits.SEND_QUEUE_BYTES_MAX // limits.DESCRIPTOR_BYTES + 10
    with greet(str(bus.path), HELLO, LONG_S) as peer:
        reader = FrameReader(peer)
        name = ""
        while not name:
            for _, frame, _ in reader.read() or ():
                name = msgspec.msgpack.decode(body_in(frame), type=Welcome).name
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null]))]
        with suppress(OSError):
            for number in range(1, count + 1):
                said = Envelope(id=number, verb="send", topic="narrow", sender=name, descriptors=1)
                peer.sendmsg([encode(said)], rights)
        until(lambda: bus.do(lambda: bus.broker.peers) == 1)
        reader.close()
    close(null)
    assert len(closed) >= limits.SEND_QUEUE_BYTES_MAX // limits.DESCRIPTOR_BYTES
    until(lambda: descriptors() <= before)
    assert twice == []
