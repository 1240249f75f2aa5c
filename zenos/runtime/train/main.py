"""A training task from its specification to a registered model, and on from wherever it stood.

1. A version that this task has published already is the result (a kill came after publishing).
2. The corpus, the tokenizer and the packed tokens come from the cache, or are made.
3. The model is built, or loaded, and goes on from the newest undamaged checkpoint.
4. It trains; told to stop, it saves, if it is to, and leaves with exit code 75.
5. The better of the last and the best weights is measured, published, and the result written.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers

from zenos.core import durable
from zenos.core.errors import InvalidError
from zenos.core.names import ModelRef
from zenos.core.specs import TrainSpec
from zenos.core.wire import Progress
from zenos.models.presets import ROOMS
from zenos.models.records import context_length
from zenos.runtime import architectures, gpu
from zenos.runtime.context import EXIT_SUSPENDED, WorkerContext
from zenos.runtime.train import caching, numerics, packing, publish
from zenos.runtime.train import tokenizer as tokenizers
from zenos.runtime.train.checkpoint import Checkpoint, Checkpoints, DamagedError, Plan
from zenos.runtime.train.corpus import Corpus, Survey
from zenos.runtime.train.gang import RENDEZVOUS, Leader
from zenos.runtime.train.objectives import objective_for
from zenos.runtime.train.packing import Packed
from zenos.runtime.train.parameters import Weights
from zenos.runtime.train.snapshots import Snapshots
from zenos.runtime.train.tokenizer import Vocabulary
from zenos.runtime.train.trainer import Suspended, Trainer
from zenos.threads.allocation import cpus, lanes_for

log = logging.getLogger(__name__)

_CLASSES: Final = {
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "masked_lm": ("ForMaskedLM",),
}


def main(context: WorkerContext) -> int:
    """Train; the exit code (see zenos.runtime.worker.main).

    `result.json` is {"model": "name:version", metrics…}, or, with exit code 75,
    {"suspended": true, "step": the step that a resume goes on from, "saved": whether that is
    all that was done}.
    """
    spec = context.task.spec.work
    if not isinstance(spec, TrainSpec):
        raise InvalidError("cannot train: this task is something else")
    checkpoints = Checkpoints(context.home.checkpoint(context.task.id))
    try:
        result = publish.published(context.registry, spec.model, context.task.id)  # 1
        if result is None:
            result = _train(context, spec, checkpoints)
    except Suspended as suspended:
        context.write_result({"suspended": True, "step": suspended.step, "saved": suspended.saved})
        return EXIT_SUSPENDED
    context.write_result(result)
    checkpoints.remove()
    return 0


class Data(NamedTuple):
    """What is trained on."""

    plan: Plan
    packed: Packed
    vocabulary: Vocabulary


def _train(context: WorkerContext, spec: TrainSpec, checkpoints: Checkpoints) -> dict[str, Any]:
    """Train. Alone, the model is built while the checkpoint is still being read and hashed."""
    checkpoint, notes = checkpoints.latest(later=context.gang is None)
    try:
        trainer, vocabulary = _prepare(context, spec, checkpoints, checkpoint, notes)
    except Exception as error:
        if not isinstance(error, DamagedError) and not _is_damaged(checkpoint):
            raise
        checkpoint, notes = checkpoints.latest()  # and whatever went wrong may have come of that
        trainer, vocabulary = _prepare(context, spec, checkpoints, checkpoint, notes)
    del checkpoint
    trainer.begin()
    if spec.publish is None:
        trainer.run()  # 4
    else:
        _run_publishing(context, spec, trainer, vocabulary)
    return publish.publish(context, spec, trainer, vocabulary)  # 5


def _is_damaged(checkpoint: Checkpoint | None) -> bool:
    try:
        if checkpoint is not None:
            checkpoint.confirm()
    except DamagedError:
        return True
    return False


def _prepare(
    context: WorkerContext,
    spec: TrainSpec,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    notes: list[str],
) -> tuple[Trainer, Vocabulary]:
    """All that comes before the first step. Raises DamagedError for a checkpoint that is none."""
    for note in notes:
        context.report(Progress(stage="resuming", note=note))
    if spec.arch is not None:
        # A typo is said before hours of tokenizing, not after.
        architectures.configure(spec.arch, spec.settings, spec.vocab_size)
    data = _data(context, spec, checkpoints, checkpoint)  # 2
    gang = context.gang
    if isinstance(gang, Leader):
        gang.begin(data.plan, checkpoint.directory if checkpoint is not None else None)
    device = choose_device(context)
    weights = checkpoint.tensors("model") if checkpoint is not None else None
    trainer = Trainer(
        spec,
        build(context, spec, data.vocabulary, weights),  # 3
        objective_for(spec, data.vocabulary),
        data.packed,
        checkpoints,
        data.plan,
        device,
        report=context.report,
        stopping=lambda: _stopping(context, checkpoints.saved_step),
        clock=lambda: time.perf_counter() - context.paused_s,
        gang=gang,
    )
    if checkpoint is not None:
        checkpoint.confirm()
        trainer.resume(checkpoint)
    if isinstance(gang, Leader):
        gang.join(trainer.model, trainer.optimizer, spec.backend, context.run_dir / RENDEZVOUS)
    return trainer, data.vocabulary


def _run_publishing(
    context: WorkerContext, spec: TrainSpec, trainer: Trainer, vocabulary: Vocabulary
) -> None:
    """Train, and publish versions on the way."""
    files = vocabulary.files
    snapshots = Snapshots(context, spec, trainer.model, trainer.weights(), files)
    trainer.after_step = snapshots.after_step
    try:
        trainer.run()
        snapshots.finish(trainer.state)
    finally:
        snapshots.close()


def _stopping(context: WorkerContext, saved_step: int | None = None) -> bool:
    """Whether to save and leave. Raises Suspended when told to end without saving.

    RankError when another process of the gang has ended.
    """
    if isinstance(context.gang, Leader):
        context.gang.check()
    stop = context.stop_requested()
    if stop is not None and not stop.save:
        raise Suspended(saved_step or 0, saved=False)
    return stop is not None


def choose_device(context: WorkerContext) -> torch.device:
    """The CPU, or this process's GPU, of which it takes no more than it may."""
    gpu.restrict(context.task)
    allocation = context.task.allocation
    device = numerics.choose_device(allocation.resources.gpu if allocation is not None else 0)
    if device.type == "cuda" and context.gang is not None:
        torch.cuda.set_device(context.gang.rank)
    return device


# -- data


def _data(
    context: WorkerContext,
    spec: TrainSpec,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
) -> Data:
    """Corpus and tokenizer as planned by the first generation, or planned now.

    A resume needs the cache alone, whatever has become of the corpus; without the cache it makes it
    again, and refuses to go on with another text.
    """
    plan = checkpoint.state.plan if checkpoint is not None else checkpoints.read_plan()
    cache = context.home.cache
    if plan is not None:
        packed_at = caching.find(cache / "packs" / plan.pack)
        tokenizer_at = caching.find(cache / "tokenizers" / plan.tokenizer)
        if packed_at is not None and tokenizer_at is not None:
            return Data(plan, Packed(packed_at), Vocabulary(tokenizer_at))
    corpus = Corpus(spec.data)
    stage = _Stage(context, corpus)
    count = lanes_for(cpus())
    lanes = f"{count} lane{'s' if count > 1 else ''}"
    survey = stage.run(f"reading, {lanes}", corpus.survey)
    if plan is not None and plan.data_digest != survey.digest:
        raise InvalidError(
            "cannot resume: the corpus has changed since the training began, and the cache of what "
            "it was is gone; train again"
        )
    vocabulary = stage.run("tokenizer", lambda: _vocabulary(context, spec, corpus, survey))
    directory = stage.run(
        f"tokenizing, {lanes}", lambda: packing.pack(corpus, survey, vocabulary, cache)
    )
    if plan is None:
        plan = Plan(
            pack=directory.name,
            tokenizer=vocabulary.directory.name,
            data_digest=survey.digest,
            steps=None,
        )
        checkpoints.write_plan(plan)
        _make_room(context)
    elif (plan.pack, plan.tokenizer) != (directory.name, vocabulary.directory.name):
        raise InvalidError(
            "cannot resume: the same corpus gives another tokenizer than when the training began; "
            "was the tokenizers library changed? train again"
        )
    return Data(plan, Packed(directory), vocabulary)


def _make_room(context: WorkerContext) -> None:
    """Keep the cache within its budget, now that something was put into it.

    What the plan of a training names stays: plans are there until their trainings have ended.
    """
    home, named = context.home, set[str]()
    for path in home.checkpoints.glob("*/plan.json"):
        plan = Checkpoints(path.parent).read_plan()
        if plan is None and path.exists():
            log.warning("the cache stays as it is: %s cannot be read", path)
            return
        named |= {plan.pack, plan.tokenizer} if plan is not None else set()
    caching.make_room(home.cache, context.cache_bytes_max, named)


class _Stage:
    """Runs a pass over the corpus under a name: reports how far it is, stops when told to."""

    def __init__(self, context: WorkerContext, corpus: Corpus) -> None:
        self._context = context
        self._corpus = corpus
        self._name = ""
        corpus.on_bytes = self._on_bytes

    def run(self, name: str, work: Any) -> Any:
        self._name = name
        note = ""
        if name.startswith("reading") and self._corpus.skipped:
            note = f"left out {len(self._corpus.skipped)} binary files"
        self._context.report(
            Progress(stage=name, done=0, total=self._corpus.bytes, note=note), force=True
        )
        return work()

    def _on_bytes(self, done: int) -> None:
        if _stopping(self._context):
            raise Suspended(0)
        self._context.report(Progress(stage=self._name, done=done, total=self._corpus.bytes))


def _vocabulary(
    context: WorkerContext, spec: TrainSpec, corpus: Corpus, survey: Survey
) -> Vocabulary:
    """The tokenizer of the base model, of the model that `tokenizer` names, or a new one."""
    reference = spec.tokenizer or spec.base
    if reference is None:
        return tokenizers.train(corpus, survey, spec.vocab_size, context.home.cache)
    source = context.registry.path(context.registry.resolve(ModelRef.parse(reference)))
    if not (source / "tokenizer.json").exists():
        raise InvalidError(f"cannot use the tokenizer of {reference}: it has no tokenizer.json")
    found = Vocabulary(source)

    def copy(directory: Path) -> None:
        for name, path in found.files.items():
            shutil.copyfile(path, directory / name)
            durable.sync_file(directory / name)

    key = caching.key("copied", *(caching.digest(path) for path in found.files.values()))
    return Vocabulary(caching.directory(context.home.cache / "tokenizers" / key, copy))


# -- model


def build(
    context: WorkerContext, spec: TrainSpec, vocabulary: Vocabulary, weights: Weights | None = None
) -> torch.nn.Module:
    """The model to train, in float32. Raises InvalidError when it doesn't fit the objective.

    weights: a checkpoint's, which it takes over where it can; `Trainer.resume` makes sure of that.
    """
    context.report(Progress(stage="building"))
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any
    if spec.arch is not None:
        arch, settings, size = spec.arch, spec.settings, vocabulary.size
        model = architectures.restore(arch, settings, size, weights) if weights else None
        model = model or architectures.build(arch, settings, size, spec.seed)
        for config in (model.config, getattr(model, "generation_config", None)):
            if config is not None:
                config.bos_token_id = config.eos_token_id = vocabulary.end_id
                config.pad_token_id = vocabulary.pad_id
    else:
        reference = ModelRef.parse(spec.base or "")
        source = context.registry.path(context.registry.resolve(reference))
        model = architectures.load(source, torch.float32)  # without gradients, to be served
        model.requires_grad_(True)
    name = type(model).__name__
    if not name.endswith(_CLASSES[spec.objective]):
        raise InvalidError(
            f"cannot train {spec.arch or spec.base} ({name}) as {spec.objective}: choose an "
            "architecture of that family (llama and gpt2 for causal_lm, bert for masked_lm)"
        )
    _check_room(model.config.to_dict(), spec)
    if model.get_input_embeddings().num_embeddings < vocabulary.size:
        raise InvalidError(
            f"cannot train with a vocabulary of {vocabulary.size}: the model has "
            f"{model.get_input_embeddings().num_embeddings} embeddings"
        )
    trained: torch.nn.Module = model
    return trained


def _check_room(config: dict[str, Any], spec: TrainSpec) -> None:
    """Raises InvalidError for sequences that are longer than the model has positions."""
    room = context_length(config)
    if room is None or spec.sequence_length <= room:
        return
    advice = f"give a sequence_length of at most {room}"
    if spec.base is None:  # which has its own settings, and they can't be changed
        advice += f", or set {next(name for name in ROOMS if name in config)} in 'settings'"
    raise InvalidError(
        f"cannot train on sequences of {spec.sequence_length} tokens: "
        f"{spec.base or 'the model'} has room for {room}; {advice}"
    )
