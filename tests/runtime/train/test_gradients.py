"""Gradients of a gang, with the sums of a rank that is alone or has a silent neighbour."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from zenos.runtime.reduce import seats
from zenos.runtime.train import common
from zenos.runtime.train.common import Common
from zenos.runtime.train.gradients import Gradients, SharedSums, bytes_needed


class Alone:
    """The sums of one rank; notes what was begun, in which order."""

    def __init__(self) -> None:
        self.memories: list[torch.Tensor] = []
        self.begun: list[int] = []

    slots = 1
    bucket_bytes = 64
    shares = False

    def own(self, sizes: Sequence[int]) -> list[bool]:
        return [True] * len(sizes)

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        self.memories.append(torch.full((count,), float("nan")))
        return self.memories[-1]

    def begin(self, bucket: torch.Tensor, *, own: bool = True) -> None:
        self.begun.append(next(n for n, m in enumerate(self.memories) if m is bucket))

    def wait(self, tail: torch.Tensor) -> None:
        self.begin(tail)

    def meet(self) -> None:
        pass

    def close(self) -> None:
        pass


class Model(torch.nn.Module):
    """Layers of odd sizes; one that is not used, one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 5)
        self.idle = torch.nn.Linear(7, 7)
        self.fixed = torch.nn.Linear(5, 5).requires_grad_(False)
        self.last = torch.nn.Linear(5, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.fixed(torch.tanh(self.first(inputs))))
        return out.mean()


def expected(model: Model, batches: list[torch.Tensor]) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    for batch in batches:
        model(batch).backward()
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def check(model: Model, wanted: dict[str, torch.Tensor | None]) -> None:
    for name, parameter in model.named_parameters():
        want = wanted[name]
        assert (parameter.grad is None) == (want is None), name
        if want is not None:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, want), name


def test_gradients_of_several_passes_are_summed_once_each_in_the_order_of_the_buckets() -> None:
    torch.manual_seed(0)
    model, sums = Model(), Alone()
    steps = [[torch.randn(4, 3) for _ in range(count)] for count in (3, 1)]
    wanted = [expected(model, batches) for batches in steps]
    ours = Gradients(model, sums)
    assert len(sums.memories) > 3
    for (*batches, last), want in zip(steps, wanted, strict=True):
        sums.begun.clear()
        for batch in batches:
            model(batch).backward()
        assert sums.begun == []
        ours.arm()
        model(last).backward()
        assert sums.begun[:1] == [0]  # summed before the step is over
        assert ours.sum_up([1.5]) == 1.5
        assert sums.begun == list(range(len(sums.memories)))
        assert not any(memory.isnan().any() for memory in sums.memories)
        check(model, want)
        model.zero_grad()


def test_a_rank_without_anything_to_learn_from_adds_zeros_and_gets_what_the_others_have() -> None:
    class Silent(Alone):
        """The other rank has ones for all that the first layer has."""

        def wait(self, tail: torch.Tensor) -> None:
            for number in self.begun:
                assert not self.memories[number].any()
                self.memories[number].fill_(1.0)
            loss, *_ = tail.tolist()
            assert loss == 0.0
            tail.copy_(torch.tensor([2.5, 1, 1, 0, 0, 0, 0]))

    model = Model()
    ours = Gradients(model, Silent())
    ours.arm()
    assert ours.sum_up([0.0]) == 2.5
    has = {name for name, p in model.named_parameters() if p.grad is not None}
    assert has == {"first.weight", "first.bias"}


class Both(Alone):
    """The sums of one rank that has two shards."""

    slots = 2

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        return super().bucket(count, slot)

    def wait(self, tail: torch.Tensor) -> None:
        self.begin(tail)
        for first, second in zip(self.memories[::2], self.memories[1::2], strict=True):
            first.add_(second)
            second.copy_(first)


def test_two_shards_of_one_process_are_summed_as_those_of_two() -> None:
    torch.manual_seed(0)
    model, sums = Model(), Both()
    ours = Gradients(model, sums)
    for passes in (1, 3):
        batches = [[torch.randn(4, 3) * 1000**shard for _ in range(passes)] for shard in (0, 1)]
        one, two = (expected(model, batches[shard]) for shard in (0, 1))
        for number in range(passes):
            for shard in (0, 1):
                if number == passes - 1 and shard == 1:
                    ours.arm()
                model(batches[shard][number]).backward()
                ours.put(shard)
        assert sums.begun[:1] == [0]  # summed before the step is over
        assert ours.sum_up([1.5, 2.0]) == 3.5
        check(model, {n: None if g is None else g + two[n] for n, g in one.items()})
        sums.begun.clear()
        model.zero_grad()


def test_what_was_put_of_a_step_that_is_dropped_is_in_no_other() -> None:
    torch.manual_seed(0)
    model = Model()
    ours = Gradients(model, Both())
    model(torch.randn(4, 3)).backward()
    ours.put(0)
    model.zero_grad()
    ours.drop()
    batch = torch.randn(4, 3)
    want = expected(model, [batch])
    ours.arm()
    model(batch).backward()
    ours.put(1)
    ours.sum_up([0.0, 1.0])
    check(model, want)


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Copies of all weights and moments."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}.{name}"] = value.clone()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_that_share_a_step_end_where_one_does_that_does_it_alone(ranks: int) -> None:
    """Bit for bit, weights and moments, on each of them, also when gone on from another state."""
    torch.manual_seed(0)
    fresh = Model()
    alone = copy.deepcopy(fresh)
    optimizer = adamw(alone)
    # The norm is above the bound in some steps, and below it in others.
    batches = [[torch.randn(4, 3) * scale for _ in range(3)] for scale in (9, 9, 0.1, 0.1)]
    seen, norms = [], []
    for number, step in enumerate(batches):
        if number == 2:
            later, moments = copy.deepcopy(alone), copy.deepcopy(optimizer.state_dict())
        # A shard's own first, as each rank has it; a sum of three isn't the same in another order.
        parts = [expected(alone, [batch]) for batch in step]
        for name, parameter in alone.named_parameters():
            first, second, third = (part[name] for part in parts)
            if first is not None and second is not None and third is not None:
                parameter.grad = (first + second) + third
        norms.append(float(torch.nn.utils.clip_grad_norm_(alone.parameters(), 3.6)))
        optimizer.step()
        optimizer.zero_grad()
        seen.append(state(alone, optimizer))
    assert min(norms) < 3.6 < max(norms)
    assert not any("idle" in name and "exp" in name for name in seen[-1])

    def rank(sums: SharedSums, shards: range, begin: int) -> None:
        model = copy.deepcopy(later if begin else fresh)
        mine = adamw(model)
        if begin and shards.start == 0:  # the others find them in the memory of all
            mine.load_state_dict(copy.deepcopy(moments))
        together = Common(sums.common, model, mine, first=shards.start == 0)
        ours = Gradients(model, sums)
        sums.meet()
        for step, want, norm in zip(batches[begin:], seen[begin:], norms[begin:], strict=True):
            for number, shard in enumerate(shards):
                if number == len(shards) - 1:
                    ours.arm()
                model(step[shard]).backward()
                ours.put(number)
            assert ours.sum_up([1.0] * len(shards)) == 3.0
            together.admit(ours.used)
            assert ours.clip(3.6) == norm
            mine.step()
            mine.zero_grad()
            ours.meet()
            found = state(model, mine)
            assert found.keys() == want.keys()
            for name, value in want.items():
                assert torch.equal(found[name], value), name
            sums.meet()
        ours.close()

    for begin in (0, 2):
        places = seats(ranks, bytes_needed(alone), 3, common.bytes_needed(alone))
        shards = [range(3 * r // ranks, 3 * (r + 1) // ranks) for r in range(ranks)]
        with ThreadPoolExecutor(ranks) as pool:
            list(pool.map(rank, map(SharedSums, places), shards, [begin] * ranks))


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_whose_share_is_all_or_nothing_take_part_in_the_norm(ranks: int) -> None:
    """Of one parameter, which is one rank's whole."""
    fresh = torch.nn.Linear(3, 4, bias=False)
    batches = [torch.ones(2, 3), torch.full((2, 3), 2.0)]

    def rank(sums: SharedSums, shards: range) -> float:
        model = copy.deepcopy(fresh)
        ours = Gradients(model, sums)
        for number, shard in enumerate(shards):
            model(batches[shard]).sum().backward()
            ours.put(number)
        ours.sum_up([1.0] * len(shards))
        norm = ours.clip(1.0)
        ours.meet()
        sums.meet()
        ours.close()
        return norm

    places = seats(ranks, bytes_needed(fresh), 2)
    shards = [range(2 * r // ranks, 2 * (r + 1) // ranks) for r in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        norms = list(pool.map(rank, map(SharedSums, places), shards))
    assert norms == [pytest.approx(6 * 12**0.5)] * ranks


def test_each_bucket_is_one_ranks_own_and_all_have_about_as_much() -> None:
    sizes = [100, 1, 90, 60, 50, 7, 7, 1000]
    found = []
    for sums in map(SharedSums, seats(3, 4096)):
        found.append(sums.own(sizes))
        sums.close()
    assert [sum(own) for own in zip(*found, strict=True)] == [1] * len(sizes)
    loads = [sum(s for s, own in zip(sizes, row, strict=True) if own) for row in found]
    assert sorted(loads) == [157, 158, 1000]


def test_the_memory_that_is_asked_for_is_enough() -> None:
    model, sums = Model(), Alone()
    Gradients(model, sums)
    used = sum(-(-memory.nbytes // 64) * 64 for memory in sums.memories)
    assert used <= bytes_needed(model) < 2 * used + 1024
