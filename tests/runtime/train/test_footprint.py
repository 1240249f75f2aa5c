"""What a training is estimated to want of memory, beside what a real one takes at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenos.models import footprint

from .helpers import spec, write_corpus

FACTOR = 2.0
DEEP = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
FLAT = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
CODE = """
import sys
from pathlib import Path
import msgspec
from zenos.runtime import zygote
zygote.preload()
import torch
from zenos.core.specs import TrainSpec
from zenos.runtime.train.main import main
from tests.runtime.train.helpers import make_context, make_task
torch.set_num_threads(1)
work = msgspec.json.decode(sys.argv[2], type=TrainSpec)
context = make_context(Path(sys.argv[1]), make_task(work))

def peak():  # not ru_maxrss: that of whoever has started this process is in it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

base = peak()
assert main(context) == 0
print("peak", base * 1024, peak() * 1024)
"""


@pytest.mark.parametrize(
    "changes",
    [
        # Where parameters and their copies are most of it; and where activations and logits are.
        {"settings": DEEP, "batch_size": 2, "sequence_length": 16},
        {"settings": FLAT, "batch_size": 16, "sequence_length": 256, "vocab_size": 4096},
    ],
    ids=["parameters", "activations"],
)
def test_the_estimate_of_a_training_is_within_a_factor_of_its_peak(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    corpus = write_corpus(tmp_path / "text", words=12_000 if "vocab_size" in changes else 1200)
    short = {"steps": 2, "warmup": 0, "eval_every": 2, "eval_batches": 1, "checkpoint_every": 2}
    work = spec(corpus, **short, **changes)
    argv = [sys.executable, "-c", CODE, str(tmp_path / "home"), msgspec.json.encode(work).decode()]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    base, peak = map(int, ran.stdout.rpartition("peak ")[2].split())
    shape = footprint.training_shape(work, None)
    assert shape is not None
    wanted = footprint.training_bytes(work, shape)
    assert peak / FACTOR <= wanted <= peak * FACTOR, (peak, wanted)
    # So is what it takes beside torch itself, which differs from build to build.
    own, mine = peak - base, wanted - footprint.BASE_BYTES
    assert own / FACTOR <= mine <= own * FACTOR, (own, mine)
