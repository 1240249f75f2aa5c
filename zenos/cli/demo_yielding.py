"""The demo's second act: a training yields to requests, and loses nothing.

1. A training takes all CPUs, and nobody disturbs it.
2. The same training again. Meanwhile the model of the first act, for which there is no room, is
   asked through the official openai client: each time the training is saved and ends, the model is
   loaded and answers, and the training goes on.
3. Both must have ended in the same weights, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zenos.core import limits
from zenos.core.errors import WorkerError

if TYPE_CHECKING:
    from zenos.client import Client, TaskHandle

# For the demo's daemon: so soon may a training be asked again to give way, and so soon does a model
# that nobody asks any more.
SETTINGS: Final = ("--set", "residence_s=1")
KEEP_ALIVE_S: Final = 0.5
BATCH: Final = {"batch_size": 4, "sequence_length": 128}
LOOK_S: Final = 0.01
WAIT_S: Final = 120.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. first_s: from each request to its first token; the others in seconds too."""

    first_s: list[float]
    alone_s: float
    disturbed_s: float
    preemptions: int
    same: bool


def show(
    client: Client,
    ask: Callable[[], float],
    model: str,
    *,
    data: dict[str, Any],
    steps: int,
    requests: int,
    console: Any,
) -> Outcome:
    """Train twice, the second time with so many requests for `model`.

    ask: makes one, and says after how many seconds its first token came. data, steps: of each
    training.
    """
    capacity = client.nodes()[0].node.capacity
    client.serve(model, keep_alive_s=KEEP_ALIVE_S)
    trainings: dict[str, Any] = {
        "data": {**data, "eval_fraction": 0.0},
        "arch": "llama-nano",
        "tokenizer": model,
        "steps": steps,
        "checkpoint_every": steps,
        "cpu": capacity.cpu / 1000,
        # No more than others surely leave of it: that there is no core left is enough.
        "memory": min(2 * limits.GIB, capacity.memory // 2),
        **BATCH,
    }
    console.print("[bold]5[/] a second training takes all CPUs of this machine")
    alone_s = _ended(client.train(model="undisturbed", **trainings))
    console.print(
        f"  undisturbed it takes {alone_s:.1f} s; the same again, with requests for {model}:"
    )
    handle = client.train(model="disturbed", **trainings)
    first_s = []
    for part in range(1, requests + 1):
        done = _reaches(handle, part * steps // (requests + 1))
        first_s.append(ask())
        console.print(f"  asked at step {done}: the first token came after {first_s[-1]:.2f} s")
    disturbed_s = _ended(handle)
    digests = [
        client.model(name).files["model.safetensors"].digest
        for name in ("undisturbed", "disturbed")
    ]
    made = Outcome(
        first_s=first_s,
        alone_s=alone_s,
        disturbed_s=disturbed_s,
        preemptions=handle.task.generation - 1,
        same=digests[0] == digests[1],
    )
    _tell(made, digests, console)
    return made


def _tell(made: Outcome, digests: list[str], console: Any) -> None:
    ends = "the same weights" if made.same else "OTHER weights"
    console.print(
        f"  saved and continued {_often(made)}, it took {made.disturbed_s:.1f} s and ended in "
        f"{ends}: {digests[0][:23]}… and {digests[1][:23]}…"
    )


def _often(made: Outcome) -> str:
    return f"{made.preemptions} times" if made.preemptions != 1 else "once"


def rows(made: Outcome) -> list[tuple[str, str]]:
    """For the demo's closing table."""
    return [
        ("preemption to first token", f"{median(made.first_s):.2f} s"),
        (
            f"a training that gave way {_often(made)}",
            "same weights as undisturbed" if made.same else "OTHER weights",
        ),
    ]


def _reaches(handle: TaskHandle, step: int) -> int:
    """Wait until it does steps, and has done so many. How many."""

    def reached() -> bool:
        view = handle.refresh()
        if view.task.is_ended:
            raise WorkerError(f"cannot ask any more: the training is over at step {step}")
        working = view.progress is not None and view.progress.stage == "training"
        return view.task.state == "running" and working and _done(handle) >= step

    _until(reached)
    return _done(handle)


def _done(handle: TaskHandle) -> int:
    return int(handle.progress.done) if handle.progress is not None else 0


def _ended(handle: TaskHandle) -> float:
    """Seconds from its submission to its end; WorkerError when it did not succeed."""
    task = handle.wait(WAIT_S)
    if task.state != "succeeded":
        why = task.outcome.describe() if task.outcome else task.state
        raise WorkerError(f"cannot go on: the training {task.state}: {why}")
    return (task.ended or 0.0) - task.submitted


def _until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not so():
        if time.monotonic() > end:
            raise WorkerError(f"cannot go on: nothing moved in {WAIT_S:g} s")
        time.sleep(LOOK_S)
