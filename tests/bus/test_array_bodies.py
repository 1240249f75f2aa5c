"""Arrays and many bytes as bodies of messages: between processes, in place, and never pickled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.bus.array_peer import LARGE
from tests.bus.harness import Station, station
from tests.processes import until
from zenos.bus.aio import AsyncBus
from zenos.bus.bodies import Opened, Sheet
from zenos.bus.envelope import Hello
from zenos.bus.handle import Handle
from zenos.bus.sync import Bus
from zenos.core import limits
from zenos.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    HandleError,
    InvalidError,
    TooLargeError,
)
from zenos.core.messages import TopicSettings

LONG_S = 60.0
HELLO = Hello(task="", generation=0, token="right", program=True)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    refuse = TopicSettings(when_full="refuse")
    with station(tmp_path / "run" / "bus", hurried=refuse) as made:
        yield made


@contextmanager
def program(bus: Station, role: str) -> Iterator[subprocess.Popen[str]]:
    """Another process (array_peer.py), which is ready; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bus.array_peer", str(bus.path), role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def small_bus(bus: Station) -> Bus:
    """With room for one large array."""
    return Bus(bus.path, HELLO, timeout_s=LONG_S, shared_bytes_max=4 * limits.MIB)


VALUES: dict[str, Any] = {
    "small": np.arange(12, dtype=np.int16).reshape(3, 4),
    "large": np.arange(LARGE, dtype=np.float64),
    "strided": np.arange(4 * LARGE, dtype=np.float32).reshape(-1, 4)[::2, ::3],
    "no dimension": np.array(3.5),
    "empty": np.empty((0, 3), np.uint8),
    "bfloat16": torch.arange(4, dtype=torch.bfloat16),
    "large bfloat16": torch.ones(LARGE, dtype=torch.bfloat16).view(-1, 2).T,
    "a tensor with a gradient": torch.ones(3, requires_grad=True),
    "a tensor of no dimension": torch.tensor(7),
}


@pytest.mark.parametrize("durable", [False, True], ids=["transient", "durable"])
@pytest.mark.parametrize("name", VALUES)
def test_arrays_arrive_as_they_were_sent(bus: Station, name: str, durable: bool) -> None:
    sent, (sender, receiver) = VALUES[name], (bus.connect(), bus.connect())
    sender.topic("x", durable=durable).send(sent)
    with receiver.topic("x", durable=durable).receive(timeout_s=LONG_S) as message:
        got = message.body
    assert (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape)
    assert bool((got == sent).all())


def test_arrays_may_be_anywhere_in_a_value(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    sender.topic("x").send({"step": 7, "weights": [np.ones(LARGE), torch.zeros(2)]})
    body = receiver.topic("x").receive(timeout_s=LONG_S).body
    assert body["step"] == 7
    assert body["weights"][0].sum() == LARGE
    assert torch.equal(body["weights"][1], torch.zeros(2))
    with pytest.raises(InvalidError, match=r"^cannot send a body of type dict"):
        sender.topic("x").send({"a": np.ones(2), "b": object()})
    with pytest.raises(InvalidError, match=r"^cannot share a ndarray of object"):
        sender.topic("x").send(np.array([object()]))


def test_the_receiver_may_choose_the_library(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    sender.topic("x").send(np.ones(LARGE))
    message = receiver.topic("x").receive(timeout_s=LONG_S)
    assert isinstance(message.read(torch.Tensor), torch.Tensor)
    assert isinstance(message.read(np.ndarray), np.ndarray)
    with pytest.raises(InvalidError, match="cannot read a body"):
        message.read(int)


def test_another_process_computes_with_arrays(bus: Station) -> None:
    with program(bus, "double"):
        for size in (10, LARGE):
            got = bus.connect().topic("arrays").call(np.ones(size), timeout_s=LONG_S)
            assert (got.sum(), got.flags.writeable) == (2 * size, False)

        async def call() -> float:
            async with AsyncBus(bus.path, HELLO) as ours:
                got = await ours.topic("arrays").call(torch.ones(LARGE), timeout_s=LONG_S)
                return float(got.sum())

        assert asyncio.run(call()) == 2 * LARGE


def test_event_loops_send_receive_and_serve_arrays(bus: Station) -> None:
    async def double(array: Any) -> Any:
        return array * 2

    async def main() -> None:
        async with AsyncBus(bus.path, HELLO) as one, AsyncBus(bus.path, HELLO) as other:
            buffer = await one.topic("x").buffer((LARGE,), "float64")
            buffer.array()[:] = 5
            await one.topic("x").send(buffer)
            async with other.topic("x").receive(timeout_s=LONG_S) as message:
                assert message.body.sum() == 5 * LARGE
            serving = asyncio.create_task(other.topic("double").serve(double))
            got = await one.topic("double").call(np.ones(LARGE), timeout_s=LONG_S)
            assert got.sum() == 2 * LARGE
            serving.cancel()

    asyncio.run(main())


def test_a_view_is_in_place_read_only_and_outlives_its_message(bus: Station) -> None:
    sender, receiver = small_bus(bus), bus.connect()
    with sender:
        buffer = sender.topic("x").buffer((LARGE,), "float64")
        mine = buffer.array()
        mine[:] = 1
        sender.topic("x").send(buffer)
        with receiver.topic("x").receive(timeout_s=LONG_S) as message:
            got = message.body
        with pytest.raises(ValueError, match="read-only"):
            got[0] = 2
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.flags.writeable = True
        mine[0] = 9  # which nobody should do: that it shows means that nothing was copied
        assert got[0] == 9
        with pytest.raises(ConflictError, match="cannot write to what was sent"):
            buffer.array()
        del message, mine
        buffer.close()
        assert got[1:].sum() == LARGE - 1
        assert sender.own.pool.state.lent == 1
        del got
        until(lambda: sender.own.pool.state.lent == 0)


def test_a_tensor_s_writes_stay_with_who_writes(bus: Station) -> None:
    sender, (one, other) = bus.connect(), (bus.connect(), bus.connect())
    buffer = sender.topic("x").buffer((LARGE,), "bfloat16")
    buffer.tensor()[:] = 1
    sender.topic("x").send(buffer)
    sender.topic("x").send(buffer)
    first = one.topic("x").receive(timeout_s=LONG_S).body
    second = other.topic("x").receive(timeout_s=LONG_S).body
    first[:] = 2
    assert (first.dtype, float(second[0])) == (torch.bfloat16, 1)


def test_full_shared_memory_is_waited_for_or_refused_as_the_topic_says(bus: Station) -> None:
    receiver = bus.connect()
    with small_bus(bus) as sender:
        array = np.zeros(LARGE)
        sender.topic("x").send(array)
        with pytest.raises(DeadlineError, match="cannot allocate"):
            sender.topic("x").send(array, timeout_s=0.05)
        with pytest.raises(BusyError, match="cannot allocate"):
            sender.topic("hurried").send(array)
        with pytest.raises(TooLargeError, match="cannot allocate"):
            sender.topic("x").send(np.zeros(3 * LARGE))
        receiver.topic("x").receive(timeout_s=LONG_S)
        sender.topic("x").send(array, timeout_s=LONG_S)


def test_a_durable_topic_says_how_much_it_keeps(bus: Station) -> None:
    topic = bus.connect().topic("x", durable=True)
    for body in (np.zeros(limits.MESSAGE_BYTES_MAX + 1, np.uint8), bytes(5 * limits.MIB)):
        with pytest.raises(InvalidError, match="at most 4194304 in a durable one"):
            topic.send(body)


def test_many_bytes_are_read_in_place(bus: Station) -> None:
    sender, receiver = bus.connect(), bus.connect()
    body = os.urandom(3 * limits.MIB)
    for value in (body, bytearray(body), memoryview(body).cast("B", (3, limits.MIB))):
        sender.topic("x").send(value)
        message = receiver.topic("x").receive(timeout_s=LONG_S)
        assert message.body == body
        assert message.raw == body
        assert message.raw.readonly
    assert sender.own.pool.state.segments > 0
    with small_bus(bus) as small:  # into whose shared memory they never fit
        small.topic("x").send(body * 3)
    assert receiver.topic("x").receive(timeout_s=LONG_S).body == body * 3


def test_a_subscriber_that_never_reads_holds_little(bus: Station) -> None:
    with program(bus, "deaf"):
        sender = bus.connect()
        for number in range(200):  # 480 MB
            sender.topic("arrays").publish(np.full(LARGE, number), timeout_s=LONG_S)
        most = limits.SUBSCRIPTION_BYTES_MAX // (8 * LARGE) + 4  # waiting, and on their way
        until(lambda: sender.own.pool.state.lent <= most)
    until(lambda: sender.own.pool.state.lent == 0)


def test_a_subscriber_gets_all_arrays_that_it_keeps_up_with(bus: Station) -> None:
    sender, topic = bus.connect(), bus.connect().topic("x")
    with topic.subscribe(timeout_s=LONG_S) as subscription:
        for number in range(300):
            body = np.full(LARGE // 4, number) if number % 3 else number
            sender.topic("x").publish(body)
            got = next(subscription)
            value = got.body if isinstance(got.body, int) else got.body[-1]
            assert (int(value), got.missed) == (number, 0)


def test_a_killed_receiver_lets_go(bus: Station) -> None:
    before = descriptors()
    with Bus(bus.path, HELLO, timeout_s=LONG_S) as sender:
        with program(bus, "hold") as process:
            for _ in range(3):
                sender.topic("arrays").send(np.ones(LARGE))
                assert float(said(process)) == LARGE
            assert sender.own.pool.state.lent == 3
        until(lambda: sender.own.pool.state.lent == 0)
    until(lambda: descriptors() <= before)


def test_what_a_killed_sender_sent_is_still_read(bus: Station) -> None:
    receiver, before = bus.connect(), descriptors()
    with program(bus, "send"):
        pass
    topic = receiver.topic("arrays")
    got = [topic.receive(timeout_s=LONG_S).body for _ in range(2)]
    assert [float(array.sum()) for array in got] == [3 * LARGE, LARGE * (LARGE - 1) / 2]
    del got
    until(lambda: descriptors() <= before)


def test_what_nobody_reads_leaves_no_descriptor(bus: Station) -> None:
    before = descriptors()
    with (
        Bus(bus.path, HELLO, timeout_s=LONG_S) as sender,
        Bus(bus.path, HELLO, timeout_s=LONG_S) as receiver,
    ):
        sender.topic("x").send(np.ones(LARGE))
        with receiver.topic("x").receive(timeout_s=LONG_S):
            pass
        sender.topic("x").send(np.ones(LARGE), deadline_s=0.01)
        until(lambda: bus.do(lambda: bus.broker.waiting("x")) == 0)
        with pytest.raises(InvalidError):
            sender.topic("x").send(np.ones(LARGE), priority=1000)
    until(lambda: descriptors() <= before)


def test_a_body_that_lies_is_refused() -> None:
    def body(*handles: Handle, value: bytes = b"\xc7\x01\x01\x00", data: bytes = b"12") -> bytes:
        sheet = msgspec.msgpack.encode(Sheet(value, ("numpy",), handles))
        return len(sheet).to_bytes(4) + sheet + data

    good = Handle(0, 0, 0, 2, "uint8", (2,))
    assert Opened(memoryview(body(good)), ()).read(Any).tolist() == [49, 50]
    lies = [
        body(Handle(0, 0, 1, 2, "uint8", (2,))),
        body(Handle(0, 0, -1, 2, "uint8", (2,))),
        body(Handle(0, 0, 0, 2, "uint8", (3,))),
        body(good, value=b"\xc7\x01\x01\x05"),
        body(),
        body(good)[:9],
        b"",
    ]
    for lie in lies:
        with pytest.raises(HandleError, match=r"^cannot"):
            Opened(memoryview(lie), ()).read(Any)
    read, written = os.pipe()
    with pytest.raises(HandleError):
        Opened(memoryview(body(good)), (read, written))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


def test_who_sends_no_arrays_imports_no_numpy(bus: Station) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from zenos.bus.sync import Bus; from zenos.bus.envelope import Hello\n"
        "hello = Hello(task='', generation=0, token='right', program=True)\n"
        "with Bus(Path(sys.argv[1]), hello) as bus:\n"
        "    bus.topic('x').send({'a': 1}); bus.topic('x').send(bytes(2_000_000))\n"
        "    assert bus.topic('x').receive(timeout_s=60).body == {'a': 1}\n"
        "    assert len(bus.topic('x').receive(timeout_s=60).raw) == 2_000_000\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bus.path)], check=True)
