"""Readers that do not do their part, clocks that jump, and more of everything than usual."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.harness import Station, in_thread, station
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.envelope import Hello
from zenos.bus.stream import Heartbeat
from zenos.core.messages import Message, TopicSettings

LONG_S = 60.0
HELLO = Hello(task="", generation=0, token="x", program=True)
DAY_S = 86400.0


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(
        tmp_path / "run" / "bus",
        jobs=TopicSettings(deliveries=3, lease_s=0.1),
        patient=TopicSettings(deliveries=1),
    ) as made:
        yield made


def dead(bus: Station, topic: str) -> list[Message]:
    def look() -> list[Message]:
        known = bus.topics.topics.topics.get(topic)
        return list(known.dead.values()) if known is not None else []

    return bus.do(look)


def test_who_never_acknowledges_gets_it_again_until_it_is_dead_and_why(bus: Station) -> None:
    sender, never, others = bus.connect(), bus.connect(), bus.connect()
    sender.topic("jobs", durable=True).send(b"poison", id="poison")
    kept = [never.topic("jobs", durable=True).receive(timeout_s=LONG_S) for _ in range(3)]
    assert [(message.id, message.failures) for message in kept] == [
        ("poison", failures) for failures in range(3)
    ]
    until(lambda: dead(bus, "jobs"))
    (message,) = dead(bus, "jobs")
    assert (message.id, message.body, message.failures) == ("poison", b"poison", 3)
    assert message.dead == "its receiver did not acknowledge it in time"
    sender.topic("jobs", durable=True).send(b"next")
    with others.topic("jobs", durable=True).receive(timeout_s=LONG_S, lease_s=LONG_S) as found:
        assert found.body == b"next"


def test_a_reader_that_is_slower_than_its_sender_slows_it_and_loses_nothing(bus: Station) -> None:
    """What waits is bounded, by the topic and by what the receiver has asked for."""
    sender, slow = bus.connect(), bus.connect().topic("many", prefetch=10)
    topic, count, most = sender.topic("many"), 5000, 0
    sending = in_thread(
        lambda: [topic.send([n, bytes(10_000)], timeout_s=LONG_S) for n in range(count)]
    )
    for number in range(count):
        with slow.receive(timeout_s=LONG_S) as message:
            assert message.body[0] == number
        if number % 100 == 0:
            most = max(most, *bus.do(lambda: [p.waiting.count for p in bus.broker._peers]))
    sending.result(LONG_S)
    assert most <= 10 + 1  # with a word of what was taken


def test_a_clock_that_jumps_changes_no_order_and_ends_no_lease(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sender, broker and receiver, while messages with leases, delays and deadlines wait."""
    seed = 7
    chance, wall, ahead_s = random.Random(seed), time.time, [0.0]  # noqa: S311
    monkeypatch.setattr(time, "time", lambda: wall() + ahead_s[0])
    sender, receiver = bus.connect(), bus.connect().topic("patient", durable=True)
    topic, transient = sender.topic("patient", durable=True), sender.topic("patient")
    listener = bus.connect().topic("patient")
    found = []
    for number in range(30):
        topic.send(number, deadline_s=LONG_S, timeout_s=LONG_S)
        transient.send(number, deadline_s=LONG_S, timeout_s=LONG_S)
        message = receiver.receive(timeout_s=LONG_S)
        ahead_s[0] = chance.uniform(-DAY_S, DAY_S)
        topic.send(b"delayed", delay_s=0.01, id=f"delayed {number}", timeout_s=LONG_S)
        assert receiver.receive(timeout_s=LONG_S).body == b"delayed"
        message.ack()  # refused, had it gone to somebody else
        found.append(message.body)
        with listener.receive(timeout_s=LONG_S) as passing:
            assert passing.body == number
    assert found == list(range(30)), seed
    assert dead(bus, "patient") == []


def test_a_clock_set_back_between_two_daemons_delays_nothing(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bus.connect()
    topic = one.topic("patient", durable=True)
    for number in range(3):
        topic.send(number, delay_s=0.05, timeout_s=LONG_S)
    held = topic.receive(timeout_s=LONG_S)
    bus.stop()
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - DAY_S)
    bus.start()
    held.ack()
    for number in (1, 2):
        with topic.receive(timeout_s=LONG_S) as message:
            assert message.body == number


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open some thousand files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4096:
        pytest.skip("this machine allows no process 4,096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 4096), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_a_thousand_connections(tmp_path: Path) -> None:
    """Each sends, receives, subscribes and calls; none is refused or cut."""
    calm = Heartbeat(silent_s=3600.0)
    with station(tmp_path / "run" / "bus", calm) as bus:
        asyncio.run(meet(bus, 1000))
        until(lambda: bus.do(lambda: bus.broker.peers) == 0)


async def meet(bus: Station, count: int) -> None:
    ours = [AsyncBus(bus.path, HELLO) for _ in range(count)]
    try:
        served = asyncio.create_task(ours[0].topic("square").serve(square))
        news = await asyncio.gather(*(one.topic("news").subscribe() for one in ours))
        await ours[0].topic("news").publish(b"all")
        assert {(await anext(one)).body for one in news} == {b"all"}
        calls = [one.topic("square").call(n, timeout_s=LONG_S) for n, one in enumerate(ours)]
        assert await asyncio.gather(*calls) == [n * n for n in range(count)]
        for durable in (False, True):
            name = f"x{int(durable)}"
            sends = [
                one.topic(name, durable=durable).send(n, timeout_s=LONG_S)
                for n, one in enumerate(ours)
            ]
            await asyncio.gather(*sends)
            took = await asyncio.gather(*(take(one, name, durable) for one in ours))
            assert sorted(took) == list(range(count))
        assert bus.do(lambda: bus.broker.peers) == count
        served.cancel()
    finally:
        await asyncio.gather(*(one.close() for one in ours))


async def square(n: int) -> int:
    return n * n


async def take(one: AsyncBus, name: str, durable: bool) -> int:
    async with one.topic(name, durable=durable).receive(timeout_s=LONG_S) as message:
        return int(message.body)
