"""The zygote: has torch and transformers imported, and forks shims for torch work.

`python -P -m zenos.runtime.zygote FD`, where FD is its socket to the daemon; see
zenos/core/forking.py. It runs no tensor operation and no tokenizer: those start threads.
"""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.core import forking
from zenos.core.home import Home
from zenos.core.task import Task

# What workers use, reached through attributes: transformers imports its parts when first touched.
MODELS: Final = ("Llama", "GPT2", "Bert", "T5")


def preload() -> None:
    """Import what workers need, so that a fork has it at once."""
    import torch
    import transformers

    for name in MODELS:
        for suffix in ("Config", "Model", "PreTrainedModel"):
            getattr(transformers, f"{name}{suffix}", None)
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
        getattr(transformers, name)
    for name in (
        "zenos.bus.channel",
        "zenos.models.registry",
        "zenos.runtime.worker",
        "zenos.runtime.architectures",
        "zenos.runtime.engine.serve",
        "zenos.runtime.train.main",
        "safetensors.torch",
        "tokenizers",
    ):
        importlib.import_module(name)
    torch.set_num_threads(1)


def work(spec: dict[str, Any], directory: str) -> int:
    """In the worker: the task's work; returns the exit code."""
    target = spec.get("target")
    task = msgspec.convert(spec["record"], Task)
    home = Home(Path(spec["home"]))
    module, _, name = (target or "zenos.runtime.worker:main").partition(":")
    run = getattr(importlib.import_module(module), name)
    return int(run(task, home, Path(directory)) or 0)


def main() -> None:
    """Import, then fork on request."""
    forking.ignore_signals()
    listener = socket.socket(fileno=int(sys.argv[1]))
    preload()
    forking.serve("zygote", listener, work)


if __name__ == "__main__":
    main()
