"""The bus for event loops: what differs from that for threads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bus.harness import Station, station
from tests.processes import until
from zenos.bus import aio, aio_topics, reference, sync, sync_topics
from zenos.bus.aio import AsyncBus, connect_async
from zenos.bus.aio_topics import Message, Topic
from zenos.bus.envelope import Hello
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    NotFoundError,
    UnavailableError,
)
from zenos.core.messages import MessageChanges, TopicSettings

LONG_S = 60.0
# Of threads alone: a loop writes by itself, at the end of its turn.
NO_PAIR = {*reference._INTERNAL, "flush"}
SETTINGS = {"narrow": TopicSettings(messages=2), "once": TopicSettings(deliveries=1)}


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus", **SETTINGS) as made:
        yield made


@asynccontextmanager
async def connected(bus: Station) -> AsyncIterator[AsyncBus]:
    async with AsyncBus(bus.path, Hello(task="", generation=0, token="x", program=True)) as made:
        await made.topic("settled", durable=True).send(b"", timeout_s=LONG_S)
        yield made


async def test_connect_async_is_awaited_or_entered(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = Hello(task="", generation=0, token="x", program=True)
    monkeypatch.setattr("zenos.bus.address.find", lambda home: (lambda: bus.path, hello))
    async with connect_async(timeout_s=LONG_S) as one:
        await one.topic("orders").send("tea")
        two = await connect_async(timeout_s=LONG_S)
        async with two.topic("orders").receive(timeout_s=LONG_S) as message:
            assert message.body == "tea"
        await two.close()
        async with await connect_async(timeout_s=LONG_S) as three:
            assert three.name != one.name
        four = await asyncio.create_task(connect_async(timeout_s=LONG_S))
        await four.close()
    for closed in (one, two, three, four):
        with pytest.raises(UnavailableError, match="closed"):
            await closed.topic("orders").send("tea")


@pytest.mark.parametrize("durable", [False, True])
async def test_send_and_receive(bus: Station, durable: bool) -> None:
    async with connected(bus) as sender, connected(bus) as receiver:
        for number in range(100):
            await sender.topic("orders", durable=durable).send(number)
        topic = receiver.topic("orders", durable=durable, prefetch=10)
        for number in range(99):
            async with topic.receive(timeout_s=LONG_S) as message:
                assert message.body == number
        last = await topic.receive(timeout_s=LONG_S)
        await last.ack()
        with pytest.raises(DeadlineError):
            await topic.receive(timeout_s=0.02)


async def test_all_that_is_said_of_a_message_arrives(bus: Station) -> None:
    """What a thread's bus says, a loop's says as well."""
    said: dict[str, Any] = {"headers": {"k": "v"}, "priority": 7}
    async with connected(bus) as one, connected(bus) as two:
        for durable in (False, True):
            topic = two.topic("orders", durable=durable)
            sent = one.topic("orders", durable=durable)
            assert await sent.send(1, id="a", deadline_s=LONG_S, **said) == "a"
            await sent.send(2, priority=8)
            async with topic.receive(timeout_s=LONG_S) as first, topic.receive() as message:
                assert first.body == 2
                assert (message.id, message.sender, message.body) == ("a", one.name, 1)
                assert (message.headers["k"], message.priority) == ("v", 7)
                assert message.received.envelope.deadline > 0 or durable
        async with await two.topic("news").subscribe(timeout_s=LONG_S) as news:
            await one.topic("news").publish(3, deadline_s=LONG_S, **said)
            published = await anext(news)
            assert (published.headers["k"], published.priority) == ("v", 7)
            assert published.received.envelope.deadline > 0
        calling = asyncio.create_task(one.topic("work").call(4, timeout_s=LONG_S, **said))
        asked = await two.topic("work").receive(timeout_s=LONG_S)
        assert (asked.headers["k"], asked.priority) == ("v", 7)
        await asked.reply(b"done")
        assert await calling == b"done"


async def test_a_delay_a_reason_and_a_lease_are_kept(bus: Station) -> None:
    async with connected(bus) as one:
        jobs, once = (one.topic(name, durable=True) for name in ("jobs", "once"))
        await jobs.send(b"later", delay_s=2.0)
        await jobs.send(b"now")
        slow = await jobs.receive(timeout_s=LONG_S, lease_s=0.05)
        assert slow.body == b"now"
        async with jobs.receive(timeout_s=LONG_S) as again:  # its lease has ended
            assert (again.body, again.failures) == (b"now", 1)
            with pytest.raises(ConflictError, match="lease has ended"):
                await slow.ack()
        async with jobs.receive(timeout_s=LONG_S) as message:
            assert message.body == b"later"
        await once.send(b"poison")
        await (await once.receive(timeout_s=LONG_S)).nack(reason="it is poison")
        await one.topic("settled", durable=True).send(b"", timeout_s=LONG_S)
        dead = bus.do(lambda: list(bus.topics.topics.topics["once"].dead.values()))
        assert [message.dead for message in dead] == ["it is poison"]


async def test_a_block_that_fails_gives_its_message_back(bus: Station) -> None:
    async with connected(bus) as one:
        topic = one.topic("jobs", durable=True)
        await topic.send(b"job")
        with pytest.raises(ZeroDivisionError):
            async with topic.receive(timeout_s=LONG_S):
                raise ZeroDivisionError
        async with topic.receive(timeout_s=LONG_S) as again:
            assert again.failures == 1
            await again.extend(LONG_S)


async def test_many_calls_at_once(bus: Station) -> None:
    async def work(body: int) -> int:
        if body == 13:
            raise NotFoundError("cannot find 13")
        await asyncio.sleep(0)
        return body * 2

    async with connected(bus) as server, connected(bus) as caller:
        serving = [asyncio.create_task(server.topic("work").serve(work)) for _ in range(5)]
        calls = [caller.topic("work").call(n, timeout_s=LONG_S) for n in range(300)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[13], NotFoundError)
        assert [r for n, r in enumerate(results) if n != 13] == [
            2 * n for n in range(300) if n != 13
        ]
        await server.close()
        await asyncio.gather(*serving)


async def test_publish_and_subscribe(bus: Station) -> None:
    async with connected(bus) as publisher, connected(bus) as listener:
        async with await listener.topic("news").subscribe(timeout_s=LONG_S) as news:
            for number in range(1000):
                await publisher.topic("news").publish(number)
            heard = []
            async for message in news:
                heard.append(message.body)
                if len(heard) == 1000:
                    break
        assert heard == list(range(1000))


async def test_whoever_is_cancelled_takes_nothing_from_others(bus: Station) -> None:
    async with connected(bus) as one, connected(bus) as two:
        for durable in (False, True):
            mine, other = (b.topic("orders", durable=durable) for b in (one, two))
            for number in range(20):
                waiting = asyncio.ensure_future(mine.receive(timeout_s=LONG_S))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                await other.send(number)
                async with mine.receive(timeout_s=LONG_S) as message:
                    assert message.body == number


async def test_a_full_topic_lets_its_senders_wait(bus: Station) -> None:
    async with connected(bus) as one, connected(bus) as two:
        topic = one.topic("narrow")
        for number in range(4):
            await topic.send(number, timeout_s=LONG_S)
        with pytest.raises(BusyError):
            await topic.send(b"", timeout_s=0.05)
        rest = asyncio.gather(*(topic.send(number, timeout_s=LONG_S) for number in range(4, 50)))
        for number in range(50):
            async with two.topic("narrow").receive(timeout_s=LONG_S) as message:
                assert message.body == number
        await rest


async def test_it_goes_on_after_a_restart_and_ends_when_closed(bus: Station) -> None:
    async with connected(bus) as one:
        topic = one.topic("jobs", durable=True)
        await asyncio.to_thread(bus.stop)
        sending = asyncio.create_task(topic.send(b"meanwhile", timeout_s=LONG_S))
        await asyncio.to_thread(bus.start)
        await sending
        async with topic.receive(timeout_s=LONG_S) as message:
            assert message.body == b"meanwhile"
        waiting = asyncio.ensure_future(one.topic("orders").receive())
        await asyncio.sleep(0.01)
        await one.close()
        with pytest.raises(UnavailableError, match="closed"):
            await waiting


async def received(topic: Topic) -> Message:
    return await topic.receive(timeout_s=LONG_S)


async def test_what_was_on_its_way_to_who_gave_up_is_not_lost(bus: Station) -> None:
    """Within the lease, and without a failure: others may have it at once."""
    async with connected(bus) as sender, connected(bus) as receiver:
        topic = receiver.topic("jobs", durable=True)
        for number in range(40):
            waiting = asyncio.create_task(received(topic))
            await asyncio.sleep(0)
            sending = asyncio.create_task(sender.topic("jobs", durable=True).send(number))
            for _ in range(number):  # at different moments of its way
                await asyncio.sleep(0)
            waiting.cancel()
            came, _ = await asyncio.gather(waiting, sending, return_exceptions=True)
            if isinstance(came, BaseException):
                came = await topic.receive(timeout_s=limits.LEASE_S / 2)
            assert (came.body, came.failures) == (number, 0)
            await came.ack()


async def test_a_call_that_is_cancelled_is_withdrawn(bus: Station) -> None:
    async with connected(bus) as caller:
        calling = asyncio.create_task(caller.topic("square").call(3, timeout_s=LONG_S))
        await asyncio.to_thread(until, lambda: bus.do(lambda: bus.broker.waiting("square")) == 1)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await asyncio.to_thread(until, lambda: bus.do(lambda: bus.broker.waiting("square")) == 0)


async def test_more_answers_at_once_than_a_queue_holds_reach_who_asked(
    bus: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, count = bus.store.commit_messages, 2 * limits.SEND_QUEUE_FRAMES_MAX + 500
    slow = asyncio.Event()

    async def slowly(changes: MessageChanges) -> None:
        while not slow.is_set():  # noqa: ASYNC110 - it belongs to another event loop
            await asyncio.sleep(0.01)
        await commit(changes)

    async with connected(bus) as sender:
        monkeypatch.setattr(bus.store, "commit_messages", slowly)
        topic = sender.topic("flood", durable=True)
        sending = [asyncio.create_task(topic.send(b"", timeout_s=2 * LONG_S)) for _ in range(count)]
        await asyncio.to_thread(until, lambda: bus.do(bus.requests) == count)
        slow.set()
        await asyncio.gather(*sending)
        await topic.send(b"the topics' loop goes on", timeout_s=LONG_S)


@pytest.mark.parametrize(
    ("threads", "loops"),
    [
        (sync.Bus, aio.AsyncBus),
        (sync_topics.Topic, aio_topics.Topic),
        (sync_topics.Message, aio_topics.Message),
        (sync_topics.Subscription, aio_topics.Subscription),
    ],
)
def test_a_loop_s_bus_has_the_methods_of_a_thread_s(threads: type, loops: type) -> None:
    """With the same parameters and defaults."""
    for name, method in vars(threads).items():
        if name.startswith("_") or not inspect.isfunction(method) or name in NO_PAIR:
            continue
        other = vars(loops)[name]
        ours, theirs = (inspect.signature(one).parameters for one in (method, other))
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ], name
