"""The end of a run: measure the weights, register them as a model version, say so."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from zenos import __version__
from zenos.core.errors import StorageError
from zenos.core.specs import TrainSpec
from zenos.core.wire import Progress
from zenos.models import publishing
from zenos.models.registry import Lineage, ModelVersion, Registry
from zenos.runtime import architectures
from zenos.runtime.context import WorkerContext
from zenos.runtime.train import schedule, snapshots
from zenos.runtime.train.baselines import Baselines
from zenos.runtime.train.parameters import load_weights
from zenos.runtime.train.tokenizer import Vocabulary
from zenos.runtime.train.trainer import Suspended, Trainer

log = logging.getLogger(__name__)


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
    """Register the better of the last and the best weights; the task's result."""
    state = trainer.state
    step = state.step
    last = next((e for s, _, e in reversed(state.curve) if s == step), None)
    worse = last is not None and not last <= (state.best_loss or last)  # no number is worse too
    if trainer.best is not None and worse:
        load_weights(trainer.model, trainer.best)
        step = state.best_step or step
    metrics = _metrics(context, spec, trainer, vocabulary)
    metrics["published_step"] = step
    context.report(Progress(stage="publishing", done=step, total=state.step))
    parent = None
    if spec.base is not None:
        base = context.registry.resolve(spec.base)
        parent = f"{base.name}:{base.version}"
    try:
        # Beside the registry's blobs, so that files can be moved instead of copied.
        with tempfile.TemporaryDirectory(
            prefix="publish-", dir=snapshots.scratch(context)
        ) as scratch:
            directory = Path(scratch)
            architectures.save(trainer.model, directory)
            files = {path.name: path for path in directory.iterdir() if path.is_file()}
            version = context.registry.publish(
                spec.model,
                {**files, **vocabulary.files},
                lineage=Lineage(
                    parent=parent,
                    data_hash=state.plan.data_digest,
                    task=context.task.id,
                    code_version=__version__,
                    project=context.task.principal.project,
                ),
                metrics=metrics,
                curve=[list(point) for point in state.curve],
            )
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot publish {spec.model}: {why}; the training is saved, and tries again in a "
            "while: free some space"
        ) from error
    if spec.publish == spec.model:
        snapshots.announce(context, version.ref)
    return _result(version)


def _result(version: ModelVersion) -> dict[str, Any]:
    return {"model": f"{version.name}:{version.version}", **version.metrics}


def _metrics(
    context: WorkerContext, spec: TrainSpec, trainer: Trainer, vocabulary: Vocabulary
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
        if trainer.stopping():
            raise Suspended(trainer.checkpoints.saved_step or 0)

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
