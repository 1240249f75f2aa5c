"""Objectives, baselines, learning rates, plans, numerics: the parts that stand alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core.errors import InvalidError, RefusedError
from zenos.runtime.train import numerics, schedule
from zenos.runtime.train.baselines import Baselines
from zenos.runtime.train.objectives import IGNORED, CausalLM, MaskedLM

from .helpers import spec


def vocabulary(**changes: Any) -> Any:
    ids = {"mask_id": 4, "cls_id": 2, "sep_id": 3, **changes}
    return SimpleNamespace(size=100, special_ids=lambda: [0, 1, 2, 3, 4], **ids)


def test_causal_targets_are_the_next_tokens() -> None:
    objective = CausalLM(spec(Path("/x"), sequence_length=8), vocabulary())
    assert (objective.length, objective.stride) == (9, 8)
    windows = np.arange(18).reshape(2, 9)
    batch = objective.batch(windows, 0)
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert np.array_equal(batch.before, batch.inputs)


@given(st.integers(0, 2**62), st.integers(0, 10**9), st.floats(0.01, 0.9))
def test_masked_targets(seed: int, first: int, probability: float) -> None:
    work = spec(Path("/x"), sequence_length=16, seed=seed, mask_probability=probability)
    objective = MaskedLM(work, vocabulary())
    windows = np.random.default_rng(first).integers(5, 100, (4, objective.length))
    windows[:, 3] = 0
    batch = objective.batch(windows, first)
    framed = np.pad(windows, ((0, 0), (1, 1)), constant_values=((0, 0), (2, 3)))
    assert batch.inputs.shape == (4, 16)
    assert np.array_equal(batch.inputs[:, [0, -1]], framed[:, [0, -1]])
    chosen = batch.targets != IGNORED
    assert chosen.any(axis=1).all()
    assert not chosen[framed < 5].any()
    assert np.array_equal(batch.targets[chosen], framed[chosen])
    assert np.array_equal(batch.inputs[~chosen], framed[~chosen])
    assert np.array_equal(batch.before[:, 2:-1], framed[:, 1:-2])
    # A sample hangs on its own number alone, not on the batch it is in.
    alone = objective.batch(windows[2:3], first + 2)
    assert np.array_equal(alone.inputs, batch.inputs[2:3])
    assert np.array_equal(alone.targets, batch.targets[2:3])


def test_masking_rates() -> None:
    objective = MaskedLM(spec(Path("/x"), sequence_length=130), vocabulary())
    windows = np.random.default_rng(0).integers(5, 100, (400, objective.length))
    batch = objective.batch(windows, 0)
    chosen = batch.targets != IGNORED
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.01)
    assert (batch.inputs[chosen] == 4).mean() == pytest.approx(0.8, abs=0.02)
    same = batch.inputs[chosen] == batch.targets[chosen]
    assert same.mean() == pytest.approx(0.1 + 0.1 / 95, abs=0.02)


def test_masking_needs_a_mask_token() -> None:
    with pytest.raises(InvalidError, match="no mask token"):
        MaskedLM(spec(Path("/x")), vocabulary(mask_id=None))
    unframed = MaskedLM(spec(Path("/x"), sequence_length=16), vocabulary(cls_id=None))
    assert unframed.length == 16
    windows = np.random.default_rng(0).integers(5, 100, (2, 16))
    assert unframed.batch(windows, 0).inputs.shape == (2, 16)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=200))
def test_baselines_are_distributions_by_hand(tokens: list[int]) -> None:
    size = 7
    baselines = Baselines(np.asarray(tokens, dtype=np.uint16), size)
    every = np.arange(size)
    unigram = [math.exp(-baselines.unigram(np.asarray([t]))) for t in range(size)]
    assert sum(unigram) == pytest.approx(1)
    for t in range(size):
        expected = (tokens.count(t) + 1) / (len(tokens) + size)
        assert unigram[t] == pytest.approx(expected)
    for a in range(size):
        row = [math.exp(-baselines.bigram(np.asarray([a]), np.asarray([b]))) for b in every]
        assert sum(row) == pytest.approx(1)
        followers = [y for x, y in pairwise(tokens) if x == a]
        for b in every if followers else []:
            kinds = len(set(followers))
            expected = max(followers.count(b) - 0.75, 0) / len(followers)
            expected += 0.75 * kinds / len(followers) * unigram[b]
            assert row[b] == pytest.approx(expected)


def test_baselines_count_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from zenos.runtime.train import baselines as module

    tokens = np.random.default_rng(0).integers(0, 9, 1000).astype(np.uint16)
    before, after = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    whole = Baselines(tokens, 9).bigram(before, after)
    monkeypatch.setattr(module, "_CHUNK", 37)
    assert Baselines(tokens, 9).bigram(before, after) == pytest.approx(whole, rel=1e-2)


def test_learning_rate_rises_then_falls() -> None:
    work = spec(Path("/x"), warmup=10, learning_rate=1.0, learning_rate_min=0.1)
    rates = [schedule.learning_rate(work, s, 200, 0) for s in range(201)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert max(rates) == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[200] == pytest.approx(0.1)
    # Half a cosine: half of the way in the middle, and slow at both ends.
    assert [rates[10 + n * 190 // 10] for n in (1, 5, 9)] == pytest.approx(
        [0.1 + 0.9 * (1 + math.cos(math.pi * n / 10)) / 2 for n in (1, 5, 9)]
    )
    short = spec(Path("/x"), warmup=None, learning_rate=1.0)
    assert schedule.learning_rate(short, 1, 20, 0) == 1.0
    assert schedule.learning_rate(short, 98, 5000, 0) == pytest.approx(0.99)


@pytest.mark.parametrize("total", [30, 200, 5000])
@pytest.mark.parametrize("warmup", [None, 0, 50])
def test_the_rate_of_a_planned_budget_makes_no_jumps(total: int, warmup: int | None) -> None:
    work = spec(Path("/x"), warmup=warmup, learning_rate=1.0, time_budget_s=60.0)
    first = [schedule.learning_rate(work, s, None, 0) for s in range(10)]
    rates = first + [schedule.learning_rate(work, s, total, 10) for s in range(10, total)]
    top = rates.index(max(rates))
    assert all(0 <= b - a < 0.15 for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert max(rates) == (1.0 if warmup != 50 or total > 50 else pytest.approx(0.6))


def test_a_planned_budget_leaves_earlier_rates_as_they_were() -> None:
    work = spec(Path("/x"), warmup=50, time_budget_s=60.0)
    before = [schedule.learning_rate(work, s, None, 0) for s in range(8)]
    after = [schedule.learning_rate(work, s, 500, 8) for s in range(8)]
    assert before == after


def test_steps_wanted() -> None:
    assert schedule.steps_wanted(spec(Path("/x"), steps=7), 100) == 7
    work = spec(Path("/x"), steps=None, epochs=1.5, batch_size=4, accumulate=2)
    assert schedule.steps_wanted(work, 100) == 19


def test_pace_fits_steps_into_a_budget() -> None:
    work = spec(Path("/x"), time_budget_s=100.0, eval_every=10, eval_batches=2)
    pace = schedule.Pace(work)
    done = 0
    planned = None
    while planned is None:
        done += 1
        pace.step_took(5.0 if done <= 2 else 0.5)
        planned = pace.plan(10_000, done, 0.5 * done)
    # 0.5 s a step, and 0.035 s of evaluation for each.
    assert planned == pytest.approx(done + (97 - 0.5 * done) / 0.535, abs=1)
    assert pace.plan(50, done, 0.5 * done) == 50
    assert schedule.Pace(spec(Path("/x"))).plan(12, 0, 0.0) == 12
    slow = schedule.Pace(work)
    slow.step_took(150.0)
    assert slow.plan(10_000, 1, 150.0) == 1
    assert slow.is_over(1, 151.0)


def test_a_budget_does_not_cut_the_least_steps() -> None:
    work = spec(Path("/x"), time_budget_s=100.0, steps_min=40)
    slow = schedule.Pace(work)
    slow.step_took(150.0)
    assert slow.plan(10_000, 1, 150.0) == 40
    assert slow.plan(30, 1, 150.0) == 30
    assert not slow.is_over(39, 6000.0)
    assert slow.is_over(40, 6150.0)


def test_fingerprint_names_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cpu = torch.device("cpu")
    one = numerics.fingerprint(cpu, torch.float32, compiled=False)
    assert {"torch", "threads", "dtype", "compile", "instruction set", "shards"} <= one.keys()
    assert numerics.check_same(one, dict(one), inexact=False) == ""
    two = numerics.fingerprint(cpu, torch.bfloat16, compiled=True)
    with pytest.raises(RefusedError) as caught:
        numerics.check_same(one, two, inexact=False)
    assert "dtype was 'float32' and is 'bfloat16'" in caught.value.message
    assert "compile was 'eager' and is 'inductor'" in caught.value.message
    assert "inexactly" in numerics.check_same(one, two, inexact=True)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with pytest.raises(RefusedError, match="variables was 'unset'"):
        numerics.check_same(one, numerics.fingerprint(cpu, torch.float32, False), inexact=False)


def test_sums_go_through_nccl_between_gpus_and_through_memory_between_cpus() -> None:
    import torch

    for device, found in (("cuda", "nccl"), ("cpu", "shared")):
        assert numerics.resolve_backend("auto", torch.device(device)) == found
        assert numerics.resolve_backend("gloo", torch.device(device)) == "gloo"


def test_no_gpu_without_an_allocation() -> None:
    assert numerics.choose_device(0).type == "cpu"


def test_without_a_compiler_training_goes_on_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken(function: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no g++ anywhere\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    function, note = numerics.try_compile(len)
    assert function is len
    assert "no g++ anywhere" in note
