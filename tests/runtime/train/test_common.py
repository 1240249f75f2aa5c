"""Weights and moments in memory that several processes have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zenos.core.errors import InvalidError
from zenos.runtime.train.common import Common, bytes_needed


def common_for(model: torch.nn.Module) -> torch.Tensor:
    """The memory into which it was moved."""
    memory = torch.zeros(bytes_needed(model), dtype=torch.uint8)
    Common(memory, model, torch.optim.AdamW(model.parameters()), first=True)
    return memory


def test_each_tensor_is_a_storage_of_its_own_in_that_memory() -> None:
    """By their storages `save_pretrained` finds tied weights, of which it makes copies."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    model.register_parameter("empty", torch.nn.Parameter(torch.empty(0, 5)))
    model.append(model[0])  # tied
    want = [parameter.detach().clone() for parameter in model.parameters()]
    memory = common_for(model)
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    storages = set()
    for parameter, value in zip(model.parameters(), want, strict=True):
        assert torch.equal(parameter, value)
        storage = parameter.untyped_storage()
        assert storage.nbytes() == parameter.nbytes
        if parameter.nbytes:
            assert begin <= storage.data_ptr() < end
            storages.add(storage.data_ptr())
    assert len(storages) == 4
    assert model[2].weight is model[0].weight


def test_the_memory_stays_while_a_tensor_is_in_it() -> None:
    model = torch.nn.Linear(300, 300)
    want = model.weight.detach().clone()
    common_for(model)
    assert torch.equal(model.weight, want)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dtype": torch.bfloat16}, "torch.bfloat16 on cpu"),
        ({"device": "meta"}, "torch.float32 on meta"),
        ({}, "torch.float32, not contiguous, on cpu"),
    ],
)
def test_a_parameter_that_cannot_lie_there_is_named_and_nothing_is_moved(
    change: dict[str, Any], what: str
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, **change))
    if not change:
        model[1].weight = torch.nn.Parameter(torch.zeros(3, 2).T)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(InvalidError, match=rf"^cannot share the parameter 1\.weight .* is {what},"):
        common_for(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
