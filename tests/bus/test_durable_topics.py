"""The loop around durable topics: nothing is answered before it is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.topic import Delivery
from zenos.bus.topics import Accepted
from zenos.core import limits
from zenos.core.clock import SystemClock
from zenos.core.errors import BusyError, ConflictError, StorageError, UnavailableError
from zenos.core.messages import Message, MessageChanges, TopicSettings
from zenos.store.memory import MemoryStore
from zenos.store.sqlite import SqliteStore


class Gate(MemoryStore):
    """A store whose commits wait, and fail, as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.begun = asyncio.Event()
        self.failing: StorageError | None = None
        self.failed = asyncio.Event()
        self.commits = 0

    async def commit_messages(self, changes: MessageChanges) -> None:
        self.begun.set()
        await self.open.wait()
        if self.failing is not None:
            self.failed.set()
            raise self.failing
        self.commits += 1
        await super().commit_messages(changes)


@asynccontextmanager
async def running(
    store: MemoryStore | SqliteStore, **settings: object
) -> AsyncIterator[DurableTopics]:
    chosen = TopicSettings(**settings)  # type: ignore[arg-type]
    made = DurableTopics(store, SystemClock(), await store.load_messages(), lambda _: chosen)
    looping = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        made.close()
        await looping


async def send(topics: DurableTopics, id_: str, **fields: object) -> ev.Result:
    message = Message(number=0, topic="t", id=id_, body=b"x", **fields)  # type: ignore[arg-type]
    return await topics.ask(ev.Send(request=topics.next_request(), message=message))


async def receive(topics: DurableTopics, receiver: str = "r", count: int = 1) -> list[Delivery]:
    event = ev.Receive(request=topics.next_request(), topic="t", receiver=receiver, count=count)
    result = await topics.ask(event)
    assert isinstance(result, list)
    return result


async def ack(topics: DurableTopics, delivery: Delivery) -> ev.Result:
    return await topics.ask(
        ev.Ack(
            request=topics.next_request(),
            topic="t",
            delivery=delivery.number,
            id=delivery.message.id,
        )
    )


async def test_what_was_answered_outlives_the_daemon(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    async with running(store) as topics:
        assert await send(topics, "a") == Accepted("a")
        assert await send(topics, "b") == Accepted("b")
        (held,) = await receive(topics)
        await ack(topics, held)
        (old,) = await receive(topics)
    await store.close()

    store = await SqliteStore.open(tmp_path / "db")
    async with running(store) as topics:
        assert await send(topics, "a") == Accepted("a", duplicate=True)
        assert await ack(topics, old) == 1, "nobody else has it"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(topics), 0)
    await store.close()


async def test_many_at_once_share_a_transaction_and_none_is_answered_before_it() -> None:
    store = Gate()
    async with running(store) as topics:
        store.open.clear()
        sends = [asyncio.create_task(send(topics, f"m{n}")) for n in range(500)]
        waiting = asyncio.create_task(receive(topics, count=500))
        done, _ = await asyncio.wait({*sends, waiting}, timeout=0.01)
        assert not done
        store.open.set()
        await asyncio.gather(*sends)
        received = await waiting
        assert store.commits <= 2
        assert {d.message.id for d in received} <= {m.id for m in await store.load_messages()}


async def test_what_was_given_to_who_gave_up_meanwhile_goes_to_others_at_once() -> None:
    store = Gate()
    async with running(store) as topics:
        store.open.clear()
        sending = asyncio.create_task(send(topics, "a"))
        waiting = asyncio.create_task(receive(topics, "impatient"))
        await store.begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        store.open.set()
        await sending
        (given,) = await asyncio.wait_for(receive(topics, "other"), limits.LEASE_S / 2)
        assert (given.message.id, given.message.failures) == ("a", 0)


async def test_a_disk_that_is_full_loses_nothing_and_says_so() -> None:
    store = Gate()
    async with running(store) as topics:
        store.failing = StorageError("cannot write: full")
        first = asyncio.create_task(send(topics, "a"))
        await store.failed.wait()
        with pytest.raises(UnavailableError, match="full"):
            await send(topics, "b")
        assert not first.done()
        store.failing = None
        assert await first == Accepted("a")
        assert await send(topics, "b") == Accepted("b")


async def test_what_nobody_waits_for_any_more_goes_to_the_next() -> None:
    store = Gate()
    async with running(store, deliveries=1) as topics:
        await send(topics, "a")
        store.open.clear()
        blocker = asyncio.create_task(send(topics, "b"))  # its transaction is being written
        taking = asyncio.create_task(receive(topics))
        other = asyncio.create_task(receive(topics, "other", count=2))
        await asyncio.sleep(0)
        store.open.set()
        taking.cancel()
        await blocker
        given = await other
        while len(given) < 2:
            given += await receive(topics, "other", count=2)
        assert [(d.message.id, d.message.failures) for d in given] == [("a", 0), ("b", 0)]


async def test_a_lease_ends_by_itself_and_late_words_are_refused() -> None:
    async with running(MemoryStore(), lease_s=0.05) as topics:
        await send(topics, "a")
        (late,) = await receive(topics)
        (again,) = await receive(topics, "other")
        assert again.message.failures == 1
        with pytest.raises(ConflictError, match="lease has ended"):
            await ack(topics, late)


async def test_too_much_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenos.bus.durable_topics.EVENTS_WAITING_MAX", 2)
    store = Gate()
    async with running(store) as topics:
        tasks = [asyncio.create_task(send(topics, f"m{n}")) for n in range(3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Accepted, Accepted, BusyError]


@pytest.mark.parametrize("kind", [ev.SendSeveral, ev.AckSeveral])
async def test_each_of_several_counts(
    monkeypatch: pytest.MonkeyPatch, kind: type[ev.SendSeveral | ev.AckSeveral]
) -> None:
    monkeypatch.setattr("zenos.bus.durable_topics.EVENTS_WAITING_MAX", 5)
    async with running(MemoryStore()) as topics:
        await send(topics, "first")
        request, event = topics.next_request(5), ev.Event(request=0)
        if kind is ev.SendSeveral:
            made = [Message(number=0, topic="t", id=f"m{n}") for n in range(5)]
            event = ev.SendSeveral(request=request, topic="t", messages=made)
        else:
            settled = [(number, "m") for number in range(5)]
            event = ev.AckSeveral(request=request, topic="t", settled=settled)
        several = asyncio.create_task(topics.ask(event))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await send(topics, "beyond")
        await several
        await send(topics, "later")


async def test_a_daemon_that_goes_down_takes_nothing() -> None:
    async with running(MemoryStore()) as topics:
        pass
    with pytest.raises(UnavailableError):
        await send(topics, "a")
