"""What a rank other than the first does while it waits for the first."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest

from zenos.runtime import allocator
from zenos.runtime.train import gang
from zenos.runtime.train.gang import Follower, Step


@pytest.fixture
def links() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_rank_that_hears_nothing_for_long_gives_its_free_memory_back_once(
    links: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, own = links
    given = []

    def give_back() -> None:
        given.append(len(given))
        first.send(msgspec.msgpack.encode(Step(0.5)))

    monkeypatch.setattr(allocator, "give_back", give_back)
    monkeypatch.setattr(gang, "_IDLE_S", 0.001)
    follower = Follower(1, 2, 2, own)
    assert follower.hear() == Step(0.5)
    assert given == [0]
    first.send(msgspec.msgpack.encode(Step(0.25)))
    assert follower.hear() == Step(0.25)
    assert given == [0]
