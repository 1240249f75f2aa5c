"""What the trainer's tests share: a corpus, a task, a bus of one process, a run of it."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from zenos.bus.envelope import Envelope
from zenos.core.home import Home
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, TrainSpec
from zenos.core.task import Allocation, Kind, Principal, Task, TaskSpec
from zenos.core.wire import Progress, Stop
from zenos.runtime.context import WorkerContext

_TEXT = """
the cat sat on a mat and saw that bird fly over old hills while rain fell in green fields
where children ran with kites of red paper under clouds that went west toward evening
"""
WORDS = _TEXT.split()


def sentences(seed: int, count: int) -> str:
    """Text with something to learn in it: each word follows from the one before, mostly."""
    source = np.random.default_rng(seed)
    at = 0
    words = []
    for _ in range(count):
        at = (
            (at * 7 + 3) % len(WORDS) if source.random() < 0.9 else int(source.integers(len(WORDS)))
        )
        words.append(WORDS[at] + ("\n" if source.random() < 0.1 else ""))
    return " ".join(words)


def write_corpus(directory: Path, files: int = 12, words: int = 1200) -> Path:
    """A directory of text files."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (directory / f"{number:02d}.txt").write_text(sentences(number, words))
    return directory


def spec(corpus: Path, **changes: Any) -> TrainSpec:
    """A training run of a second or two."""
    settings: dict[str, Any] = {
        "model": "tiny",
        "arch": "llama-nano",
        "settings": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        "data": DataSpec(paths=[str(corpus)], eval_fraction=0.15),
        "vocab_size": 320,
        "sequence_length": 32,
        "batch_size": 4,
        "steps": 12,
        "warmup": 3,
        "learning_rate": 3e-3,
        "eval_every": 5,
        "eval_batches": 2,
        "checkpoint_every": 4,
        "dtype": "float32",
        **changes,
    }
    result = TrainSpec(**settings)
    result.check()
    return result


class Bus:
    """The worker's end of a bus without another end: keeps what is sent, gives what is put in."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.incoming: deque[Envelope] = deque()
        self.disconnected_s = 0.0
        self.on_progress: Any = None

    def send(
        self, kind: Any, topic: str, body: bytes, *, priority: int = 50, drop_if_full: bool = False
    ) -> bool:
        self.sent.append((topic, body))
        if topic == "progress" and self.on_progress is not None:
            self.on_progress(msgspec.msgpack.decode(body, type=Progress))
        return True

    def receive(self, timeout_s: float | None) -> Envelope | None:
        return self.incoming.popleft() if self.incoming else None

    def poll(self) -> list[Envelope]:
        # One by one: others may put something in meanwhile.
        return [self.incoming.popleft() for _ in range(len(self.incoming))]

    def close(self) -> None:
        pass

    def say_stop(self, *, save: bool) -> None:
        self.put("stop", msgspec.msgpack.encode(Stop(save=save)))

    def put(self, topic: str, body: bytes) -> None:
        self.incoming.append(
            Envelope(
                id=1,
                kind="command",
                topic=topic,
                sender="daemon",
                generation=1,
                sequence=1,
                priority=50,
                sent=0.0,
                body=body,
            )
        )

    @property
    def progress(self) -> list[Progress]:
        return [msgspec.msgpack.decode(b, type=Progress) for t, b in self.sent if t == "progress"]


def make_task(
    work: TrainSpec, *, task: str = "t1", generation: int = 1, cpu: int = 1000, workers: int = 0
) -> Task:
    """A running task with an allocation."""
    resources = Resources(cpu=cpu, memory=2**30)
    return Task(
        id=task,
        spec=TaskSpec(work=work, resources=resources),
        principal=Principal(),
        submitted=0.0,
        kind=Kind.TRAIN,
        generation=generation,
        allocation=Allocation(node="local", resources=resources, workers=workers),
    )


def make_context(root: Path, task: Task, bus: Bus | None = None) -> WorkerContext:
    """A worker's context in a home at `root`."""
    from zenos.models.registry import Registry

    home = Home(root)
    run_dir = home.run(task.id, task.generation)
    run_dir.mkdir(parents=True, exist_ok=True)
    return WorkerContext(task, home, run_dir, bus or Bus(), Registry(home.models))


def result(context: WorkerContext) -> dict[str, Any]:
    """What the worker left in result.json."""
    found: dict[str, Any] = msgspec.json.decode((context.run_dir / "result.json").read_bytes())
    return found


def error(context: WorkerContext) -> dict[str, str]:
    """What the worker left in error.json."""
    found: dict[str, str] = msgspec.json.decode((context.run_dir / "error.json").read_bytes())
    return found


def weights(context: WorkerContext, name: str = "tiny") -> str:
    """The digest of a version's weights."""
    version = context.registry.resolve(name)
    return version.files["model.safetensors"].digest
