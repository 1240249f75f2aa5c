"""Messages that were given together, and come one by one: nobody waits for what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.harness import in_thread
from tests.bus.scripted import HELLO, ScriptedBroker
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.sync import Bus
from zenos.core.errors import DeadlineError

LONG_S = 30.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(tmp_path / "bus")
    yield made
    made.close()


@pytest.fixture
def bus(broker: ScriptedBroker) -> Iterator[Bus]:
    accepting = in_thread(broker.accept)
    with Bus(broker.path, HELLO, timeout_s=LONG_S) as made:
        accepting.result(LONG_S)
        yield made


def await_follower(bus: Bus | AsyncBus) -> None:
    """Somebody waits for the rest of what was asked for before."""
    until(lambda: bus.session.received["jobs", True].followers)


def test_the_rest_of_a_delivery_wakes_who_has_asked_again(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=3)
    receiving = in_thread(topic.receive)
    first = broker.asked("want")
    broker.give(first.id, b"0")
    assert receiving.result(LONG_S).body == b"0"
    receiving = in_thread(topic.receive)
    second = broker.asked("want")
    broker.give(first.id, b"1")
    assert receiving.result(LONG_S).body == b"1"
    assert broker.asked("withdraw").to == second.id
    broker.give(second.id, b"2")  # which was on its way by then
    assert topic.receive(timeout_s=LONG_S).body == b"2"


def test_nothing_is_asked_for_while_enough_is_on_its_way(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=3)
    receiving = in_thread(topic.receive)
    first = broker.asked("want")
    for body in (b"0", b"1", b"2"):
        broker.give(first.id, body, together=3)
        assert receiving.result(LONG_S).body == body
        receiving = in_thread(topic.receive)
        if body != b"2":
            await_follower(bus)
    second = broker.asked("want")
    broker.give(second.id, b"3", together=1)
    assert receiving.result(LONG_S).body == b"3"


def test_who_waits_for_the_rest_keeps_a_deadline(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = in_thread(topic.receive)
    first = broker.asked("want")
    broker.give(first.id, b"0", together=2)
    assert receiving.result(LONG_S).body == b"0"
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0.01)
    broker.give(first.id, b"1", together=2)
    assert topic.receive(timeout_s=LONG_S).body == b"1"


def test_threads_that_share_a_bus_share_what_was_given_to_one(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=3)
    receiving = [in_thread(topic.receive) for _ in range(3)]
    first, *others = (broker.asked("want") for _ in receiving)
    for body in (b"0", b"1", b"2"):
        broker.give(first.id, body, together=3)
    assert {one.result(LONG_S).body for one in receiving} == {b"0", b"1", b"2"}
    assert {broker.asked("withdraw").to for _ in others} == {other.id for other in others}


def test_only_as_many_wait_for_the_rest_as_it_is_enough_for(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = in_thread(topic.receive)
    first = broker.asked("want")
    broker.give(first.id, b"0", together=2)
    receiving.result(LONG_S)
    following = in_thread(topic.receive)
    await_follower(bus)
    other = in_thread(topic.receive)
    second = broker.asked("want")
    broker.give(first.id, b"1", together=2)
    assert following.result(LONG_S).body == b"1"
    broker.give(second.id, b"2", together=1)
    assert other.result(LONG_S).body == b"2"


def test_the_rest_goes_first_to_who_has_asked_for_nothing_else(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = [in_thread(topic.receive) for _ in range(2)]
    first, second = broker.asked("want"), broker.asked("want")
    broker.give(first.id, b"0", together=2)
    until(lambda: any(one.done() for one in receiving))
    following = in_thread(topic.receive)
    await_follower(bus)
    broker.give(first.id, b"1", together=2)
    assert following.result(LONG_S).body == b"1"
    broker.give(second.id, b"2", together=1)
    assert {one.result(LONG_S).body for one in receiving} == {b"0", b"2"}


@pytest.mark.parametrize("together", [0, 3])
async def test_the_same_for_an_event_loop(broker: ScriptedBroker, together: int) -> None:
    accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
    async with AsyncBus(broker.path, HELLO) as bus:
        topic = bus.topic("jobs", durable=True, prefetch=3)
        await accepting
        receiving = asyncio.ensure_future(topic._receive(LONG_S, None))
        first = await asyncio.to_thread(broker.asked, "want")
        for body in (b"0", b"1", b"2"):
            broker.give(first.id, body, together)
            assert (await receiving).body == body
            if body == b"2":
                break
            receiving = asyncio.ensure_future(topic._receive(LONG_S, None))
            if together:
                await asyncio.to_thread(await_follower, bus)
            else:
                if body == b"1":
                    await asyncio.to_thread(broker.asked, "withdraw")
                await asyncio.to_thread(broker.asked, "want")
