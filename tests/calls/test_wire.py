"""Frames and packets arrive whole, however they are cut, and from memory that is used again."""

from __future__ import annotations

import socket

import pytest

from zenos.calls import wire
from zenos.core import limits

MESSAGES = [
    wire.Ready(),
    wire.Results([wire.Result(7, wire.DONE, bytes(range(256)), 0.5)]),
    wire.Accepted([1, 2, 3]),
]


@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
def test_frames_come_whole_however_the_stream_is_cut(size: int) -> None:
    stream = b"".join(map(wire.frame, MESSAGES))
    frames, found = wire.Frames(wire.from_host), []
    memory = bytearray(size)
    for at in range(0, len(stream), size):
        part = stream[at : at + size]
        memory[: len(part)] = part
        found += frames.take(memoryview(memory)[: len(part)])
        memory[:] = b"\xff" * size  # as the next read does: nothing may refer to it
    assert found == MESSAGES


@pytest.mark.parametrize("more", [0, 1])
def test_a_packet_comes_whole_up_to_the_largest_and_beyond(more: int) -> None:
    payload = bytes(limits.CALL_PACKET_BYTES_MAX + more)
    link, lane = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with link, lane:
        wire.widen(link)
        large = len(payload) > limits.CALL_PACKET_BYTES_MAX
        run = wire.Run(1, b"key", b"" if large else payload, 0, 0)
        wire.send_packet(link, run, payload if large else b"")
        packet = wire.receive_packet(lane)
        assert packet is not None
        body, beside = packet
        wire.send_packet(link, wire.Forget(b"other"))
        assert wire.receive_packet(lane) == (wire.encoder.encode(wire.Forget(b"other")), b"")
        message = wire.to_lane.decode(body)
        assert isinstance(message, wire.Run)
        assert (beside or message.arguments) == payload
