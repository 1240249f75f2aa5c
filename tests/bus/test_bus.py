"""Messages between the daemon and a worker: real sockets, real threads."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.bus.broker import Broker
from zenos.bus.channel import Channel
from zenos.bus.envelope import Decoder, Envelope, FrameError, Kind, encode
from zenos.bus.order import Policy
from zenos.core import limits
from zenos.core.errors import BusyError, InvalidError

envelopes = st.builds(
    Envelope,
    id=st.integers(0, 2**63 - 1),
    kind=st.sampled_from(["data", "state", "command"]),
    topic=st.text(max_size=20),
    sender=st.text(max_size=20),
    generation=st.integers(0, 2**31),
    priority=st.integers(0, 100),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    body=st.binary(max_size=200),
)


@given(st.lists(envelopes, max_size=5), st.data())
def test_any_messages_cut_anywhere_arrive_as_they_were(
    messages: list[Envelope], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, messages))
    decoder = Decoder()
    found = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert found == messages
    assert decoder.waiting_bytes == 0


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for_but_never_believed(garbage: bytes) -> None:
    decoder = Decoder(frame_bytes_max=1000)
    try:
        decoder.feed(garbage)
    except FrameError:
        return
    assert decoder.waiting_bytes <= len(garbage)


@given(envelopes, st.integers(0, 400), st.integers(0, 255))
def test_a_mutated_frame_never_crashes_the_decoder(
    message: Envelope, place: int, value: int
) -> None:
    frame = bytearray(encode(message))
    frame[place % len(frame)] = value
    with suppress(FrameError):
        for found in Decoder(frame_bytes_max=1000).feed(bytes(frame)):
            assert isinstance(found, Envelope)


def test_lengths_beyond_the_limit_are_refused_before_anything_is_kept() -> None:
    with pytest.raises(FrameError, match="too long"):
        Decoder().feed(struct.pack(">II", 20, 2**32 - 1))
    with pytest.raises(FrameError, match="too long"):
        Decoder().feed(struct.pack(">II", limits.FRAME_HEADER_BYTES_MAX + 1, 0))
    with pytest.raises(InvalidError, match="cannot send"):
        encode(Envelope(body=bytes(limits.FRAME_BYTES_MAX + 1)))


class Daemon:
    """A broker and what it has heard."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.heard: list[tuple[str, int, Envelope]] = []
        self.gone: list[str] = []
        self.broker = Broker(
            lambda task, generation, token: (task, generation, token) == ("t1", 1, "secret"),
            lambda *message: self.heard.append(message),
            on_disconnect=lambda task, _: self.gone.append(task),
            policy=policy,
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - several conditions, one helper
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(path: Path, policy: Policy | None = None) -> AsyncIterator[Daemon]:
    daemon = Daemon(policy)
    await daemon.broker.start(path)
    try:
        yield daemon
    finally:
        await daemon.broker.close()


async def channel(path: Path, token: str = "secret") -> Channel:
    return await asyncio.to_thread(Channel, path, "t1", 1, token)


async def test_messages_go_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "run" / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        try:
            await daemon.until(lambda: daemon.broker.connected("t1"))
            assert daemon.broker.send("t1", "command", "stop", b"now")
            envelope = await asyncio.to_thread(worker.receive, 5.0)
            assert envelope is not None
            assert (envelope.topic, envelope.body) == ("stop", b"now")
            assert worker.send("state", "progress", b"half")
            await daemon.until(lambda: bool(daemon.heard))
            task, generation, message = daemon.heard[0]
            assert (task, generation, message.body) == ("t1", 1, b"half")
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
        finally:
            await asyncio.to_thread(worker.close)
        await daemon.until(lambda: daemon.gone == ["t1"])
    assert not path.exists()


async def test_a_worker_comes_back_after_a_restart_with_its_newest_state(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        await daemon.until(lambda: daemon.broker.connected("t1"))
    try:
        await daemon.until(lambda: not worker.connected)
        assert not worker.send("data", "chunk", b"lost")
        for number in range(3):
            worker.send("state", "progress", str(number).encode())
        async with running(path) as again:
            await again.until(lambda: bool(again.heard))
            assert [m.body for _, _, m in again.heard] == [b"2"]
            assert worker.disconnected_s == 0.0
    finally:
        await asyncio.to_thread(worker.close)


async def test_what_is_so_is_said_again_to_a_daemon_that_may_not_have_kept_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        await daemon.until(lambda: daemon.broker.connected("t1"))
        worker.send("state", "ready", b"yes")
        worker.send("data", "chunk", b"once")
        worker.send("state", "progress", b"1")
        worker.send("state", "progress", b"2")
        await daemon.until(lambda: b"2" in [m.body for *_, m in daemon.heard])
    try:
        async with running(path) as again:
            await again.until(lambda: len(again.heard) >= 2)
            assert {m.topic: m.body for *_, m in again.heard} == {"ready": b"yes", "progress": b"2"}
            worker.send("data", "chunk", b"on")
            await again.until(lambda: len(again.heard) == 3)
    finally:
        await asyncio.to_thread(worker.close)


async def test_a_wrong_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path, token="wrong")
        try:
            # It has never been let in, however often it has connected: an orphan knows by that.
            await daemon.until(lambda: worker.disconnected_s > 0.3)
            assert not worker.connected
            assert not daemon.broker.connected("t1")
            assert not daemon.broker.send("t1", "data", "x", b"")
        finally:
            await asyncio.to_thread(worker.close)


async def test_before_it_is_known_who_it_is_little_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    async with running(path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(struct.pack(">II", 10, 2**20))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 8,
        b"\0\0\0\x02\0\0\0\0\xc1\xc1",
        encode(Envelope(topic="other")),
        b"\0\0\0\x01",
    ],
)
async def test_a_malformed_connection_is_closed_and_harms_nobody(
    tmp_path: Path, garbage: bytes
) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        try:
            await daemon.until(lambda: daemon.broker.connected("t1"))
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(garbage)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            assert daemon.broker.connected("t1")
        finally:
            await asyncio.to_thread(worker.close)


async def test_commands_overtake_data_and_equals_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        try:
            await daemon.until(lambda: daemon.broker.connected("t1"))
            for number in range(3):
                daemon.broker.send("t1", "data", "d", str(number).encode())
            daemon.broker.send("t1", "data", "d", b"urgent", priority=90)
            daemon.broker.send("t1", "command", "stop", b"")
            found = [await asyncio.to_thread(worker.receive, 5.0) for _ in range(5)]
            assert [e.body for e in found if e] == [b"", b"urgent", b"0", b"1", b"2"]
        finally:
            await asyncio.to_thread(worker.close)


@pytest.mark.parametrize("order", [("command", "state", "data"), ("data", "state", "command")])
async def test_a_worker_orders_what_it_sends_as_the_daemon_says(
    tmp_path: Path, order: tuple[Kind, ...]
) -> None:
    path, policy = tmp_path / "bus", Policy(order=order)
    async with running(path, policy) as daemon:
        worker = await channel(path)
        await daemon.until(lambda: daemon.broker.connected("t1"))
        daemon.broker.send("t1", "command", "hear", b"")
        # Whoever has heard that has heard the daemon's welcome.
        assert await asyncio.to_thread(worker.receive, 5.0) is not None
    try:
        await daemon.until(lambda: not worker.connected)
        worker.send("command", "command", b"")
        worker.send("state", "state", b"")
        async with running(path, policy) as again:
            await again.until(lambda: len(again.heard) == 2)
            assert [m.kind for _, _, m in again.heard] == [k for k in order if k != "data"]
    finally:
        await asyncio.to_thread(worker.close)


async def test_what_is_too_late_when_its_turn_comes_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        worker = await channel(path)
        try:
            await daemon.until(lambda: daemon.broker.connected("t1"))
            daemon.broker.send("t1", "command", "late", b"", deadline_s=0.0)
            daemon.broker.send("t1", "command", "in time", b"", deadline_s=60.0)
            heard = await asyncio.to_thread(worker.receive, 5.0)
            assert heard is not None
            assert heard.topic == "in time"
        finally:
            await asyncio.to_thread(worker.close)


async def test_a_reader_that_does_not_read_fills_only_its_own_bounded_queue(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bus"
    async with running(path) as daemon:
        stuck = socket.socket(socket.AF_UNIX)
        worker = await channel(path)
        try:
            await daemon.until(lambda: daemon.broker.connected("t1"))
            for _ in range(limits.SEND_QUEUE_FRAMES_MAX):
                daemon.broker.send("t1", "data", "d", b"x")
            with pytest.raises(BusyError):
                daemon.broker.send("t1", "data", "d", b"x")
        finally:
            stuck.close()
            await asyncio.to_thread(worker.close)


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    from zenos.bus.broker import make_private_directory
    from zenos.core.errors import StorageError

    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, FileExistsError)):
        make_private_directory(tmp_path / "file")
    make_private_directory(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_uid == os.getuid()
