"""Tokens a second of data-parallel training, 2 ranks of one thread, beside torchrun with gloo.

Ours is the whole task, as a user submits it: the time of a longer run less that of a shorter one.
The peer is what people write: `torchrun`, DistributedDataParallel, the same model, the same
optimiser and clipping, random tokens.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import homes, models
from benchmarks.report import Row, alternate, compare, target
from zenos.client import Client
from zenos.runtime import precision

RANKS = 2
# Sequences and tokens of each, over all ranks; steps of the shorter run, and by which the longer is
# longer; how many times torchrun's rate is to be reached.
CASES = ((8, 256, 3, 10, 1.0), (2, 64, 10, 40, 1.3))
PEER = """
import contextlib, sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from zenos.runtime import architectures, precision

arch, batch, length, warm, measured = sys.argv[1], *map(int, sys.argv[2:6])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
model = architectures.build(arch, {}, 4096, 0).train()
wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
torch.manual_seed(0)
data = torch.randint(0, 4096, (warm + measured, batch, length + 1))[:, rank::ranks]
dtype, _ = precision.resolve("auto", torch.device("cpu"))
mixed = dtype != torch.float32
for number, rows in enumerate(data):
    if number == warm:
        dist.barrier()
        begun = time.perf_counter()
    with torch.autocast("cpu", dtype) if mixed else contextlib.nullcontext():
        logits = wrapped(input_ids=rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten()
        )
    loss.backward()
    loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
dist.barrier()
if rank == 0:
    print(measured * batch * length / (time.perf_counter() - begun))
dist.destroy_process_group()
"""


def rows(*, quick: bool) -> list[Row]:
    """A batch that computes, and one that communicates."""
    rounds = 1 if quick else 5
    dtype = str(precision.resolve("auto", torch.device("cpu"))[0]).removeprefix("torch.")
    made = []
    with homes.temporary() as root, homes.daemon(root) as client:
        for batch, length, warm, measured, ratio_min in CASES:
            seconds(client, batch, length, 1)  # tokenizer and packs are cached
            ours, peer = alternate(
                ours_per_s(client, batch, length, warm, measured),
                peer_per_s(root, batch, length, warm, measured),
                rounds,
            )
            row = compare(
                f"data-parallel training, {models.PARAMETERS}, {RANKS} ranks of 1 thread, batch "
                f"{batch} of {length}, {dtype}",
                "tokens/s",
                ours,
                "torchrun, DDP with gloo",
                peer,
                more_is_better=True,
            )
            reached = row.ratio is not None and row.ratio >= ratio_min
            made.append(target(row, f"≥ {ratio_min:g} x", reached))
    return made


def seconds(client: Client, batch: int, length: int, steps: int) -> float:
    """How long a whole training run of so many steps takes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    task = client.train(
        model=models.NAME,
        arch=models.ARCH,
        data={"paths": [str(library / "*.py")], "format": "text", "eval_fraction": 0.002},
        sequence_length=length,
        batch_size=batch,
        steps=steps,
        warmup=0,
        eval_every=10**6,
        eval_batches=1,
        checkpoint_every=10**6,
        workers=RANKS,
        cpu=1,
        memory="3GiB",
    ).wait(1200)
    if task.state != "succeeded":
        raise RuntimeError(f"cannot measure: {task.outcome}")
    return task.ran_s


def ours_per_s(
    client: Client, batch: int, length: int, warm: int, measured: int
) -> Callable[[], float]:
    """Tokens a second of the steps by which a longer run is longer."""

    def measure() -> float:
        short = seconds(client, batch, length, warm)
        return measured * batch * length / (seconds(client, batch, length, warm + measured) - short)

    return measure


def peer_per_s(
    root: Path, batch: int, length: int, warm: int, measured: int
) -> Callable[[], float]:
    """Tokens a second of the peer, after its warm-up."""
    program = root / "peer.py"
    program.write_text(PEER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={RANKS}", str(program), models.ARCH]
    command += [str(number) for number in (batch, length, warm, measured)]

    def measure() -> float:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot measure: {done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])

    return measure
