"""Frames between a pool and its lanes: what is sent comes, and garbage does no harm."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core import limits
from zenos.threads import codec
from zenos.threads.codec import LENGTH, FrameError, Header


def through(frames: list[list[bytes]]) -> list[list[bytes]]:
    """The parts of each frame, as they come out at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            for parts in frames:
                codec.send(ours, Header(kind="run"), parts)
            ours.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        found = []
        while (frame := codec.receive(theirs)) is not None:
            found.append([bytes(part) for part in frame[1]])
        sender.join()
        return found


@given(st.lists(st.lists(st.binary(max_size=100), max_size=5), max_size=4))
def test_what_is_sent_comes(frames: list[list[bytes]]) -> None:
    assert through(frames) == frames


def test_large_frames_and_many_buffers_come() -> None:
    frames = [[b"x" * 3_000_000, bytearray(1_000_000)], [bytes([n % 256]) for n in range(2000)]]
    assert through([[bytes(p) for p in f] for f in frames]) == [
        [bytes(part) for part in frame] for frame in frames
    ]


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_the_end(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with suppress(FrameError):
            while codec.receive(theirs) is not None:
                pass


@pytest.mark.parametrize(
    "header",
    [
        Header(kind="run", sizes=[-1], writable=[True]),
        Header(kind="run", sizes=[1], writable=[]),
        Header(kind="run", sizes=[limits.LANE_FRAME_BYTES_MAX + 1], writable=[False]),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(header: Header) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        encoded = codec._encoder.encode(header)
        ours.sendall(LENGTH.pack(len(encoded)) + encoded)
        with pytest.raises(FrameError, match="cannot read a frame"):
            codec.receive(theirs)


def test_a_header_that_is_too_long_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LENGTH.pack(limits.LANE_HEADER_BYTES_MAX + 1))
        with pytest.raises(FrameError, match="too long"):
            codec.receive(theirs)
