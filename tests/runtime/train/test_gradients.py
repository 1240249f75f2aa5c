"""Gradients of a gang, with the sums of a rank that is alone or has a silent neighbour."""

from __future__ import annotations

import pytest
import torch

from zenos.runtime.train import gradients as gradients_module
from zenos.runtime.train.gradients import Gradients, bytes_needed


class Alone:
    """The sums of one rank; notes what was begun, in which order."""

    def __init__(self) -> None:
        self.memories: list[torch.Tensor] = []
        self.begun: list[int] = []

    slots = 1

    def bucket(self, count: int, slot: int) -> torch.Tensor:
        self.memories.append(torch.full((count,), float("nan")))
        return self.memories[-1]

    def begin(self, bucket: torch.Tensor) -> None:
        self.begun.append(next(n for n, m in enumerate(self.memories) if m is bucket))

    def wait(self) -> None:
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


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "BUCKET_BYTES", 64)


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

        def wait(self) -> None:
            for memory in self.memories[:-1]:
                assert not memory.any()
                memory.fill_(1.0)
            loss, *_ = self.memories[-1].tolist()
            assert loss == 0.0
            self.memories[-1].copy_(torch.tensor([2.5, 1, 1, 0, 0, 0, 0]))

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

    def wait(self) -> None:
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


def test_the_memory_that_is_asked_for_is_enough() -> None:
    model, sums = Model(), Alone()
    Gradients(model, sums)
    used = sum(-(-memory.nbytes // 64) * 64 for memory in sums.memories)
    assert used <= bytes_needed(model) < 2 * used + 1024
