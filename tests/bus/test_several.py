"""Durable messages that go together: in one frame, one after another as if each had come alone."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.bus.harness import Station, in_thread, station
from tests.bus.scripted import ScriptedBroker
from tests.bus.test_durable_topics import Gate, running
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.broker import Broker
from zenos.bus.envelope import Envelope, FrameError, Hello, Verb, encode
from zenos.bus.several import body_of_envelopes, numbers_of, parts_of
from zenos.bus.stream import FrameReader, greet
from zenos.bus.sync import Bus
from zenos.bus.sync_topics import Topic
from zenos.bus.terms import Want
from zenos.core import limits
from zenos.core.errors import BusyError, ConflictError, DeadlineError, InvalidError
from zenos.core.messages import TopicSettings

LONG_S = 60.0
HELLO = Hello(task="", generation=0, token="x", program=True)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    settings: dict[str, Any] = {
        "narrow": TopicSettings(messages=2),
        "refusing": TopicSettings(messages=2, when_full="refuse"),
        "short": TopicSettings(lease_s=0.01),
    }
    with station(tmp_path / "run" / "bus", **settings) as made:
        yield made


@contextmanager
def scripted(path: Path, *, several: bool) -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker(path / "bus", several=several)
    try:
        yield broker
    finally:
        broker.close()


def test_many_arrive_in_the_order_of_sending(bus: Station) -> None:
    jobs = bus.connect().topic("jobs", durable=True)
    bodies = [b"x" * size for size in (0, 40_000, 10, 100_000, 3)] + [{"n": n} for n in range(2500)]
    ids = jobs.send_many(bodies, timeout_s=LONG_S)
    assert len(set(ids)) == len(bodies)
    found: list[Any] = []
    while len(found) < len(bodies):
        with jobs.receive_many(700, timeout_s=LONG_S) as messages:
            assert 1 <= len(messages) <= 700
            found += [(message.id, message.body) for message in messages]
    assert found == list(zip(ids, bodies, strict=True))
    with pytest.raises(DeadlineError):
        jobs.receive(timeout_s=0)


def test_all_are_kept_when_it_returns_and_known_by_their_ids(bus: Station) -> None:
    jobs = bus.connect().topic("jobs", durable=True)
    ids = [f"m{number}" for number in range(50)]
    assert jobs.send_many(range(50), ids=ids, headers={"k": "v"}, priority=77) == ids
    kept = asyncio.run(bus.store.load_messages())
    assert [message.id for message in kept] == ids
    assert {message.priority for message in kept} == {77}
    assert jobs.send_many([0, 1], ids=["m0", "new"]) == ["m0", "new"]
    with jobs.receive_many(1000, timeout_s=LONG_S) as messages:
        assert [message.id for message in messages] == [*ids, "new"]
        assert messages[0].headers["k"] == "v"
    assert all(message.is_done for message in asyncio.run(bus.store.load_messages()))


def _break(jobs: Topic) -> None:
    with jobs.receive_many(4, timeout_s=LONG_S) as messages:
        messages[0].ack()
        raise ValueError("broken")


def test_what_an_exception_ends_is_given_back_and_what_was_settled_is_not(bus: Station) -> None:
    jobs = bus.connect().topic("jobs", durable=True)
    jobs.send_many(range(4))
    with pytest.raises(ValueError, match="broken"):
        _break(jobs)
    with jobs.receive_many(4, timeout_s=LONG_S) as messages:
        assert [(message.body, message.failures) for message in messages] == [
            (1, 1),
            (2, 1),
            (3, 1),
        ]
        messages.ack()
        messages.ack()  # which is nothing new


@pytest.mark.parametrize("together", [1, limits.MIB])
def test_one_that_cannot_be_settled_is_said_and_the_others_are(
    bus: Station, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr("zenos.bus.many.TOGETHER_BYTES", together)
    jobs = bus.connect().topic("short", durable=True)
    jobs.send_many(range(3))
    messages = jobs.receive_many(3, timeout_s=LONG_S, lease_s=3600)
    messages[1].extend(0.01)
    again = bus.connect().topic("short", durable=True).receive(timeout_s=LONG_S, lease_s=3600)
    assert again.body == 1
    with pytest.raises(ConflictError, match="lease has ended"):
        messages.ack()
    messages.ack()  # all that could be were, by the first
    again.ack()
    with pytest.raises(DeadlineError):
        jobs.receive(timeout_s=0)


def _break_late(bus: Station, jobs: Topic, count: int) -> None:
    with jobs.receive_many(count, timeout_s=LONG_S, lease_s=3600) as messages:
        messages[0].extend(0.01)
        with bus.connect().topic("short", durable=True).receive(timeout_s=LONG_S, lease_s=3600):
            raise ValueError("broken")


def test_a_lease_that_ended_does_not_hide_what_broke_nor_keep_the_rest(bus: Station) -> None:
    jobs = bus.connect().topic("short", durable=True)
    jobs.send(1)
    jobs.send(2)
    with pytest.raises(ValueError, match="broken"):
        _break_late(bus, jobs, 2)
    found = set[Any]()
    while found != {1, 2}:
        with jobs.receive(timeout_s=LONG_S, lease_s=3600) as message:
            found.add(message.body)


def test_one_that_cannot_be_sent_is_said_and_the_others_are(bus: Station) -> None:
    jobs = bus.connect().topic("jobs", durable=True)
    with pytest.raises(InvalidError, match="message id"):
        jobs.send_many(range(3), ids=["a", "\n", "c"])
    with jobs.receive_many(3, timeout_s=LONG_S) as messages:
        assert [message.id for message in messages] == ["a", "c"]
    with pytest.raises(InvalidError, match="3 messages with 2 ids"):
        jobs.send_many(range(3), ids=["a", "b"])
    with pytest.raises(InvalidError, match="int"):
        jobs.send_many(range(3), ids=[1, 2, 3])  # type: ignore[list-item]
    with pytest.raises(InvalidError, match="priority"):
        jobs.send_many(range(3), priority=1000)
    assert jobs.send_many([]) == []
    for count in (0, limits.PREFETCH_MAX + 1):
        with pytest.raises(InvalidError, match="cannot use count"):
            jobs.receive_many(count)


def test_only_durable_topics_take_many(bus: Station) -> None:
    orders = bus.connect().topic("orders")
    with pytest.raises(InvalidError, match="durable=True"):
        orders.send_many([b""])
    with pytest.raises(InvalidError, match="durable=True"):
        orders.receive_many(2)


def test_many_wait_for_room_in_their_order(bus: Station) -> None:
    sending = in_thread(bus.connect().topic("narrow", durable=True).send_many, range(7))
    topic, found = bus.connect().topic("narrow", durable=True), list[Any]()
    while len(found) < 7:
        assert not sending.done()
        with topic.receive_many(1, timeout_s=LONG_S) as (message,):
            found.append(message.body)
            if len(found) == 5:  # the last two have room now
                break
    sending.result(LONG_S)
    while len(found) < 7:
        with topic.receive_many(2, timeout_s=LONG_S) as messages:
            found += [message.body for message in messages]
    assert found == list(range(7))


def test_what_waits_for_room_goes_with_its_sender(bus: Station) -> None:
    leaving = bus.connect()
    sending = in_thread(leaving.topic("narrow", durable=True).send_many, range(7))
    until(lambda: bus.requests() == 5)
    leaving.close()
    with pytest.raises(Exception, match=r"closed|went away"):
        sending.result(LONG_S)
    topic = bus.connect().topic("narrow", durable=True)
    with topic.receive_many(7, timeout_s=LONG_S) as messages:
        assert [message.body for message in messages] == [0, 1]
    with pytest.raises(DeadlineError):
        topic.receive(timeout_s=0)
    until(lambda: not bus.topics._asked)


def test_a_full_topic_refuses_those_that_have_no_room(bus: Station) -> None:
    topic = bus.connect().topic("refusing", durable=True)
    with pytest.raises(BusyError, match="wait there"):
        topic.send_many(range(3))
    with topic.receive_many(7, timeout_s=LONG_S) as messages:
        assert [message.body for message in messages] == [0, 1]


def test_a_daemon_that_comes_back_is_asked_again(bus: Station) -> None:
    topic = bus.connect().topic("jobs", durable=True)
    messages_then = list(range(10))
    topic.send_many(messages_then)
    taken = topic.receive_many(4, timeout_s=LONG_S)
    bus.stop()
    sending = in_thread(topic.send_many, ["later"])
    bus.start()
    sending.result(LONG_S)
    taken.ack()  # nobody else has them
    found: list[Any] = []
    while len(found) < 7:
        with topic.receive_many(7, timeout_s=LONG_S) as messages:
            found += [message.body for message in messages]
    assert found == [*range(4, 10), "later"]


async def test_the_same_for_an_event_loop(bus: Station) -> None:
    async with AsyncBus(bus.path, HELLO) as ours:
        jobs = ours.topic("jobs", durable=True)
        ids = await jobs.send_many(range(100), timeout_s=LONG_S)
        with pytest.raises(ValueError, match="broken"):
            async with jobs.receive_many(60, timeout_s=LONG_S):
                raise ValueError("broken")
        found: dict[str, Any] = {}
        while len(found) < 100:
            async with jobs.receive_many(60, timeout_s=LONG_S) as messages:
                found |= {message.id: message.body for message in messages}
        assert found == dict(zip(ids, range(100), strict=True))
        jobs = ours.topic("orders")
        with pytest.raises(InvalidError, match="durable=True"):
            jobs.receive_many(2)
        with pytest.raises(InvalidError, match="durable=True"):
            await jobs.send_many([b""])


async def test_sends_and_acks_of_one_turn_go_in_one_frame(tmp_path: Path) -> None:
    with scripted(tmp_path, several=True) as broker:
        accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
        async with AsyncBus(broker.path, HELLO) as ours:
            await accepting
            jobs = ours.topic("jobs", durable=True, prefetch=3)
            sends = [asyncio.create_task(jobs.send(number)) for number in range(3)]
            frame = await asyncio.to_thread(broker.asked, "several")
            parts = parts_of(encode(frame))
            assert [(part.verb, part.body) for part in parts] == [
                ("send", msgspec.msgpack.encode(number)) for number in range(3)
            ]
            broker.answers([part.id for part in parts])
            assert await asyncio.gather(*sends) == [part.key for part in parts]

            receiving = [asyncio.create_task(jobs._receive(LONG_S, None)) for _ in range(3)]
            want = await asyncio.to_thread(broker.asked, "want")
            for body in (b"0", b"1", b"2"):
                broker.give(want.id, body, together=3)
            acks = [asyncio.create_task((await one).ack()) for one in receiving]
            settled: list[Envelope] = []
            while len(settled) < 3:
                frame = await asyncio.to_thread(broker.asked, "several")
                settled += parts_of(encode(frame))
            assert [(part.verb, part.delivery) for part in settled] == [
                ("ack", number) for number in (1, 2, 3)
            ]
            broker.answers([part.id for part in settled])
            await asyncio.gather(*acks)


@pytest.mark.parametrize("size", [0, 20_000])
async def test_a_large_one_goes_alone_and_keeps_its_place(tmp_path: Path, size: int) -> None:
    with scripted(tmp_path, several=True) as broker:
        accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
        async with AsyncBus(broker.path, HELLO) as ours:
            await accepting
            jobs = ours.topic("jobs", durable=True)
            bodies = [b"first", b"x" * size, b"last"]
            sends = [asyncio.create_task(jobs.send(body)) for body in bodies]
            verbs: list[Verb] = ["several", "send", "several"] if size else ["several"]
            frames = [await asyncio.to_thread(broker.asked, verb) for verb in verbs]
            found: list[Envelope] = []
            for frame in frames:
                found += parts_of(encode(frame)) if frame.verb == "several" else [frame]
            assert [part.body for part in found] == bodies
            broker.answers([part.id for part in found])
            await asyncio.gather(*sends)


async def test_of_many_only_the_large_ones_go_alone_and_not_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenos.bus.many.TOGETHER_BYTES", 50_000)
    with scripted(tmp_path, several=True) as broker:
        accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
        async with AsyncBus(broker.path, HELLO) as ours:
            await accepting
            bodies = [b"1", b"2", b"x" * 20_000, b"3", b"4", b"x" * 40_000]
            sending = asyncio.create_task(ours.topic("jobs", durable=True).send_many(bodies))
            found: list[Envelope] = []
            for verb, count in (("several", 2), ("send", 1), ("several", 2)):
                frame = await asyncio.to_thread(broker.asked, verb)
                parts = parts_of(encode(frame)) if verb == "several" else [frame]
                assert len(parts) == count
                found += parts
            assert len(ours.session._pending) == 5, "the last is asked after these"
            broker.answers([part.id for part in found])
            last = await asyncio.to_thread(broker.asked, "send")
            assert [part.body for part in (*found, last)] == bodies
            broker.answers([last.id])
            assert await sending == [part.key for part in (*found, last)]


async def test_a_broker_of_an_older_version_gets_frames_that_it_knows(tmp_path: Path) -> None:
    with scripted(tmp_path, several=False) as broker:
        accepting = asyncio.create_task(asyncio.to_thread(broker.accept))
        async with AsyncBus(broker.path, HELLO) as ours:
            await accepting
            jobs = ours.topic("jobs", durable=True)
            sending = asyncio.create_task(jobs.send_many(range(3)))
            sends = [asyncio.create_task(jobs.send(number)) for number in range(3)]
            for _ in range(6):
                envelope = await asyncio.to_thread(broker.asked, "send")
                broker.answer(envelope.id, False)
            await asyncio.gather(sending, *sends)


def test_a_program_of_an_older_version_gets_frames_that_it_knows(bus: Station) -> None:
    bus.connect().topic("jobs", durable=True).send_many(range(3))
    with greet(str(bus.path), HELLO, LONG_S) as peer:
        reader, found = FrameReader(peer), list[Envelope]()

        def read(count: int) -> None:
            while len(found) < count:
                found.extend(envelope for envelope, *_ in reader.read() or ())

        read(1)
        name = "user.2"
        want = msgspec.msgpack.encode(Want(count=3))
        peer.sendall(
            encode(Envelope(id=1, verb="want", topic="jobs", sender=name, durable=True, body=want))
        )
        read(4)
        assert [envelope.verb for envelope in found[1:]] == ["send"] * 3
        for number, given in enumerate(found[1:], 2):
            ack = Envelope(
                id=number,
                verb="ack",
                topic="jobs",
                sender=name,
                durable=True,
                key=given.key,
                delivery=given.delivery,
            )
            peer.sendall(encode(ack))
        read(7)
        assert [envelope.verb for envelope in found[4:]] == ["answer"] * 3
        reader.close()


def several(parts: list[Envelope], **fields: object) -> bytes:
    given = {"id": 9, "durable": True, "topic": "jobs", "sender": "user.2", **fields}
    return encode(Envelope(verb="several", body=body_of_envelopes(parts), **given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        several([]),
        several([Envelope(verb="call", durable=True)]),
        several([Envelope(verb="send")]),
        several([Envelope(verb="send", durable=True), Envelope(verb="ack", durable=True)]),
        several([Envelope(verb="send", durable=True, descriptors=1)]),
        several([Envelope(verb="send", durable=True, version=1)]),
        several([Envelope(verb="ack", durable=True)], durable=False),
        several([Envelope(id=1, verb="send", durable=True, key=key) for key in ("a", "b")]),
        several([Envelope(verb="send", durable=True, body=b"x" * 3 * limits.SEVERAL_BYTES)]),
        several([Envelope(id=n, verb="ack", durable=True) for n in range(limits.SEVERAL_MAX + 1)]),
    ],
)
def test_what_is_no_frame_of_several_cuts_who_says_it(bus: Station, wrong: bytes) -> None:
    other = bus.connect().topic("jobs", durable=True)
    with greet(str(bus.path), HELLO, LONG_S) as peer:
        assert peer.recv(4096), "it is let in"
        peer.sendall(wrong)
        with suppress(ConnectionResetError):
            while peer.recv(4096):
                pass
    other.send_many([1, 2])


def test_too_many_at_once_are_each_refused(bus: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = bus.connect().topic("narrow", durable=True)
    monkeypatch.setattr(limits, "PEER_REQUESTS_MAX", 10)
    with pytest.raises(BusyError, match="at once"):
        topic.send_many(range(11))
    sending = in_thread(bus.connect().topic("narrow", durable=True).send_many, range(4))
    until(lambda: bus.requests() == 2)
    with topic.receive_many(2, timeout_s=LONG_S) as messages:
        assert [message.body for message in messages] == [0, 1]
    sending.result(LONG_S)


def test_texts_that_are_not_ascii_fit_into_their_frames(bus: Station) -> None:
    jobs = bus.connect().topic("jobs", durable=True)
    ids = [f"{'名' * 120}{number}" for number in range(1000)]
    jobs.send_many(range(200), headers={"名": "日" * 1000})
    jobs.send_many([b""] * 1000, ids=ids)
    found = list[str]()
    while len(found) < 1200:
        with jobs.receive_many(1000, timeout_s=LONG_S) as messages:
            found += [message.id for message in messages]
    assert found[200:] == ids


def test_a_number_that_is_in_use_is_refused(bus: Station) -> None:
    """It waits for room already, or may wait for it before this one is answered."""
    with greet(str(bus.path), HELLO, LONG_S) as peer:
        reader = FrameReader(peer)

        def asked(*keys: str, number: int) -> bytes:
            """The last of them under the number 3."""
            parts = [
                Envelope(id=number, verb="send", durable=True, key=key)
                for number, key in enumerate(keys, 4 - len(keys))
            ]
            return several(parts, id=number, topic="narrow", sender="user.1")

        peer.sendall(asked("a", "b", "c", number=9) + asked("d", number=10))
        refused = list[int]()
        for count in (1, 2):
            while len(refused) < count:
                found = [envelope for envelope, *_ in reader.read() or ()]
                refused += [one.to for one in found if one.headers.get("code") == "busy"]
            assert refused == [3] * count
            if count == 1:
                peer.sendall(asked("e", number=11))
        assert bus.requests() == 1
        reader.close()
    until(lambda: not bus.topics._asked)


async def test_a_broker_that_ends_during_a_commit_leaves_the_rest_to_the_next(
    tmp_path: Path,
) -> None:
    store = Gate()
    async with running(store, messages=1) as topics:
        broker = Broker(lambda *_: True, lambda *_: None, durable=topics)
        await broker.start(tmp_path / "bus")
        async with AsyncBus(tmp_path / "bus", HELLO) as ours:
            store.open.clear()
            sending = asyncio.create_task(ours.topic("t", durable=True).send_many(range(3)))
            await store.begun.wait()
            await broker.close()
            store.open.set()
            sending.cancel()
            await asyncio.wait([sending])
        topics.close()
    assert len(await store.load_messages()) == 1


def test_many_parts_are_refused_before_they_are_made() -> None:
    count = 10_000_000
    body = b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    frame = encode(Envelope(verb="several", durable=True, body=body))
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            parts_of(frame)
        with pytest.raises(FrameError):
            numbers_of(frame)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * len(frame)


def test_who_shares_a_bus_shares_a_batch_fairly(bus: Station) -> None:
    """Who wants much doesn't keep the others from theirs."""
    much, little = (bus.connect().topic("jobs", durable=True) for _ in range(2))
    taking = in_thread(much.receive_many, 1000)
    until(lambda: bus.requests() == 1)
    taking_too = in_thread(little.receive_many, 1)
    until(lambda: bus.requests() == 2)
    sender: Bus = bus.connect()
    jobs = sender.topic("jobs", durable=True)
    jobs.send_many([1, 2])
    assert [m.body for m in taking.result(LONG_S)] == [1, 2]
    jobs.send(3)
    assert [m.body for m in taking_too.result(LONG_S)] == [3]
