"""Tokens a second of the engine beside transformers' `generate`, in one process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import homes, models
from benchmarks.report import Row, alternate, compare, target
from zenos.client import Client
from zenos.core.specs import ServeSpec
from zenos.core.wire import GenerateRequest, Sampling
from zenos.runtime import architectures
from zenos.runtime.engine.serve import Loaded
from zenos.runtime.engine.vocabulary import Vocabulary

REQUESTS = (1, 8, 32)
PROMPT_TOKENS = 32
RATIO_MIN = 1.5


def rows(*, quick: bool) -> list[Row]:
    """Greedy decoding of prompts of one length, which suits `generate` best.

    Both sides compute in what is faster for them of bf16 and float32. The engine alone, as
    `generate` is; then through the daemon, as clients get it: HTTP, streaming, JSON.
    """
    new, rounds = (16, 1) if quick else (128, 5)
    with homes.temporary() as root, homes.daemon(root) as client:
        path = models.make(client)
        made = [_row(path, count, new, rounds) for count in REQUESTS]
        client.serve(models.NAME, slots=32, context=512, cpu=2)
        made += [_streamed(client, path, count, new, rounds) for count in REQUESTS]
    return made


def _faster(path: Path, prompts: list[list[int]]) -> tuple[Any, str]:
    """The model in the type that `generate` is faster in here, and that type's name."""
    timed = []
    for dtype in (torch.bfloat16, torch.float32):
        model: Any = architectures.load(path, dtype)
        measure = _theirs(model, prompts, 16)
        measure()
        timed.append((max(measure() for _ in range(3)), model, str(dtype).removeprefix("torch.")))
    return max(timed, key=lambda entry: entry[0])[1:]


def _streamed(client: Client, path: Path, count: int, new: int, rounds: int) -> Row:
    """Tokens that clients receive, so many streams at once, beside `generate` in a process."""
    text = "def f(x):\n    return x\n"

    def ask(number: int) -> int:
        answer = client.generate(models.NAME, f"{number} {text}", max_tokens=new, temperature=0)
        answer.text()
        return answer.usage.completion_tokens if answer.usage is not None else 0

    def ours() -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            tokens = sum(pool.map(ask, range(count)))
        if tokens < new * count / 2:  # an answer may end before its time
            raise RuntimeError(f"cannot measure: {tokens} tokens came")
        return tokens / (time.perf_counter() - begun)

    vocabulary = Vocabulary(path)
    prompts = [vocabulary.encode(f"{n} {text}", special=False) for n in range(count)]
    shortest = min(map(len, prompts))
    model, dtype = _faster(path, [prompt[:shortest] for prompt in prompts])
    ours()  # loads, and warms
    theirs = _theirs(model, [prompt[:shortest] for prompt in prompts], new)
    mine, peer = alternate(ours, theirs, rounds)
    return compare(
        f"decode over HTTP, {models.PARAMETERS}, {count} streams at once",
        "tokens/s",
        mine,
        f"transformers generate in its process, {dtype}",
        peer,
        more_is_better=True,
    )


def _row(path: Path, count: int, new: int, rounds: int) -> Row:
    spec = ServeSpec(model=models.NAME, deployment=models.NAME, slots=32, context=512)
    loaded = Loaded(path, spec)
    vocabulary = loaded.vocabulary.encode("def f(x):\n    return x\n" * 64, special=False)
    prompts = [vocabulary[n : n + PROMPT_TOKENS] for n in range(count)]
    model, dtype = _faster(path, prompts)
    ours = _ours(loaded, prompts, new)
    theirs = _theirs(model, prompts, new)
    ours(), theirs()  # warm
    mine, peer = alternate(ours, theirs, rounds)
    row = compare(
        f"decode, engine alone, {models.PARAMETERS}, {loaded.dtype}, {count} at once",
        "tokens/s",
        mine,
        f"transformers generate, {dtype}",
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
