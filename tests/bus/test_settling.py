"""A message is settled once, in one way; and who called hears what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bus.harness import Station, in_thread, station
from zenos.bus.aio import AsyncBus
from zenos.bus.envelope import Hello
from zenos.core.errors import ConflictError, UnavailableError, WorkerError

LONG_S = 30.0
HELLO = Hello(task="", generation=0, token="x", program=True)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


@pytest.mark.parametrize("durable", [False, True])
def test_what_was_acknowledged_is_not_given_back_nor_the_other_way_round(
    bus: Station, durable: bool
) -> None:
    topic = bus.connect().topic("jobs", durable=durable)
    topic.send(b"x")
    message = topic.receive(timeout_s=LONG_S)
    message.ack()
    message.ack()
    with pytest.raises(ConflictError, match="cannot give back this message: it was acknowledged"):
        message.nack()
    topic.send(b"y")
    message = topic.receive(timeout_s=LONG_S)
    message.nack()
    message.nack()
    with pytest.raises(ConflictError, match="cannot acknowledge this message: it was given back"):
        message.ack()


def test_so_it_is_with_messages_that_are_settled_together(bus: Station) -> None:
    topic = bus.connect().topic("jobs", durable=True)
    topic.send_many([1, 2])
    messages = topic.receive_many(2, timeout_s=LONG_S)
    messages.ack()
    with pytest.raises(ConflictError, match="it was acknowledged"):
        messages[0].nack()


def test_who_calls_a_server_that_ends_itself_hears_so(bus: Station) -> None:
    def end(_: Any) -> None:
        raise SystemExit(3)

    calling = in_thread(lambda: bus.connect().topic("work").call(1, timeout_s=LONG_S))
    server = bus.connect().topic("work")
    with pytest.raises(SystemExit):
        server.serve(end, timeout_s=LONG_S)
    with pytest.raises(WorkerError, match="SystemExit: 3"):
        calling.result(LONG_S)


def test_so_does_who_calls_one_that_is_cancelled(bus: Station) -> None:
    async def main() -> None:
        async with AsyncBus(bus.path, HELLO) as one:
            begun = asyncio.Event()

            async def work(_: Any) -> None:
                begun.set()
                await asyncio.sleep(10 * LONG_S)

            serving = asyncio.create_task(one.topic("work").serve(work))
            caller = bus.connect()
            calling = in_thread(lambda: caller.topic("work").call(1, timeout_s=LONG_S))
            await begun.wait()
            serving.cancel()
            with pytest.raises(WorkerError, match="CancelledError"):
                await asyncio.wrap_future(calling)
            with pytest.raises(asyncio.CancelledError):
                await serving

    asyncio.run(main())


def test_who_calls_over_a_bus_that_is_closed_meanwhile_hears_that(bus: Station) -> None:
    one, server = bus.connect(), bus.connect()
    calling = in_thread(lambda: one.topic("work").call(1, timeout_s=LONG_S))
    server.topic("work").receive(timeout_s=LONG_S)
    one.close()
    with pytest.raises(UnavailableError, match="cannot use the bus: it was closed"):
        calling.result(LONG_S)
