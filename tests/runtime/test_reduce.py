"""All-reduce in shared memory: the sum in the order of the ranks, on all of them, or an error that
names who is missing."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bus.memory_peers import fork, held
from tests.processes import until
from zenos.core.errors import (
    ConflictError,
    HandleError,
    InvalidError,
    RankError,
    TooLargeError,
)
from zenos.runtime import reduce
from zenos.runtime.reduce import Group, Seat, seats

WAIT_S = 120.0
BYTES = 1 << 21


@contextmanager
def gang(
    ranks: int, bytes_max: int = BYTES, slots: int | None = None, common: int = 0
) -> Iterator[list[Group]]:
    """All ranks in this process; each is used from a thread of its own."""
    with ExitStack() as stack:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with left, right:
            for seat in seats(ranks, bytes_max, slots, common):
                seat.send(left)
            yield [stack.enter_context(Group(Seat.receive(right))) for _ in range(ranks)]


def on_all(groups: list[Group], work: Callable[[Group], object]) -> list[object]:
    """Do it on all ranks at once; what each returned or raised."""

    def one(group: Group) -> object:
        try:
            return work(group)
        except (RankError, ConflictError) as error:
            return error

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(one, groups))


def terms(ranks: int, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Vectors whose sum depends on the order in which they are added."""
    made = torch.Generator().manual_seed(ranks * 1000 + count)
    return [
        (torch.randn(count, generator=made) * 10.0 ** (3 * rank)).to(dtype) for rank in range(ranks)
    ]


def expected(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


@pytest.mark.parametrize("dtype", reduce.DTYPES, ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 33, 1000, 300_001])
def test_all_ranks_get_the_sum_in_rank_order(ranks: int, count: int, dtype: torch.dtype) -> None:
    parts = terms(ranks, count, dtype)
    with gang(ranks) as groups:

        def work(group: Group) -> torch.Tensor:
            before, bucket = group.bucket(7, dtype), group.bucket(count, dtype)
            before.fill_(group.rank)
            bucket.copy_(parts[group.rank])
            group.all_reduce(bucket, timeout_s=WAIT_S)
            assert before.tolist() == [group.rank] * 7, "something else was written to"
            return bucket.clone()

        for result in on_all(groups, work):
            assert torch.equal(result, expected(parts)), result  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", reduce.DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 1000, 300_001])
def test_however_many_ranks_share_the_slots_the_sum_is_the_same(
    count: int, dtype: torch.dtype
) -> None:
    parts = terms(5, count, dtype)
    for ranks in range(1, 6):
        with gang(ranks, slots=5) as groups:
            assert [slot for group in groups for slot in group.own] == list(range(5))

            def work(group: Group) -> list[torch.Tensor]:
                buckets = [group.bucket(count, dtype, slot) for slot in group.own]
                for bucket, slot in zip(buckets, group.own, strict=True):
                    bucket.copy_(parts[slot])
                group.all_reduce(buckets[0], timeout_s=WAIT_S)
                return [bucket.clone() for bucket in buckets]

            for results in on_all(groups, work):
                for result in results:  # type: ignore[attr-defined]
                    assert torch.equal(result, expected(parts)), ranks


@pytest.mark.parametrize("dtype", reduce.DTYPES, ids=str)
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 33, 300_001])
def test_a_sum_for_one_rank_is_the_same_and_leaves_the_terms_of_others(
    slots: int, count: int, dtype: torch.dtype
) -> None:
    parts = terms(slots, count, dtype)
    ranks = -(-slots // 2)
    for wanted in range(ranks):
        with gang(ranks, slots=slots) as groups:

            def work(group: Group, wanted: int = wanted) -> list[torch.Tensor]:
                buckets = [group.bucket(count, dtype, slot) for slot in group.own]
                for bucket, slot in zip(buckets, group.own, strict=True):
                    bucket.copy_(parts[slot])
                group.barrier(timeout_s=WAIT_S)
                if group.rank == wanted:
                    group.reduce_here(buckets[0])
                group.barrier(timeout_s=WAIT_S)
                return [bucket.clone() for bucket in buckets]

            found = [t for result in on_all(groups, work) for t in result]  # type: ignore[attr-defined]
            place = groups[wanted].own[0]
            assert torch.equal(found[place], expected(parts))
            for slot in set(range(slots)) - {place}:
                assert torch.equal(found[slot], parts[slot]), slot


def test_what_one_rank_writes_to_the_common_memory_all_have() -> None:
    with gang(3, common=1000) as groups:
        assert [group.common.tolist() for group in groups] == [[0] * 1000] * 3

        def work(group: Group) -> list[int]:
            group.common[group.rank :: 3] = group.rank + 1
            group.bucket(BYTES // 4, torch.float32).fill_(7.0)  # all of its slot: nothing of it
            group.barrier(timeout_s=WAIT_S)
            found: list[int] = group.common[:6].tolist()
            return found

        assert on_all(groups, work) == [[1, 2, 3, 1, 2, 3]] * 3


@given(st.integers(2, 4), st.lists(st.integers(0, 3000), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_bucket_after_bucket_and_parts_of_them(ranks: int, counts: list[int]) -> None:
    with gang(ranks) as groups:

        def work(group: Group) -> list[float]:
            found = []
            for count in counts:
                bucket = group.bucket(count, torch.float32).fill_(group.rank + 1)
                group.all_reduce(bucket[count // 3 :], timeout_s=WAIT_S)
                found.append(bucket.sum().item())
            group.barrier(timeout_s=WAIT_S)
            return found

        total = ranks * (ranks + 1) / 2
        for rank, found in enumerate(on_all(groups, work)):
            assert found == [(rank + 1) * (c // 3) + total * (c - c // 3) for c in counts]


PROGRAM = """
import os, random, signal, sys, time
import torch
from zenos.core.errors import RankError
from zenos.runtime.reduce import Group, seats

torch.set_num_threads(1)
made = seats(3, 1 << 20)
ready, said = os.pipe(), os.pipe()
ranks = []
for rank in range(3):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        for seat in made:
            if seat.rank != rank:
                seat.close()
        with Group(made[rank]) as group:
            bucket = group.bucket(100_000, torch.float32)
            try:
                for step in range(10**9):
                    bucket.fill_(group.rank + step)
                    group.all_reduce(bucket, timeout_s=10_000)
                    assert bucket[0] == bucket[-1] == 3 + 3 * step
                    if step == 10:
                        os.write(ready[1], b"r")
            except RankError as error:
                os.write(said[1], f"{error}\\n".encode())
        os._exit(0)
for seat in made:
    seat.close()
heard = b""
while len(heard) < 3:
    heard += os.read(ready[0], 3)
os.kill(ranks[1], signal.SIGKILL)
for pid in ranks:
    os.waitpid(pid, 0)
os.close(said[1])
sys.stdout.write(os.read(said[0], 4096).decode())
"""


def test_a_killed_rank_ends_the_others_at_once_and_is_named() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=WAIT_S
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stderr
    assert all("of 3 ranks: rank 1 " in line for line in lines), lines


# -- what a rank hears of others, in one process


class Poll:
    """Says when it is waited on; what waits is registered with the real one."""

    def __init__(self, group: Group) -> None:
        self.real = group._poll
        self.waits = threading.Event()
        group._poll = self  # type: ignore[assignment]

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        self.waits.set()
        return self.real.poll(timeout_ms)

    def unregister(self, link: socket.socket) -> None:
        self.real.unregister(link)


def test_a_rank_that_waits_long_blocks_and_is_woken() -> None:
    with gang(2) as (zero, one), ThreadPoolExecutor(1) as pool:
        waiting = Poll(zero).waits
        done = pool.submit(zero.barrier, timeout_s=WAIT_S)
        assert waiting.wait(WAIT_S)
        one.barrier(timeout_s=WAIT_S)
        done.result(WAIT_S)


def test_what_a_rank_says_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer = reduce._Peer(1, left.detach())
    heard = []

    class Emptied:
        """It is waited for room: then the other end takes in all that was said."""

        def __init__(self) -> None:
            self.real = poll()

        def register(self, link: socket.socket, what: int) -> None:
            self.real.register(link, what)

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            while not heard or heard[-1] != said:
                heard.append(int.from_bytes(right.recv(8)))
            return self.real.poll(timeout_ms)

    poll = select.poll
    monkeypatch.setattr(reduce.select, "poll", Emptied)
    said = -1
    with right, peer.link:
        while peer.say((said + 1).to_bytes(8), end=0.0):
            said += 1
        assert peer.say((said + 1).to_bytes(8), end=time.monotonic() + WAIT_S)
        assert heard == list(range(said + 1))
        assert int.from_bytes(right.recv(8)) == said + 1


def test_a_rank_that_has_left_or_does_something_else_is_named() -> None:
    with gang(3) as groups:

        def leave(group: Group) -> None:
            group.barrier(timeout_s=WAIT_S)
            if group.rank == 1:
                group.close()
            else:
                group.barrier(timeout_s=WAIT_S)

        first, second, third = on_all(groups, leave)
        assert second is None
        for found in (first, third):
            assert isinstance(found, RankError)
            assert "ranks: rank 1 has left" in found.message or "rank 1 was lost" in found.message
    with gang(2) as groups:

        def differ(group: Group) -> None:
            bucket = group.bucket(100 + group.rank, torch.float32)
            group.all_reduce(bucket, timeout_s=WAIT_S)

        messages = [str(error) for error in on_all(groups, differ)]
        assert any("does something else" in message for message in messages), messages
        assert all(message.startswith("cannot go on") for message in messages)
        with pytest.raises(ConflictError, match=r"^cannot use a group"):
            groups[0].barrier()


def test_who_is_late_is_named_and_hears_of_it() -> None:
    with gang(3) as (zero, one, two), ThreadPoolExecutor(1) as pool:
        waiting = Poll(one).waits
        done = pool.submit(one.barrier, timeout_s=WAIT_S)
        assert waiting.wait(WAIT_S)
        with pytest.raises(
            RankError, match=r"step 1 of 3 ranks: rank 2 has not come within 0.01 s"
        ):
            zero.barrier(timeout_s=0.01)
        with pytest.raises(RankError, match="rank 2 was lost, says rank 0"):
            done.result(WAIT_S)
        with pytest.raises(RankError, match="has given this one up"):
            two.barrier(timeout_s=WAIT_S)


def test_all_leave_after_the_last_step_without_an_error() -> None:
    for _ in range(20):
        with gang(4) as groups:

            def work(group: Group) -> None:
                group.barrier(timeout_s=WAIT_S)
                group.close()

            assert on_all(groups, work) == [None] * 4


def test_a_fork_of_a_rank_does_not_keep_its_place() -> None:
    zero, one = (Group(seat) for seat in seats(2, BYTES))
    ask, answer = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(answer)
        os.read(ask, 1)
        os._exit(0)
    for peer in one._peers:  # as if it were killed: it says nothing
        peer.link.close()
    with zero, pytest.raises(RankError, match="rank 1 has ended"):
        zero.barrier(timeout_s=WAIT_S)
    os.close(answer)
    os.close(ask)
    os.waitpid(pid, 0)
    one._peers = []


def test_only_buckets_of_known_types_are_reduced() -> None:
    with gang(1, 4096) as (group,):
        with pytest.raises(InvalidError, match=r"^cannot reduce torch.int64"):
            group.bucket(1, torch.int64)
        with pytest.raises(TooLargeError, match=r"^cannot make a bucket of 1025"):
            group.bucket(1025, torch.float32)
        bucket = group.bucket(1000, torch.float32)
        for wrong in (torch.zeros(4), bucket[::2], bucket.view(torch.int32)):
            with pytest.raises(InvalidError, match=r"^cannot reduce this tensor"):
                group.all_reduce(wrong)


def test_seats_that_lie_are_refused_and_leave_nothing() -> None:
    before = held()
    for change in ({"rank": 2}, {"ranks": 3}, {"bytes": 8192}, {"segment": 1}, {"common": 1}):
        made = seats(2, 4096)
        for name, value in change.items():
            setattr(made[0], name, value)
        with pytest.raises(HandleError, match=r"^cannot "):
            Group(made[0])
        made[1].close()
    for wrong in ((0, 1), (65, 1), (2, 0)):
        with pytest.raises(InvalidError, match=r"^cannot make a group"):
            seats(*wrong)
    left, right = socket.socketpair()
    with right:
        left.close()
        with pytest.raises(HandleError, match=r"^cannot take a seat"):
            Seat.receive(right)
    until(lambda: held() == before)
