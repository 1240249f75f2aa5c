"""Tokens a second of a training run beside a bare PyTorch loop that does the same work.

Ours is the whole task, as a user submits it: the time of a longer run less that of a shorter one,
so that start, tokenizing and saving cancel out and everything between two steps counts. The bare
loop is a process of its own: same model, same data, autocast to the
same type, clipping, fused AdamW.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import homes, models
from benchmarks.report import Row, alternate, compare, target
from zenos.client import Client
from zenos.runtime import precision

BATCH, LENGTH = 8, 256
WARM, MEASURED = 4, 10
RATIO_MIN = 0.97
BARE = """
import contextlib, json, sys, sysconfig, time
from pathlib import Path
import torch
from zenos.runtime import architectures, precision

arch, batch, length, warm, measured, compiled = sys.argv[1:7]
batch, length, warm, measured = map(int, (batch, length, warm, measured))
torch.set_num_threads(2)
torch.manual_seed(0)
model = architectures.build(arch, {}, 4096, 0).train()
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
data = torch.randint(0, 4096, (warm + measured, batch, length + 1))

def loss_of(inputs, targets):
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

dtype, _ = precision.resolve("auto", torch.device("cpu"))
mixed = dtype != torch.float32
run = torch.compile(loss_of) if compiled == "1" else loss_of
for number, rows in enumerate(data):
    if number == warm:
        begun = time.perf_counter()
    with torch.autocast("cpu", dtype) if mixed else contextlib.nullcontext():
        loss = run(rows[:, :-1], rows[:, 1:])
    loss.backward()
    loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(measured * batch * length / (time.perf_counter() - begun))
"""


def rows(*, quick: bool) -> list[Row]:
    """Uncompiled and compiled."""
    rounds, measured = (1, 4) if quick else (4, MEASURED)
    made = []
    dtype = str(precision.resolve("auto", torch.device("cpu"))[0]).removeprefix("torch.")
    for compiled in (False, True):
        with homes.temporary() as root, homes.daemon(root) as client:
            seconds(client, 1, compiled)  # tokenizer and packs are cached, and compiled code
            ours, bare = alternate(
                ours_per_s(client, measured, compiled), bare_per_s(measured, compiled), rounds
            )
        mode = "compiled" if compiled else "not compiled"
        row = compare(
            f"training, {models.PARAMETERS}, batch {BATCH} of {LENGTH}, {dtype}, {mode}",
            "tokens/s",
            ours,
            "bare PyTorch loop",
            bare,
            more_is_better=True,
        )
        reached = row.ratio is not None and row.ratio >= RATIO_MIN
        made.append(target(row, f"≥ {RATIO_MIN:g} x", reached))
    return made


def seconds(client: Client, steps: int, compiled: bool) -> float:
    """How long a whole training run of so many steps takes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    task = client.train(
        model=models.NAME,
        arch=models.ARCH,
        data={"paths": [str(library / "*.py")], "format": "text", "eval_fraction": 0.002},
        sequence_length=LENGTH,
        batch_size=BATCH,
        steps=steps,
        warmup=0,
        eval_every=10**6,
        eval_batches=1,
        checkpoint_every=10**6,
        compile=compiled,
        cpu=2,
        memory="6GiB",
    ).wait(1200)
    if task.state != "succeeded":
        raise RuntimeError(f"cannot measure: {task.outcome}")
    return task.ran_s


def ours_per_s(client: Client, measured: int, compiled: bool) -> Callable[[], float]:
    """Tokens a second of the steps by which a longer run is longer."""

    def measure() -> float:
        short = seconds(client, WARM, compiled)
        return measured * BATCH * LENGTH / (seconds(client, WARM + measured, compiled) - short)

    return measure


def bare_per_s(measured: int, compiled: bool) -> Callable[[], float]:
    """Tokens a second of the bare loop, after its warm-up."""
    arguments = [models.ARCH, BATCH, LENGTH, WARM, measured, int(compiled)]
    return lambda: float(homes.python(BARE, *map(str, arguments)))
