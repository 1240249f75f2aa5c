"""Sums in shared memory while the backward pass goes on: nothing is summed before all have written
it, and what all have written doesn't wait for the meeting."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import until
from zenos.core.errors import RankError
from zenos.runtime.reduce import Group, seats, share
from zenos.runtime.train import gradients
from zenos.runtime.train.gradients import Gradients, SharedSums, bytes_needed

NAN = float("nan")


class Ranks:
    """Some ranks' sums in one process, with buckets of these sizes, and what they must become."""

    def __init__(self, made: list[SharedSums], slots: int, sizes: list[int]) -> None:
        self.made = made
        self.own = [sums.own(sizes) for sums in made]
        self.slots = [share(slots, rank, len(made)) for rank in range(len(made))]
        self.buckets = [
            [[sums.bucket(size, slot) for slot in range(sums.slots)] for size in sizes]
            for sums in made
        ]
        self.tails = [[sums.bucket(1, slot) for slot in range(sums.slots)] for sums in made]
        self.count = len(sizes)

    def term(self, step: int, slot: int, number: int, size: int) -> torch.Tensor:
        """What a slot has: sums of these depend on their order."""
        random = torch.Generator().manual_seed(1000 * step + 100 * slot + number)
        return torch.randn(size, generator=random) * 10.0 ** (3 * slot)

    def begin(self, step: int, rank: int, number: int) -> None:
        """This rank's next bucket is complete."""
        parts = self.buckets[rank][number]
        for part, slot in zip(parts, self.slots[rank], strict=True):
            part.copy_(self.term(step, slot, number, part.numel()))
        self.made[rank].begin(parts[0], own=self.own[rank][number])

    def end(self, rank: int) -> None:
        """This rank's pass is over; it waits for the others."""
        for tail in self.tails[rank]:
            tail.fill_(1.0)
        self.made[rank].wait(self.tails[rank][0])

    def check(self, step: int) -> None:
        """Whose they are, and nobody else, has the sums, in the order of the slots."""
        count = sum(map(len, self.slots))
        for rank, (own, buckets) in enumerate(zip(self.own, self.buckets, strict=True)):
            assert self.tails[rank][0].item() == count
            for number, parts in enumerate(buckets):
                size = parts[0].numel()
                terms = [self.term(step, slot, number, size) for slot in range(count)]
                want = [terms[slot] for slot in self.slots[rank]]
                if own[number]:
                    want[0] = terms[0]
                    for term in terms[1:]:
                        want[0] = want[0] + term
                for part, expected in zip(parts, want, strict=True):
                    assert torch.equal(part, expected), (rank, number)

    def poison(self, rank: int) -> None:
        """After a step its memory may be anything."""
        for parts in self.buckets[rank]:
            for part in parts:
                part.fill_(NAN)


@contextmanager
def ranks_of(count: int, slots: int, sizes: list[int]) -> Iterator[Ranks]:
    with ExitStack() as stack:
        made = []
        for seat in seats(count, 64 * (len(sizes) + 2) + 4 * sum(sizes), slots):
            made.append(SharedSums(seat))
            stack.callback(made[-1].close)
        yield Ranks(made, slots, sizes)


@given(data=st.data(), count=st.integers(1, 3), extra=st.integers(0, 2))
def test_whoever_is_ahead_all_sums_are_those_of_the_step(
    data: st.DataObject, count: int, extra: int
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    turns = data.draw(st.sampled_from([1, 2, 16]))
    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor(count) as pool,
        ranks_of(count, count + extra, sizes) as ranks,
    ):
        patch.setattr(gradients, "TURNS", turns)
        for step in range(3):
            order = [rank for rank in range(count) for _ in sizes]
            begun = [0] * count
            waiting = {}
            for rank in data.draw(st.permutations(order)):
                ranks.begin(step, rank, begun[rank])
                begun[rank] += 1
                if begun[rank] == len(sizes):  # it is at the meeting before the others
                    waiting[rank] = pool.submit(ranks.end, rank)
            for future in waiting.values():
                future.result(60)
            ranks.check(step)
            # As between two steps: all have what they need, and nobody sums any more.
            list(pool.map(SharedSums.meet, ranks.made))
            for rank in range(count):
                ranks.poison(rank)
            list(pool.map(SharedSums.meet, ranks.made))


class Spy:
    """Notes which rank sums for itself, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranks: list[int] = []
        real = Group.reduce_here

        def reduce_here(group: Group, bucket: torch.Tensor) -> None:
            self.ranks.append(group.rank)
            real(group, bucket)

        monkeypatch.setattr(Group, "reduce_here", reduce_here)


def test_who_is_behind_sums_during_its_pass_what_the_other_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    with ThreadPoolExecutor(2) as pool, ranks_of(2, 2, [8] * 32) as ranks:
        for number in range(32):
            ranks.begin(0, 0, number)
        assert spy.ranks == []  # the other has nothing yet
        for number in range(32):
            ranks.begin(0, 1, number)
        assert spy.ranks == [1] * sum(ranks.own[1])
        list(pool.map(ranks.end, range(2)))
        assert sorted(spy.ranks) == [0] * sum(ranks.own[0]) + [1] * sum(ranks.own[1])
        ranks.check(0)


def test_two_that_go_in_step_sum_nearly_all_during_the_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy(monkeypatch)
    told: list[int] = []
    real = Group.tell

    def tell(group: Group, count: int) -> None:
        told.append(count)
        real(group, count)

    monkeypatch.setattr(Group, "tell", tell)
    with ThreadPoolExecutor(2) as pool, ranks_of(2, 2, [8] * 64) as ranks:
        for step in range(2):
            for number in range(64):
                for rank in range(2):
                    ranks.begin(step, rank, number)
            assert len(spy.ranks) >= 64 - 64 // gradients.TURNS
            assert len(told) == 2 * gradients.TURNS
            list(pool.map(ranks.end, range(2)))
            ranks.check(step)
            list(pool.map(SharedSums.meet, ranks.made))
            spy.ranks.clear()
            told.clear()


def test_who_waits_sums_what_becomes_complete_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    with ThreadPoolExecutor(2) as pool, ranks_of(2, 2, [8] * 32) as ranks:
        for number in range(32):
            ranks.begin(0, 0, number)
        first = pool.submit(ranks.end, 0)
        for number in range(16):
            ranks.begin(0, 1, number)
        until(lambda: spy.ranks.count(0) >= sum(ranks.own[0][:16]))
        assert not first.done()
        for number in range(16, 32):
            ranks.begin(0, 1, number)
        ranks.end(1)
        first.result(60)
        ranks.check(0)


def test_a_backward_pass_itself_makes_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hooks of a model, for whichever rank comes second."""
    spy = Spy(monkeypatch)
    torch.manual_seed(0)
    fresh = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(12)))
    batches = [torch.randn(3, 4) for _ in range(2)]
    alone = copy.deepcopy(fresh)
    parts = []
    for batch in batches:
        alone.zero_grad()
        alone(batch).sum().backward()
        parts.append([parameter.grad for parameter in alone.parameters()])
    models = [copy.deepcopy(fresh) for _ in batches]
    with ExitStack() as stack:
        ours = []
        for model, seat in zip(models, seats(2, bytes_needed(fresh)), strict=True):
            ours.append(Gradients(model, SharedSums(seat)))
            stack.callback(ours[-1].close)
        for rank in range(2):
            ours[rank].arm()
            models[rank](batches[rank]).sum().backward()
        assert spy.ranks.count(1) >= 8
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda one: one.sum_up([1.0]), ours)) == [2.0, 2.0]
        for number, (first, second) in enumerate(zip(*parts, strict=True)):
            found = [list(model.parameters())[number].grad for model in models]
            (total,) = [grad for grad in found if grad is not None]
            assert first is not None
            assert second is not None
            assert torch.equal(total, first + second)


def test_what_is_told_holds_until_the_next_meeting() -> None:
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        groups = [stack.enter_context(Group(seat)) for seat in seats(3, 64)]
        one, two, three = groups
        one.tell(3)
        assert two.heard() == 0  # the third has done nothing
        three.tell(5)
        three.tell(7)
        assert (two.heard(), one.heard(), three.heard()) == (3, 0, 0)
        list(pool.map(Group.barrier, groups))
        assert [group.heard() for group in groups] == [0, 0, 0]
        three.tell(1)
        late = pool.submit(one.barrier)
        until(lambda: two.heard() == 1)  # the first is at the meeting: it has done all
        list(pool.map(Group.barrier, (two, three)))
        late.result(60)


def test_who_does_not_listen_holds_up_nobody_who_tells() -> None:
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        groups = [stack.enter_context(Group(seat)) for seat in seats(2, 64)]
        for number in range(100_000):
            groups[0].tell(number)
        list(pool.map(Group.barrier, groups))


def test_alone_all_others_have_done_all() -> None:
    (seat,) = seats(1, 64)
    with Group(seat) as group:
        group.tell(1)
        assert group.heard() == math.inf


@pytest.mark.parametrize("begun", [0, 5, 32])
def test_who_ends_during_its_pass_is_named_at_the_meeting(begun: int) -> None:
    with ranks_of(2, 2, [8] * 32) as ranks:
        for number in range(begun):
            ranks.begin(0, 1, number)
        for peer in ranks.made[1]._group._peers:  # as by its death: without a word
            peer.link.close()
        ranks.made[1]._group._peers = []
        for number in range(32):
            ranks.begin(0, 0, number)
        with pytest.raises(RankError, match="rank 1 has ended"):
            ranks.end(0)
