"""The processes of a gang other than rank 0: build the same model, do the steps they are told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenos.core.errors import InvalidError, RankError, WorkerError, ZenosError
from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.core.task import Task
from zenos.models.registry import Registry
from zenos.runtime.context import WorkerContext
from zenos.runtime.train.checkpoint import Checkpoint, Checkpoints
from zenos.runtime.train.gang import RENDEZVOUS, Begin, Ended, Follower, Step
from zenos.runtime.train.main import build, choose_device
from zenos.runtime.train.numerics import resolve_backend
from zenos.runtime.train.objectives import objective_for
from zenos.runtime.train.optimizer import load_moments
from zenos.runtime.train.packing import Packed
from zenos.runtime.train.parameters import load_weights
from zenos.runtime.train.tokenizer import Vocabulary
from zenos.runtime.train.trainer import Trainer

if TYPE_CHECKING:
    from zenos.bus.envelope import Envelope

log = logging.getLogger(__name__)


class _NoBus:
    """The bus of a process that doesn't talk to the daemon."""

    disconnected_s = 0.0

    def send(self, kind: Any, topic: str, body: bytes, **_: Any) -> bool:
        return True

    def receive(self, timeout_s: float | None) -> Envelope | None:
        return None

    def poll(self) -> list[Envelope]:
        return []

    def close(self) -> None:
        return


def main(task: Task, home: Home, run_dir: Path, gang: Follower) -> int:
    """Do what rank 0 says until it says that it is over; the exit code.

    Why it cannot go on is told to rank 0, which makes it the task's error.
    """
    context = WorkerContext(task, home, run_dir, _NoBus(), Registry(home.models))
    context.gang = gang
    failure: ZenosError
    try:
        _follow(context, gang)
    except Ended:
        return 0
    except RankError as error:
        log.warning("rank %d: %s", gang.rank, error)
        failure = error
    except ZenosError as error:
        log.error("rank %d: %s", gang.rank, error)  # noqa: TRY400 - a clear message, no traceback
        failure = error
    except Exception as error:
        log.exception("rank %d has failed", gang.rank)
        failure = WorkerError(
            f"cannot finish: rank {gang.rank}: {type(error).__name__}: {str(error)[:500]}; "
            f"'zenos logs {task.id}' has the details"
        )
    gang.fail(failure)
    return 1


def _follow(context: WorkerContext, gang: Follower) -> None:
    """Never returns but by an exception: Ended, or what went wrong."""
    spec = context.task.spec.work
    if not isinstance(spec, TrainSpec):
        raise InvalidError("cannot train: this task is something else")
    word = gang.hear()
    if not isinstance(word, Begin):
        raise RankError(f"cannot go on together: rank 0 says {word!r} before the beginning")
    vocabulary = Vocabulary(context.home.cache / "tokenizers" / word.plan.tokenizer)
    device = choose_device(context)
    # What rank 0 puts into the memory of all is read by rank 0 alone; what it saves, too.
    shares = resolve_backend(spec.backend, device) == "shared"
    parts = ("model",) if shares else ("model", "optimizer")
    checkpoint = None
    if word.checkpoint is not None:
        checkpoint = Checkpoint(Path(word.checkpoint), parts=parts)
    weights = checkpoint.tensors("model") if checkpoint is not None else None
    trainer = Trainer(
        spec,
        build(context, spec, vocabulary, weights),
        objective_for(spec, vocabulary),
        Packed(context.home.cache / "packs" / word.plan.pack),
        Checkpoints(context.home.checkpoint(context.task.id)),
        word.plan,
        device,
        report=lambda _: None,
        stopping=lambda: False,
        gang=gang,
    )
    if checkpoint is not None:
        _resume(trainer, checkpoint)
    # They are the model's now, until it gives them up for those that all have.
    del checkpoint, weights
    gang.join(trainer.model, trainer.optimizer, context.run_dir / RENDEZVOUS)
    trainer.model.train()
    with trainer.at_work():
        while isinstance(step := gang.hear(), Step):
            if trainer.update(step.rate) is not None:
                trainer.state.step += 1
    raise RankError(f"cannot go on together: rank 0 says {step!r} between two steps")


def _resume(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """As `Trainer.resume`, without its checks, which rank 0 makes, and with what was read of it."""
    load_weights(trainer.model, checkpoint.tensors("model") or {})
    moments = checkpoint.tensors("optimizer") or {}
    load_moments(trainer.model, trainer.optimizer, moments, trainer.device)
    checkpoint.let_go()
    trainer.state = checkpoint.state
