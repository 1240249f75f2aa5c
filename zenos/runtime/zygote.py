"""The zygote: has torch and transformers imported, and forks shims for torch work.

`python -m zenos.runtime.zygote FD`, where FD is a SOCK_SEQPACKET socket to the daemon: each packet
is the path of a spec, with a descriptor for the shim to talk on. It ends when the daemon's end
closes.

A fork copies one thread alone, with whatever locks the others held. So the zygote runs no tensor
operation and no tokenizer, and refuses to fork when it has a second thread.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.core import failpoints, shim
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


def thread_count() -> int:
    """Threads of this process, as the operating system counts them."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def work(spec: dict[str, Any], directory: str) -> int:
    """In the worker: the task's work; returns the exit code."""
    target = spec.get("target")
    task = msgspec.convert(spec["record"], Task)
    home = Home(Path(spec["home"]))
    module, _, name = (target or "zenos.runtime.worker:main").partition(":")
    run = getattr(importlib.import_module(module), name)
    return int(run(task, home, Path(directory)) or 0)


def fork(path: Path, notify: int, listener: socket.socket) -> None:
    """Fork a shim for the spec at `path`."""
    if thread_count() != 1:
        raise RuntimeError(f"the zygote has {thread_count()} threads; forking would be unsafe")
    failpoints.passing("zygote.fork.before")
    pid = os.fork()
    if pid != 0:
        failpoints.passing("zygote.fork.after")
        return
    code = 1
    try:
        listener.close()
        os.setsid()
        spec = json.loads(path.read_bytes())
        os.environ.clear()
        os.environ.update(spec["env"])
        shim.run(spec, notify, work)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Import, say `ready`, fork on request."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    preload()
    # Shims are reaped by the system; they have their own children to wait for, and undo this.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    listener.send(b"ready")
    while True:
        packet, descriptors, _, _ = socket.recv_fds(listener, 8192, 1)
        if not packet:
            return
        try:
            fork(Path(os.fsdecode(packet)), descriptors[0], listener)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    main()
