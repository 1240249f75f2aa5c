"""Tokens a second of the engine beside transformers' `generate`, in one process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import homes, models
from benchmarks.report import Row, alternate, compare, target
from zenos.core.specs import ServeSpec
from zenos.core.wire import GenerateRequest, Sampling
from zenos.runtime import architectures
from zenos.runtime.engine.serve import Loaded

REQUESTS = (1, 8, 32)
PROMPT_TOKENS = 32
RATIO_MIN = 1.5


def rows(*, quick: bool) -> list[Row]:
    """Greedy decoding in bf16 of prompts of one length, which suits `generate` best."""
    new, rounds = (16, 1) if quick else (128, 5)
    with homes.temporary() as root:
        with homes.daemon(root) as client:
            path = models.make(client)
        return [_row(path, count, new, rounds) for count in REQUESTS]


def _row(path: Path, count: int, new: int, rounds: int) -> Row:
    spec = ServeSpec(model=models.NAME, deployment=models.NAME, slots=32, context=512)
    loaded = Loaded(path, spec)
    model: Any = architectures.load(path, torch.bfloat16)
    vocabulary = loaded.vocabulary.encode("def f(x):\n    return x\n" * 64, special=False)
    prompts = [vocabulary[n : n + PROMPT_TOKENS] for n in range(count)]
    ours = _ours(loaded, prompts, new)
    theirs = _theirs(model, prompts, new)
    ours(), theirs()  # warm
    mine, peer = alternate(ours, theirs, rounds)
    row = compare(
        f"decode, {models.PARAMETERS}, bf16, {count} at once",
        "tokens/s",
        mine,
        "transformers generate",
        peer,
        more_is_better=True,
    )
    if count == 1 or row.ratio is None:
        return row
    return target(row, f"≥ {RATIO_MIN:g} x", row.ratio >= RATIO_MIN)


def _ours(loaded: Loaded, prompts: list[list[int]], new: int) -> Callable[[], float]:
    runs = iter(range(10**6))

    def measure() -> float:
        # The first token differs from run to run, so that no prompt is remembered.
        run = next(runs)
        begun = time.perf_counter()
        for number, prompt in enumerate(prompts):
            changed = [*prompt]
            changed[0] = (run * len(prompts) + number) % 256
            sampling = Sampling(temperature=0.0, max_tokens=new, ignore_eos=True)
            request = GenerateRequest(id=f"{run}-{number}", tokens=changed, sampling=sampling)
            loaded.engine.submit(request, changed)
        tokens = 0
        while not loaded.engine.idle:
            tokens += sum(chunk.token_count for chunk in loaded.engine.step())
        if tokens != new * len(prompts):
            raise RuntimeError(f"cannot measure: {tokens} tokens came")
        return tokens / (time.perf_counter() - begun)

    return measure


def _theirs(model: Any, prompts: list[list[int]], new: int) -> Callable[[], float]:
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)

    def measure() -> float:
        begun = time.perf_counter()
        made: torch.Tensor = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        taken = time.perf_counter() - begun
        return (made.shape[1] - ids.shape[1]) * made.shape[0] / taken

    return measure
