"""A model to measure with: made here, of 28 million parameters, with a tokenizer of real text."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from zenos.client import Client

ARCH, PARAMETERS = "llama-mini", "28 M parameters"
NAME = "bench"


def make(client: Client) -> Path:
    """Train for one step on the standard library, so that the tokenizer is a real one."""
    library = Path(sysconfig.get_paths()["stdlib"])
    handle = client.train(
        model=NAME,
        arch=ARCH,
        data={"paths": [str(library / "*.py")], "format": "text", "eval_fraction": 0.002},
        steps=1,
        warmup=0,
        eval_batches=1,
        cpu=2,
        memory="4GiB",
    )
    task = handle.wait(300)
    if task.state != "succeeded":
        raise RuntimeError(f"cannot measure: {task.outcome}")
    return client.export_model(NAME, Path(client.status().home) / "exported")
