"""Each end measures how fast its link is, in V of the expected latency L = D / V."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.harness import Station, station
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.channel import Channel
from zenos.bus.envelope import Hello
from zenos.bus.order import SPEED_BYTES_S, Item, Link, Policy, SendQueue
from zenos.bus.stream import FrameWriter
from zenos.core import limits
from zenos.core.clock import VirtualClock

LONG_S = 60.0
TAKEN = 64 * limits.KIB  # each second, by a reader that is no faster


def read(connection: socket.socket, size: int) -> int:
    """Up to `size` bytes, of what is there; how many."""
    found = 0
    while found < size:
        try:
            found += len(connection.recv(size - found))
        except BlockingIOError:
            break
    return found


@pytest.mark.parametrize("rests", [False, True], ids=["never idle", "idle in between"])
def test_the_speed_is_what_its_reader_takes(rests: bool) -> None:
    """Under a clock of the test's own; also of a link over which there is always more to send."""
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        waiting = SendQueue(Policy(), Link())
        clock = VirtualClock()
        writer = FrameWriter(left, waiting, clock.now)
        for _ in range(400):
            while waiting.waiting_bytes < limits.MIB and (writer.is_idle or not rests):
                waiting.put(Item("data", 50, "s", "t", bytes(limits.MIB)), clock.now())
            clock.advance(1.0)
            read(right, TAKEN)
            if writer.write():
                clock.advance(3600.0)  # of which nothing counts
        assert waiting.link.speed == pytest.approx(TAKEN, rel=0.3)
        writer.close()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


def has_measured(link: Link) -> bool:
    return link.speed != SPEED_BYTES_S


def test_a_program_and_the_daemon_measure(bus: Station) -> None:
    one, two = bus.connect(), bus.connect()
    one.topic("orders").send(bytes(limits.KIB), timeout_s=LONG_S)
    assert len(two.topic("orders").receive(timeout_s=LONG_S).body) == limits.KIB
    one.flush()
    assert has_measured(one.session.output.link)
    peers = bus.do(lambda: [peer.waiting.link for peer in bus.broker._peers])
    until(lambda: all(has_measured(link) for link in peers))


async def test_an_event_loop_measures(bus: Station) -> None:
    hello = Hello(task="", generation=0, token="x", program=True)
    async with AsyncBus(bus.path, hello) as one:
        await one.topic("orders").send(bytes(limits.KIB), timeout_s=LONG_S)
        async with one.topic("orders").receive(timeout_s=LONG_S):
            assert has_measured(one.session.output.link)


def test_a_worker_measures(bus: Station) -> None:
    worker = Channel(bus.path, "t1", 1, "secret")
    try:
        until(lambda: worker.connected)
        assert worker.send("state", "progress", b"half")
        until(lambda: has_measured(worker._outgoing.link))
    finally:
        worker.close()
