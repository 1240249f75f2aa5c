"""Messages that were given together, and come one by one: nobody waits for what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.bus.harness import in_thread
from tests.bus.scripted import HELLO, ScriptedBroker
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.envelope import body_of
from zenos.bus.sync import Bus
from zenos.bus.terms import Nacked, Want
from zenos.core.errors import BusyError, DeadlineError

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


def await_waiting(bus: Bus | AsyncBus, count: int = 1) -> None:
    """So many wait for a message."""
    until(lambda: len(bus.session.received["jobs", True].waiters) == count)


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
            await_waiting(bus)
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
    first = broker.asked("want")
    await_waiting(bus, 3)
    for body in (b"0", b"1", b"2"):
        broker.give(first.id, body, together=3)
    assert {one.result(LONG_S).body for one in receiving} == {b"0", b"1", b"2"}
    receiving = [in_thread(topic.receive)]
    broker.give(broker.asked("want").id, b"3", together=1)  # and nothing else was asked before
    assert receiving[0].result(LONG_S).body == b"3"


def test_only_as_many_wait_for_the_rest_as_it_is_enough_for(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = in_thread(topic.receive)
    first = broker.asked("want")
    broker.give(first.id, b"0", together=2)
    receiving.result(LONG_S)
    following = in_thread(topic.receive)
    await_waiting(bus)
    other = in_thread(topic.receive)
    second = broker.asked("want")
    broker.give(first.id, b"1", together=2)
    assert following.result(LONG_S).body == b"1"
    broker.give(second.id, b"2", together=1)
    assert other.result(LONG_S).body == b"2"


def asked(broker: ScriptedBroker) -> tuple[int, Want]:
    """How many are asked for next, and on what terms."""
    envelope = broker.asked("want")
    return envelope.id, body_of(envelope, Want)


def test_no_more_is_asked_for_than_there_are_waiting_or_wanted_in_advance(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = [in_thread(topic.receive)]
    first, want = asked(broker)
    assert want.count == 2
    receiving.append(in_thread(topic.receive))
    await_waiting(bus, 2)
    receiving.append(in_thread(topic.receive))
    second, want = asked(broker)
    assert want.count == 1, "the third is the first that has nothing to come"
    broker.give(first, b"0", together=1)
    third, want = asked(broker)
    assert want.count == 1, "of two that were asked for one came"
    broker.give(second, b"1", together=1)
    broker.give(third, b"2", together=1)
    assert {one.result(LONG_S).body for one in receiving} == {b"0", b"1", b"2"}


def test_who_gives_up_takes_back_what_was_asked_for_it_alone(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True)
    staying = in_thread(topic.receive)
    first, _ = asked(broker)
    leaving = in_thread(partial(topic.receive, timeout_s=0.01))
    second, _ = asked(broker)
    withdrawn = broker.asked("withdraw")
    assert withdrawn.to == second
    broker.answer(withdrawn.id, 1)
    with pytest.raises(DeadlineError):
        leaving.result(LONG_S)
    broker.give(first, b"0", together=1)
    assert staying.result(LONG_S).body == b"0"


def test_what_is_on_its_way_to_who_gives_up_is_its_own(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True)
    leaving = in_thread(partial(topic.receive, timeout_s=0.01))
    first, _ = asked(broker)
    withdrawn = broker.asked("withdraw")
    broker.answer(withdrawn.id, 0)
    broker.give(first, b"0", together=1)
    assert leaving.result(LONG_S).body == b"0"


def test_terms_differ_and_so_does_what_is_asked(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True, prefetch=2)
    receiving = [in_thread(topic.receive)]
    first, want = asked(broker)
    assert want == Want(count=2)
    receiving.append(in_thread(partial(topic.receive, lease_s=5)))
    second, want = asked(broker)
    assert want == Want(count=1, lease_s=5)
    broker.refuse(second, BusyError("cannot: no"))
    with pytest.raises(BusyError):
        receiving[1].result(LONG_S)
    broker.give(first, b"0", together=1)
    assert receiving[0].result(LONG_S).body == b"0"


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
                await asyncio.to_thread(await_waiting, bus)
            else:
                if body == b"1":
                    await asyncio.to_thread(broker.asked, "withdraw")
                await asyncio.to_thread(broker.asked, "want")


def test_a_request_that_is_refused_fails_only_who_has_no_other(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True)
    older = in_thread(topic.receive)
    first, _ = asked(broker)
    newer = in_thread(topic.receive)
    second, _ = asked(broker)
    broker.refuse(second, BusyError("cannot: no"))
    with pytest.raises(BusyError):
        newer.result(LONG_S)
    broker.give(first, b"0", together=1)
    assert older.result(LONG_S).body == b"0"


def test_a_message_is_for_who_asked_for_its_lease(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True)
    short = in_thread(topic.receive)
    first, _ = asked(broker)
    long = in_thread(partial(topic.receive, lease_s=3600))
    second, want = asked(broker)
    assert want.lease_s == 3600
    broker.give(second, b"1", together=1)
    assert long.result(LONG_S).body == b"1"
    broker.give(first, b"0", together=1)
    assert short.result(LONG_S).body == b"0"


def test_many_are_all_that_were_given_together(broker: ScriptedBroker, bus: Bus) -> None:
    topic = bus.topic("jobs", durable=True)
    receiving = in_thread(topic.receive_many, 5)
    first, want = asked(broker)
    assert want.count == 5
    for body in (b"0", b"1", b"2"):
        broker.give(first, body, together=3)
    assert [message.body for message in receiving.result(LONG_S)] == [b"0", b"1", b"2"]


def test_of_many_that_come_too_late_there_are_those_that_came(
    broker: ScriptedBroker, bus: Bus
) -> None:
    topic = bus.topic("jobs", durable=True)
    receiving = in_thread(partial(topic.receive_many, 5, timeout_s=0.2))
    first, _ = asked(broker)
    broker.give(first, b"0", together=2)
    assert [message.body for message in receiving.result(LONG_S)] == [b"0"]


async def test_what_nobody_has_taken_is_given_back_at_the_end(broker: ScriptedBroker) -> None:
    accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
    async with AsyncBus(broker.path, HELLO) as bus:
        await accepting
        topic = bus.topic("jobs", durable=True, prefetch=2)
        receiving = asyncio.ensure_future(topic._receive(LONG_S, None))
        first = await asyncio.to_thread(broker.asked, "want")
        for body in (b"0", b"1"):
            broker.give(first.id, body, together=2)
        assert (await receiving).body == b"0"
        inbox = bus.session.received["jobs", True]
        await asyncio.to_thread(until, lambda: bool(inbox.messages))
    given_back = await asyncio.to_thread(broker.asked, "nack")
    assert given_back.key == "1"
    assert not body_of(given_back, Nacked).failed
