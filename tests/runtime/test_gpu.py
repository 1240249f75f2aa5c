"""A worker's share of a GPU's memory, and a replica's cache in it. Nothing here needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.runtime.engine.conftest import CONFIGS
from tests.runtime.train.helpers import make_context, make_task, spec
from zenos.core.errors import InvalidError
from zenos.core.resources import Resources
from zenos.core.task import Allocation, Task
from zenos.runtime import gpu, worker
from zenos.runtime.engine import llama, serve
from zenos.runtime.engine.general import GeneralBackend

GIB = 2**30


def holding(shares: dict[int, int], gpu_memory: int = 0) -> Task:
    resources = Resources(gpu=sum(shares.values()), gpu_memory=gpu_memory)
    held = Allocation(node="local", resources=resources, shares=shares)
    return replace(make_task(spec(Path("/x"))), allocation=held)


@pytest.mark.parametrize(
    ("shares", "asked", "limit"),
    [
        ({}, 0, 0),
        ({0: 1000}, 0, 80 * GIB),
        ({0: 500}, 0, 40 * GIB),
        ({0: 500}, 10 * GIB, 10 * GIB),
        ({0: 1000, 1: 1000}, 60 * GIB, 30 * GIB),
        ({0: 1000}, 200 * GIB, 80 * GIB),
    ],
)
def test_a_limit_is_what_was_asked_for_or_the_share(
    shares: dict[int, int], asked: int, limit: int
) -> None:
    assert gpu.limit_bytes(holding(shares, asked), 80 * GIB) == limit


def test_torch_is_held_to_it_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[int, float] = {}
    properties = type("Properties", (), {"total_memory": 80 * GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, device: set_to.update({device: fraction}),
    )
    assert gpu.restrict(holding({2: 1000, 5: 1000}, 40 * GIB)) == 20 * GIB
    assert set_to == {0: 0.25, 1: 0.25}
    set_to.clear()
    assert gpu.restrict(holding({})) == 0
    assert set_to == {}


def test_a_model_with_a_long_context_fits_into_a_small_card() -> None:
    # Llama 3.2 1B in bfloat16: 16 layers, 8 heads of 64 for keys and for values.
    each, weights, context, slots = 16 * 2 * 8 * 64 * 2, 5 * GIB // 2, 131_072, 32
    assert slots * context * each == 128 * GIB
    for card, rows in ((8, 8), (24, 8), (80, 13)):
        room = gpu.cache_bytes(card * GIB, weights, (card - 1) * GIB - weights)
        found, length = gpu.layout(room // each, slots, context, fixed=False)
        assert found >= 8
        assert found * length * each + weights < (card - 1) * GIB * 0.9
        assert abs(found - rows) <= 1


@given(st.integers(0, 10**7), st.integers(1, 256), st.integers(1, 200_000), st.booleans())
def test_what_is_reserved_fits(positions: int, slots: int, context: int, fixed: bool) -> None:
    try:
        rows, length = gpu.layout(positions, slots, context, fixed=fixed)
    except InvalidError:
        assert positions < context if fixed else positions == 0
        return
    assert 1 <= rows <= slots
    assert 1 <= length <= context
    assert rows * length <= positions
    assert length == context or not fixed
    if slots * context <= positions:
        assert (rows, length) == (slots, context)


def test_what_others_hold_is_not_counted_on() -> None:
    assert gpu.cache_bytes(40 * GIB, 0, 10 * GIB) < 8 * GIB
    assert gpu.cache_bytes(0, 5 * GIB, 10 * GIB) == gpu.cache_bytes(40 * GIB, 0, 10 * GIB)
    assert gpu.cache_bytes(GIB, 2 * GIB, 10 * GIB) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_position_is_measured_before_the_cache_is_made(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GIB)
    fit = serve._positions_on_gpu(model, 512, torch.float32, 3 * GIB)
    room = gpu.cache_bytes(3 * GIB, GIB, 5 * GIB)
    backend: Any = (
        llama.LlamaBackend(model, 2, 512, torch.float32)
        if family == "llama"
        else GeneralBackend(model, 2, 512)
    )
    held = sum(c.tensor.numel() * c.tensor.element_size() for c in backend._caches)
    assert held == 2 * 512 * backend.token_bytes
    assert fit == room // backend.token_bytes


def test_a_worker_sees_the_devices_that_the_daemon_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    worker.use_devices(holding({0: 1000, 1: 1000}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,0"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    worker.use_devices(holding({}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_gpu_without_room_says_what_to_do(tmp_path: Path) -> None:
    context = make_context(tmp_path, make_task(spec(tmp_path)))

    def work(_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert worker.run(context, work) == 1
    said = (context.run_dir / "error.json").read_text()
    assert "cannot allocate more GPU memory: ask for a larger share with --gpu" in said
