"""Whoever is killed while holding shared memory, at whatever point, holds it no longer."""

from __future__ import annotations

import random
import socket

import pytest

from tests.bus import memory_peers
from tests.bus.memory_peers import SEED, WAIT_S, Peers, held, kill
from tests.processes import until
from zenos.bus import parcel, passing
from zenos.bus.memory import Pool
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import HandleError


def feed(pool: Pool, link: socket.socket, chance: random.Random) -> None:
    """Give the peer some buffers, and hear that it has some of them."""
    given = chance.randrange(1, 6)
    for _ in range(given):
        buffer = pool.allocate(chance.randrange(1, 300_000), wait_s=WAIT_S)
        buffer.memory[:1] = b"r"
        with buffer.lend() as one:
            parcel.send(link, one, timeout_s=WAIT_S)
    for _ in range(chance.randrange(given + 1)):
        assert link.recv(1) == b"r"


def take(link: socket.socket, chance: random.Random) -> list[View]:
    """Some views of what the peer gives."""
    views = []
    for _ in range(chance.randrange(1, 6)):
        got = parcel.receive(link, timeout_s=WAIT_S)
        assert got is not None
        with got:
            views.append(View(got))
    return views


def storm(peers: Peers, kills: int) -> None:
    chance = random.Random(SEED)  # noqa: S311
    before = held()
    with Pool(16 * limits.MIB) as pool:
        for number in range(kills):
            role = chance.choice(sorted(memory_peers.ROLES))
            with peers.peer(role) as (pid, link):
                if role == "own":
                    views = take(link, chance)
                    kill(pid)
                    assert all(bytes(view.memory()[:1]) == b"o" for view in views), number
                    del views
                else:
                    feed(pool, link, chance)
                    kill(pid)
        until(lambda: pool.state.lent == 0)
        state = pool.state
        assert (state.written, state.idle_bytes) == (0, state.bytes), f"seed {SEED}"
    assert held() == before, f"seed {SEED}"


def test_killed_processes_leave_no_memory_and_no_descriptor() -> None:
    with memory_peers.started() as peers:
        storm(peers, 60)


@pytest.mark.soak
def test_a_thousand_kills() -> None:
    with memory_peers.started() as peers:
        storm(peers, 1000)


def test_memory_of_a_killed_owner_stays_with_its_readers() -> None:
    before = held()
    with memory_peers.started() as peers, peers.peer("own") as (pid, link):
        got = parcel.receive(link, timeout_s=WAIT_S)
        assert got is not None
        kill(pid)
        until(lambda: not link.recv(1 << 16))
        with got, View(got) as view:
            assert bytes(view.memory()[:1]) == b"o"
    assert held() == before


def test_a_cut_off_parcel_is_refused() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Pool(limits.MIB) as pool, theirs, pool.allocate(10).lend() as given:
        with ours:
            socket.send_fds(ours, [passing.LENGTH.pack(100) + b"half"], list(given.descriptors))
        before = held()
        with pytest.raises(HandleError, match="cannot read this packet: it is cut"):
            parcel.receive(theirs)
        assert held() == before
