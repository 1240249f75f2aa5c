"""What can't be used is refused where it is said, and nothing else is touched by it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bus.harness import Station, station
from zenos import bus as zenos_bus
from zenos.bus import operations
from zenos.bus.aio import AsyncBus
from zenos.bus.bodies import Encoded
from zenos.bus.envelope import Envelope, Hello, encode
from zenos.bus.operations import Sending
from zenos.bus.stream import greet
from zenos.bus.sync import Bus
from zenos.core.errors import InvalidError, ZenosError

LONG_S = 30.0
HELLO = Hello(task="", generation=0, token="x", program=True)

OPTIONS: dict[str, list[Any]] = {
    "id": [5, b"x", "\ud800"],
    "priority": [True, None, 1.5, "highest", -1, 101, np.float64(50)],
    "delay_s": ["1", None, -1, math.nan, math.inf, 10**400],
    "deadline_s": ["1", 0, -1, math.nan, math.inf, True],
    "headers": ["x", ["x"], {"n": 1}, {1: "a"}, {"n": "\ud800"}],
    "timeout_s": ["x", None, math.nan, math.inf, 1j],
}
TAKES = {
    "send": ("id", "priority", "delay_s", "deadline_s", "headers", "timeout_s"),
    "publish": ("priority", "deadline_s", "headers", "timeout_s"),
    "call": ("priority", "headers", "timeout_s"),
}
SENT = [
    (verb, option, value)
    for verb, options in TAKES.items()
    for option in options
    for value in OPTIONS[option]
]
ASKED: list[Callable[[Any], Any]] = [
    lambda bus: bus.topic("t", durable=True).receive(lease_s="x"),
    lambda bus: bus.topic("t", durable=True).receive(lease_s=math.nan),
    lambda bus: bus.topic("t").receive(timeout_s=math.nan),
    lambda bus: bus.topic("t").receive(timeout_s="x"),
    lambda bus: bus.topic("t").subscribe(timeout_s="x"),
    lambda bus: bus.topic("t", prefetch=1.5),
    lambda bus: bus.topic("t", prefetch="x"),
    lambda bus: bus.topic("t", prefetch=True),
    lambda bus: bus.topic("t", durable=True).send_many(b"x"),
    lambda bus: bus.topic("t", durable=True).send_many(5),
    lambda bus: bus.topic("t", durable=True).send_many([b"x"], ids="x"),
    lambda bus: bus.topic("t", durable=True).send_many([b"x"], ids=[5]),
    lambda bus: bus.topic("t", durable=True).send_many([b"x"], headers={"n": 1}),
    lambda bus: bus.topic("t", durable=True).send_many([b"x"], priority=True),
    lambda bus: bus.topic("t", durable=True).receive_many("x"),
    lambda bus: bus.topic("t", durable=True).receive_many(2, lease_s="x"),
    lambda bus: bus.topic("t").buffer(5),
    lambda bus: bus.topic("t").buffer((1.5,)),
    lambda bus: bus.topic("t").buffer("12"),
    lambda bus: bus.topic("t").buffer((1,), 5),
    lambda bus: bus.topic("t").buffer((1,), timeout_s="x"),
    lambda bus: bus.topic("t").serve(3),
    lambda bus: bus.topic("t").serve(print, timeout_s="x"),
]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


def test_a_wrong_option_is_refused_at_once_and_harms_nobody(bus: Station) -> None:
    one = bus.connect()
    one.topic("kept", durable=True).send(b"kept")
    lease = one.topic("kept", durable=True).receive(timeout_s=LONG_S)
    name = one.name
    one.topic("lost").send("before")
    for durable in (False, True):
        topic = one.topic("lost", durable=durable)
        for verb, option, value in SENT:
            if not durable or verb == "send":
                with pytest.raises(InvalidError, match=r"^cannot use"):
                    getattr(topic, verb)(b"x", **{option: value})
    for ask in ASKED:
        with pytest.raises(InvalidError, match=r"^cannot "):
            ask(one)
    one.topic("lost").send("after")
    assert one.topic("lost").receive(timeout_s=LONG_S).body == "before"
    assert one.topic("lost").receive(timeout_s=LONG_S).body == "after"
    lease.ack()  # its connection is the same
    assert one.name == name


def test_in_an_event_loop_it_is_refused_where_it_is_awaited(bus: Station) -> None:
    async def main() -> None:
        async with AsyncBus(bus.path, HELLO) as one:
            await one.topic("lost").send("before")
            name = one.name
            for durable in (False, True):
                topic = one.topic("lost", durable=durable)
                for verb, option, value in SENT:
                    if not durable or verb == "send":
                        with pytest.raises(InvalidError, match=r"^cannot use"):
                            await getattr(topic, verb)(b"x", **{option: value})
            for ask in ASKED:
                with pytest.raises(InvalidError, match=r"^cannot "):
                    await ask(one)
            assert (await one.topic("lost").receive(timeout_s=LONG_S)).body == "before"
            assert one.name == name

    asyncio.run(main())


def test_numbers_of_numpy_and_names_of_priorities_are_taken(bus: Station) -> None:
    one = bus.connect()
    topic = one.topic("t", durable=True, prefetch=np.int64(1))
    topic.send(1, priority=np.int64(5), delay_s=np.float32(0), timeout_s=np.float64(LONG_S))
    topic.send(2, priority="high", deadline_s=np.int32(100), headers={"a": "b"})
    found = [topic.receive(timeout_s=LONG_S, lease_s=np.float64(LONG_S)) for _ in range(2)]
    assert [(message.body, message.priority) for message in found] == [(2, 75), (1, 5)]
    with one.topic("t").buffer([np.int64(2), 3]) as buffer:
        assert buffer.array().shape == (2, 3)


def test_a_message_that_was_received_is_not_settled_with_nonsense(bus: Station) -> None:
    one = bus.connect()
    one.topic("t", durable=True).send(b"x")
    message = one.topic("t", durable=True).receive(timeout_s=LONG_S)
    for wrong in (
        lambda: message.nack(delay_s=math.nan),
        lambda: message.nack(delay_s=-1),
        lambda: message.nack(reason=5),  # type: ignore[arg-type]
        lambda: message.extend("x"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidError):
            wrong()
    message.ack()


@pytest.mark.parametrize("shared_bytes_max", [-1, 0, "x", 2**70, None, 1.5])
def test_shared_memory_that_is_no_size_is_refused(bus: Station, shared_bytes_max: Any) -> None:
    with pytest.raises(InvalidError, match=r"cannot use .*shared_bytes_max"):
        Bus(bus.path, HELLO, shared_bytes_max=shared_bytes_max)


def test_a_home_is_a_path() -> None:
    with pytest.raises(InvalidError, match="give a path"):
        zenos_bus.connect(home=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="timeout_s"):
        zenos_bus.connect(timeout_s="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "NoneType"), (5, "int"), ("a//b", "'a//b'"), ("/a", "'/a'"), ("", "an empty topic")],
)
def test_a_topic_that_is_none_hears_what_is_wrong_with_it(
    bus: Station, name: Any, said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        bus.connect().topic(name)


def test_whose_frame_is_refused_hears_so_and_does_not_send_it_again(
    bus: Station, caplog: pytest.LogCaptureFixture
) -> None:
    one = bus.connect()
    wrong = [
        Sending(priority=True, timeout_s=LONG_S),
        Sending(headers={"n": 1}, timeout_s=LONG_S),  # type: ignore[dict-item]
    ]
    with caplog.at_level(logging.WARNING, logger="zenos.bus.broker"):
        for how in wrong * 5:
            steps = operations.send_durable(one.session, "t", Encoded(b"x"), how)
            with pytest.raises(ZenosError, match="cannot read this frame") as caught:
                one.run(steps)
            assert caught.value.code == InvalidError.code
    assert len([said for said in caplog.messages if "was closed" in said]) == 1
    one.topic("t", durable=True).send(b"good", timeout_s=LONG_S)
    assert one.topic("t", durable=True).receive(timeout_s=LONG_S).body == b"good"


@pytest.mark.parametrize("topic", ["t", "t" * 16_300])
@pytest.mark.parametrize("priority", [True, 50])
def test_whoever_sends_what_makes_no_sense_is_cut(bus: Station, topic: str, priority: int) -> None:
    with closing(greet(str(bus.path), HELLO, LONG_S)) as raw:
        raw.recv(65536)
        raw.sendall(encode(Envelope(id=1, topic=topic, priority=priority, verb="answer")))
        while raw.recv(65536):
            pass
    bus.connect().topic("t").send(b"others go on")
