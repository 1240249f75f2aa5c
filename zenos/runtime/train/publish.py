"""The end of a run: measure the weights, register them as a model version, say so."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec.structs import replace
from safetensors import SafetensorError

from zenos import __version__
from zenos.core.errors import StorageError
from zenos.core.specs import TrainSpec
from zenos.core.wire import WAITS_FOR_SPACE, Progress
from zenos.models import publishing
from zenos.models.registry import Lineage, ModelVersion, Registry
from zenos.runtime import architectures, space
from zenos.runtime.context import WorkerContext
from zenos.runtime.train import schedule, snapshots
from zenos.runtime.train.baselines import Baselines
from zenos.runtime.train.parameters import Weights, load_weights
from zenos.runtime.train.tokenizer import Vocabulary
from zenos.runtime.train.trainer import Trainer

log = logging.getLogger(__name__)

SAY_AGAIN_S: Final = 60.0  # after which a training says again that it waits for space


def published(registry: Registry, name: str, task: str) -> dict[str, Any] | None:
    """The result of a version that this task has published already; None where there is none."""
    for version in registry.list():
        on_the_way = publishing.STEP in version.metrics
        if version.name == name and version.lineage.task == task and not on_the_way:
            return _result(version)
    return None


def publish(
    context: WorkerContext, spec: TrainSpec, trainer: Trainer, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Register the better of the last and the best weights; the task's result.

    On a full disk it waits for space with the weights in memory: the last checkpoint may have had
    no room either. Raises Suspended when told to stop meanwhile, StorageError when the disk fails.
    """
    state = trainer.state
    step = state.step
    last = next((e for s, _, e in reversed(state.curve) if s == step), None)
    worse = last is not None and not last <= (state.best_loss or last)  # no number is worse too
    leaving = _Leaving(trainer)
    if trainer.best is not None and worse:
        leaving.keep_weights()
        load_weights(trainer.model, trainer.best)
        step = state.best_step or step
    metrics = _metrics(context, spec, trainer, vocabulary, leaving)
    metrics["published_step"] = step
    parent = None
    if spec.base is not None:
        base = context.registry.resolve(spec.base)
        parent = f"{base.name}:{base.version}"
    lineage = Lineage(
        parent=parent,
        data_hash=state.plan.data_digest,
        task=context.task.id,
        code_version=__version__,
        project=context.task.principal.project,
    )

    shown = Progress(stage="publishing", done=step, total=state.step)
    waits = _Waits(spec.model, replace(shown, stage=WAITS_FOR_SPACE), context.report)

    def write() -> ModelVersion:
        if not waits.begun:  # each try after that would be two lines of the log
            context.report(shown)
        return _write(context, spec, trainer, vocabulary, lineage, metrics)

    def waiting(error: Exception) -> None:
        leaving.if_told()
        waits.tell(error)

    try:
        version = space.wait_for(write, context.home.root, waiting)
    except (OSError, SafetensorError) as error:
        saved = trainer.checkpoints.saved_step
        goes_on = f"goes on from step {saved}" if saved else "begins again, as nothing is saved"
        raise StorageError(
            f"cannot publish {spec.model}: {_why(error)}; the training {goes_on} in a while: look "
            "at the disk"
        ) from error
    if spec.publish == spec.model:
        snapshots.announce(context, version.ref)
    return _result(version)


class _Waits:
    """Says that a model waits for space: why at once, and again each time after twice as long."""

    def __init__(
        self,
        model: str,
        shown: Progress,
        report: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._shown, self._report, self._clock = model, shown, report, clock
        self._told: set[str] = set()
        self._due = 0.0
        self._pause_s = SAY_AGAIN_S

    @property
    def begun(self) -> bool:
        """Whether it has been said."""
        return bool(self._told)

    def tell(self, error: Exception) -> None:
        """It still waits; called very often."""
        note = f"cannot publish {self._model}: {_why(error)}; waits for space: free some"
        # By its cause: how much is free changes with each try.
        reason, now = _why(error.__cause__ or error), self._clock()
        if reason in self._told and now < self._due:
            self._report(self._shown)
            return
        self._told.add(reason)
        self._due = now + self._pause_s
        self._pause_s *= 2
        self._report(replace(self._shown, note=note))


class _Leaving:
    """The way out of a training that has done all its steps, while it is published."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._weights: Weights | None = None

    def keep_weights(self) -> None:
        """The last ones, which a checkpoint needs; others are loaded to be published."""
        if self._trainer.checkpoints.saved_step != self._trainer.state.step:
            self._weights = {n: p.detach().clone() for n, p in self._trainer.weights().items()}

    def if_told(self) -> None:
        """Save what isn't saved yet, if that is possible. Raises Suspended when told to stop."""
        if not self._trainer.stopping():
            return
        if self._weights is not None:
            load_weights(self._trainer.model, self._weights)
        self._trainer.suspend()


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _write(
    context: WorkerContext,
    spec: TrainSpec,
    trainer: Trainer,
    vocabulary: Vocabulary,
    lineage: Lineage,
    metrics: dict[str, Any],
) -> ModelVersion:
    """Write the model's files, and register them."""
    # Beside the registry's blobs: on its own disk.
    with tempfile.TemporaryDirectory(prefix="publish-", dir=snapshots.scratch(context)) as scratch:
        directory = Path(scratch)
        architectures.save(trainer.model, directory)
        files = {path.name: path for path in directory.iterdir() if path.is_file()}
        return context.registry.publish(
            spec.model,
            {**files, **vocabulary.files},
            lineage=lineage,
            metrics=metrics,
            curve=[list(point) for point in trainer.state.curve],
        )


def _result(version: ModelVersion) -> dict[str, Any]:
    return {"model": f"{version.name}:{version.version}", **version.metrics}


def _metrics(
    context: WorkerContext,
    spec: TrainSpec,
    trainer: Trainer,
    vocabulary: Vocabulary,
    leaving: _Leaving,
) -> dict[str, Any]:
    """Losses in nats per token, bits per byte, baselines over the same held-out tokens, counts."""
    state, meta = trainer.state, trainer.packed.meta
    model: Any = trainer.model
    metrics: dict[str, Any] = {
        "steps": state.step,
        "tokens": state.step * spec.batch_size * spec.accumulate * spec.sequence_length,
        "train_loss": state.curve[-1][1] if state.curve else None,
        "trained_s": round(state.trained_s, 3),
        "tokens_per_s": round(trainer.tokens_per_s, 1) if trainer.tokens_per_s else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_bytes": meta.train_bytes + meta.eval_bytes,
        "corpus_documents": meta.documents,
        "train_tokens": meta.train_tokens,
        "vocab_size": vocabulary.size,
        "objective": spec.objective,
    }

    def check() -> None:
        context.report(Progress(stage="evaluating", done=state.step, total=state.step))
        leaving.if_told()

    if state.plan.last != state.plan.steps:
        metrics["planned_steps"] = state.plan.steps
        cut = state.plan.cut is not None
        metrics["note"] = (
            "ended early: the time budget was over"
            if cut
            else "ended early: the machine became slower, and the time budget had to do"
        )
    tokens = schedule.final_tokens(spec, trainer.tokens_per_s)
    held_out = trainer.evaluate(max(1, tokens // spec.sequence_length), check)
    if len(held_out.targets) == 0:
        why = "the corpus is too small" if spec.data.eval_fraction else "eval_fraction is 0"
        metrics["note"] = f"nothing was held out: {why}"
        return metrics
    baselines = Baselines(trainer.packed.train, vocabulary.size)
    unigram = baselines.unigram(held_out.targets)
    bigram = baselines.bigram(held_out.before, held_out.targets)
    held_out_bytes = int(np.sum(vocabulary.byte_lengths()[held_out.targets]))
    per_byte = len(held_out.targets) / math.log(2) / max(1, held_out_bytes)
    metrics |= {
        "eval_loss": held_out.loss,
        "perplexity": math.exp(min(held_out.loss, 700.0)),
        "bits_per_byte": held_out.loss * per_byte,
        "unigram_loss": unigram,
        "unigram_bits_per_byte": unigram * per_byte,
        "bigram_loss": bigram,
        "bigram_bits_per_byte": bigram * per_byte,
        "beats_bigram": held_out.loss < bigram,
        "eval_tokens": len(held_out.targets),
        "eval_bytes": held_out_bytes,
    }
    return metrics
