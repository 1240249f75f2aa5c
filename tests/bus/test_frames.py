"""Frames on a socket: whatever comes, nothing crashes, hangs, leaks or grows."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bus.fuzz_frames import SEEDS, check, mutations
from tests.bus.harness import in_thread, station
from tests.processes import until
from zenos.bus.codec import Codec, Encoded, register
from zenos.bus.envelope import (
    CHUNK_BYTES,
    LENGTHS,
    VERSION,
    Decoder,
    Envelope,
    FrameError,
    body_in,
    encode,
)
from zenos.bus.order import Item, Link, Policy, SendQueue
from zenos.bus.stream import Frame, FrameReader, FrameWriter
from zenos.core import limits

LONG_S = 60.0
SAMPLE = encode(
    Envelope(id=7, verb="send", topic="orders", sender="t1.1", headers={"k": "v"}, body=b"x" * 30)
)


def test_a_frame_cut_at_any_byte_waits_for_the_rest() -> None:
    for cut in range(len(SAMPLE)):
        decoder = Decoder()
        assert decoder.feed(SAMPLE[:cut]) == []
        assert decoder.waiting_bytes == cut
        (found,) = decoder.feed(SAMPLE[cut:])
        assert (found.id, found.topic, found.body) == (7, "orders", b"x" * 30)


def test_a_frame_whose_header_ends_too_soon_is_refused() -> None:
    header = SAMPLE[LENGTHS.size : -30]
    for cut in range(len(header)):
        with pytest.raises(FrameError, match="cannot read"):
            Decoder().feed(LENGTHS.pack(cut, 0) + header[:cut])


fields = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
values = st.recursive(
    fields | st.binary(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8
)


@given(st.lists(values, max_size=22) | values)
def test_a_header_of_other_types_is_refused_or_an_envelope(header: object) -> None:
    if isinstance(header, list) and header:
        header[0] = VERSION
    encoded = msgspec.msgpack.encode(header)
    with suppress(FrameError):
        for found in Decoder(10_000).feed(LENGTHS.pack(len(encoded), 0) + encoded):
            assert isinstance(found, Envelope)
            assert 0 <= found.descriptors <= limits.FRAME_DESCRIPTORS_MAX


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=6))
def test_mutations_never_crash_and_what_is_kept_is_bounded(changes: list[tuple[int, int]]) -> None:
    frame = bytearray(SAMPLE)
    for place, value in changes:
        frame[place] = value
    decoder = Decoder(frame_bytes_max=1000)
    with suppress(FrameError):
        decoder.feed(bytes(frame) * 50)
    assert len(decoder.room()) <= CHUNK_BYTES
    assert decoder.waiting_bytes <= CHUNK_BYTES


def test_what_fuzzes_the_decoders_reads_frames_and_finds_nothing() -> None:
    """`make fuzz` for a moment; and it would find something, if that were there."""
    assert [check(b"\xff" + seed) for seed in SEEDS] == [1] * len(SEEDS)
    for _, data in zip(range(3000), mutations(7), strict=False):
        check(data)


def test_absurd_lengths_are_refused_before_anything_is_kept() -> None:
    for header, body in ((2**32 - 1, 0), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2**20, 0)):
        decoder = Decoder()
        with pytest.raises(FrameError, match="too long"):
            decoder.feed(struct.pack(">II", header, body))
        assert len(decoder.room()) <= CHUNK_BYTES


@given(
    st.lists(st.integers(0, 3 * CHUNK_BYTES), min_size=1, max_size=5),
    st.lists(st.integers(1, 2 * CHUNK_BYTES), max_size=20),
)
def test_frames_of_any_size_cut_anywhere_arrive_whole(sizes: list[int], cuts: list[int]) -> None:
    stream = b"".join(
        encode(Envelope(id=number, body=bytes([number]) * size))
        for number, size in enumerate(sizes)
    )
    decoder, found = Decoder(), []
    for cut in [*cuts, len(stream)]:
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert [len(one.body) for one in found] == sizes
    assert all(one.body == bytes([one.id]) * len(one.body) for one in found)
    assert decoder.waiting_bytes == 0


def descriptors() -> set[int]:
    return {int(link.name) for link in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    yield ours, theirs
    ours.close()
    theirs.close()
    assert descriptors() <= before


def send(connection: socket.socket, frame: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([frame], rights)


def write(connection: socket.socket, items: list[Item]) -> None:
    queue = SendQueue(Policy(), Link())
    for item in items:
        queue.put(item, 0.0)
    assert FrameWriter(connection, queue).write()


def frame(count: int, body: bytes = b"") -> bytes:
    return encode(Envelope(verb="send", topic="x", descriptors=count, body=body))


def read_all(reader: FrameReader, count: int) -> list[Frame]:
    found: list[Frame] = []
    while len(found) < count:
        frames = reader.read()
        assert frames is not None
        found += frames
    return found


def test_descriptors_arrive_with_their_frames(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    items = []
    for number in range(4):
        read, written = os.pipe()
        os.write(written, bytes([number]))
        os.close(written)
        fds = (read, os.dup(read)) if number % 2 else ()
        if not fds:
            os.close(read)
        items.append(Item("data", 50, "s", "x", frame(len(fds), bytes([number])), 0.0, fds))
    write(ours, items)
    reader = FrameReader(theirs)
    found = read_all(reader, 4)
    for number, (envelope, whole, fds) in enumerate(found):
        assert bytes(body_in(whole)) == bytes([number])
        assert len(fds) == envelope.descriptors == (2 if number % 2 else 0)
        if fds:
            assert not os.get_inheritable(fds[0])
            assert os.read(fds[0], 1) == bytes([number])
        for fd in fds:
            os.close(fd)
    reader.close()


@pytest.mark.parametrize(
    ("claimed", "sent", "error"),
    [(2, 1, "cannot find the 2"), (0, 1, "no frame"), (1, 3, "no frame"), (9, 1, "cannot take 9")],
)
def test_descriptors_that_do_not_fit_their_frame_are_closed(
    pair: tuple[socket.socket, socket.socket], claimed: int, sent: int, error: str
) -> None:
    ours, theirs = pair
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(sent)]
    send(ours, frame(claimed), fds)
    for fd in fds:
        os.close(fd)
    reader = FrameReader(theirs)
    with pytest.raises(FrameError, match=error):
        reader.read()
    reader.close()


def test_more_descriptors_than_a_frame_may_have_close_the_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    send(ours, frame(8), fds)
    for fd in fds:
        os.close(fd)
    reader = FrameReader(theirs)
    with pytest.raises(FrameError, match="that many descriptors"):
        reader.read()
    reader.close()


def test_half_a_frame_leaves_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    fd = os.open("/dev/null", os.O_RDONLY)
    send(ours, frame(1)[:-3], [fd])
    os.close(fd)
    reader = FrameReader(theirs)
    assert reader.read() == []
    reader.close()


def test_a_frame_that_never_ends_gathers_no_descriptors(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """They would be all that the reader's process may open."""
    ours, theirs = pair
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(limits.FRAME_DESCRIPTORS_MAX)]
    reader, whole = FrameReader(theirs), frame(len(fds), b"never ends")
    send(ours, whole[:1], fds)
    assert reader.read() == []
    send(ours, whole[1:2], fds)
    for fd in fds:
        os.close(fd)
    with pytest.raises(FrameError, match="no frame"):
        reader.read()
    reader.close()


class Pipe:
    """A value that travels as a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


def test_values_that_travel_as_descriptors_leak_none_wherever_they_end(tmp_path: Path) -> None:
    def encode_pipe(value: object) -> Encoded | None:
        return Encoded(b"", descriptors=(os.dup(value.fd),)) if isinstance(value, Pipe) else None

    register(Codec("test/pipe", encode_pipe, lambda _, fds: Pipe(fds[0])))
    before = len(descriptors())
    with station(tmp_path / "run" / "bus") as bus:
        sender, receiver = bus.connect(), bus.connect()
        read, written = os.pipe()
        os.write(written, b"hello")
        sender.topic("x").send(Pipe(read))
        with receiver.topic("x").receive(timeout_s=LONG_S) as message:
            got = message.body
        assert os.read(got.fd, 5) == b"hello"
        os.close(got.fd)

        calling = in_thread(lambda: sender.topic("call").call(Pipe(read), timeout_s=LONG_S))
        with receiver.topic("call").receive(timeout_s=LONG_S) as call:
            call.reply(Pipe(written))
        os.close(calling.result(LONG_S).fd)

        ears = [bus.connect().topic("news").subscribe(timeout_s=LONG_S) for _ in range(3)]
        sender.topic("news").publish(Pipe(read))
        next(ears[0])  # which never looks into it, as the others never take it
        sender.topic("nobody").send(Pipe(read))
        sender.topic("nobody").send(Pipe(read), deadline_s=0.01)
        until(lambda: bus.do(lambda: bus.broker.waiting("nobody")) == 1)
        os.close(read)
        os.close(written)
        del message, call
    until(lambda: len(descriptors()) <= before)
