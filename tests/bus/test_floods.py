"""A flood of one topic doesn't delay another's commands: what is served before them is counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.bus.harness import Station, station
from tests.bus.test_stuck import stopped
from tests.processes import until
from zenos.bus import topics as ev
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import Envelope, Hello, encode
from zenos.bus.peer import Peer
from zenos.bus.stream import BATCH_BYTES, FrameReader, greet
from zenos.bus.terms import Want
from zenos.core import limits
from zenos.core.clock import VirtualClock
from zenos.core.messages import Message, MessageChanges
from zenos.store.memory import MemoryStore

LONG_S = 60.0
BODY = bytes(2000)
WORKER = Hello(task="t1", generation=1, token="x")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


def peer_of(bus: Station, task: str) -> Peer:
    return next(p for p in bus.do(lambda: list(bus.broker._peers)) if p.task == task)


def buffered(connection: socket.socket) -> int:
    """Bytes that may lie in a socket."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_a_command_goes_out_before_a_flood_that_waits_for_the_same_peer(bus: Station) -> None:
    """Before it are only those that were in the socket, or on their way into it, already."""
    with greet(str(bus.path), WORKER, LONG_S) as worker:
        reader = FrameReader(worker)
        until(lambda: bus.do(lambda: bus.broker.connected("t1")))
        want = msgspec.msgpack.encode(Want(count=limits.PREFETCH_MAX))
        worker.sendall(
            encode(Envelope(verb="want", topic="t1/flood", sender="t1", generation=1, body=want))
        )
        flood = bus.connect().topic("t1/flood")
        peer, count = peer_of(bus, "t1"), 1500
        for _ in range(count):
            flood.send(BODY, timeout_s=LONG_S)
        until(lambda: bus.do(lambda: peer.is_writing and peer.waiting.count > count // 2))
        assert bus.do(lambda: bus.broker.send("t1", "command", "stop", b""))
        before = 0
        while True:
            topics = [envelope.topic for envelope, *_ in reader.read() or ()]
            if "stop" in topics:
                before += topics.index("stop")
                break
            before += len(topics)
        reader.close()
        assert before <= (BATCH_BYTES + 2 * buffered(peer.socket)) // len(BODY)
        assert before < count // 2


def test_whoever_floods_is_read_a_part_at_a_time_and_others_in_between(bus: Station) -> None:
    """Both sockets are full when the broker looks: it takes at most a chunk of the flood first."""
    taken: list[tuple[str, str]] = []
    take = bus.broker._exchange.take

    def taking(peer: Peer, envelope: Envelope, *rest: Any) -> None:
        taken.append((envelope.topic, peer.name))
        take(peer, envelope, *rest)

    flooder, other = bus.connect(), bus.connect()
    for one in (flooder, other):  # the terms of both topics are known
        one.topic("flood").send(b"", timeout_s=LONG_S)
        one.topic("orders").send(b"", timeout_s=LONG_S)
    bus.broker._exchange.take = taking  # type: ignore[method-assign]
    with stopped(bus):
        for _ in range(500):
            flooder.topic("flood").send(BODY)
        other.topic("orders").send(b"command")
        other.flush()
    until(lambda: ("orders", other.name) in bus.do(lambda: list(taken)))
    position = taken.index(("orders", other.name))
    assert position <= 64 * limits.KIB // len(BODY) + 1  # a third of what a socket holds


class GatedStore(MemoryStore):
    """Commits when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.commits: list[set[str]] = []  # the topics of each

    async def commit_messages(self, changes: MessageChanges) -> None:
        await self.gate.wait()
        await super().commit_messages(changes)
        self.commits.append({message.topic for message in changes.put.values()})


async def test_a_durable_flood_shares_its_commit_with_others() -> None:
    """However many of one topic wait, another's message is in the next transaction."""
    store = GatedStore()
    topics = DurableTopics(store, VirtualClock(), [])
    looping = asyncio.create_task(topics.run())

    def send(topic: str, number: int) -> asyncio.Task[Any]:
        message = Message(number=0, topic=topic, id=f"{topic}{number}", body=b"x")
        return asyncio.create_task(
            topics.ask(ev.Send(request=topics.next_request(), message=message))
        )

    first = send("flood", 0)
    await asyncio.sleep(0)
    flood = [send("flood", number) for number in range(1, 3000)]
    order = send("orders", 0)
    await asyncio.sleep(0)
    store.gate.set()
    await order
    assert len(store.commits) <= 2
    assert store.commits[-1] == {"flood", "orders"}
    await asyncio.gather(first, *flood)
    topics.close()
    await looping
