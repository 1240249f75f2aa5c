"""Weights from one process to another, through shared memory."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from zenos.bus import segment
from zenos.bus.memory import Pool, size_class
from zenos.core.errors import HandleError
from zenos.runtime import weights
from zenos.runtime.weights import Image, Offer

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@pytest.fixture
def at(tmp_path: Path) -> str:
    return f"\0zenos-test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def offer(at: str) -> Iterator[Offer]:
    made = Offer(at)
    yield made
    made.close()
    with pytest.raises(OSError, match="refused"), socket.socket(socket.AF_UNIX) as link:
        link.connect(at)
    assert "offer" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2 * (segment.HEADER_BYTES + size_class(1 << 16))) as made:
        yield made


def put(offer: Offer, pool: Pool, version: str, value: float) -> None:
    """Offer one tensor full of a number."""
    tensors = {"w": torch.full((100, 7), value)}
    image = Image(tensors)
    buffer = pool.allocate(image.bytes)
    image.write(tensors, buffer.memory)
    offer.put(version, buffer.lend())


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6))
def test_what_lies_in_memory_is_a_safetensors_file(
    kinds: list[tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    tensors = {
        f"t{number}": (torch.rand(shape) * 100).to(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    image = Image(tensors)
    memory = bytearray(image.bytes)
    image.write(tensors, memoryview(memory))
    for found in (load(bytes(memory)), weights.read(memoryview(memory), torch.float32)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[name].to(tensor.dtype), tensor), name
    changed = weights.read(memoryview(memory), torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 for t in changed.values() if t.is_floating_point())


@given(st.binary(max_size=200), st.integers(0, 150), st.binary(max_size=8))
def test_what_is_no_such_file_is_refused(noise: bytes, place: int, change: bytes) -> None:
    with pytest.raises(HandleError, match="cannot read these weights"):
        weights.read(memoryview(bytearray(b"\xff" + noise)), torch.float32)
    tensors = {"w": torch.ones(4, 3)}
    image = Image(tensors)
    memory = bytearray(image.bytes)
    image.write(tensors, memoryview(memory))
    memory[place : place + len(change)] = change
    with suppress(HandleError):  # never anything else
        weights.read(memoryview(memory), torch.float32)


def test_the_version_that_is_offered_is_had_and_no_other(offer: Offer, pool: Pool, at: str) -> None:
    assert weights.ask(at, "m:1", torch.float32) is None
    put(offer, pool, "m:1", 1.0)
    put(offer, pool, "m:2", 2.0)
    assert weights.ask(at, "m:1", torch.float32) is None
    found = weights.ask(at, "m:2", torch.float32)
    assert found is not None
    assert torch.equal(found["w"], torch.full((100, 7), 2.0))
    offer.withdraw()
    assert weights.ask(at, "m:2", torch.float32) is None
    # Nobody holds the memory any more: it was copied.
    assert pool.state.lent == 0


def test_where_nobody_offers_there_is_nothing(at: str) -> None:
    assert weights.ask(at, "m:1", torch.float32) is None


def test_who_says_nothing_or_nonsense_keeps_nobody_else_waiting_for_long(
    offer: Offer, pool: Pool, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenos.core.limits.WEIGHTS_TIMEOUT_S", 1.0)
    put(offer, pool, "m:1", 1.0)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as loud:
        silent.connect(at)
        loud.connect(at)
        loud.sendall(b"\xff" * 100)
        monkeypatch.setattr("zenos.core.limits.WEIGHTS_WAIT_S", 60.0)
        found = weights.ask(at, "m:1", torch.float32)
    assert found is not None


def test_an_address_that_is_taken_stops_nobody(offer: Offer, at: str) -> None:
    second = Offer(at)
    second.withdraw()
    second.close()
