"""Create a model from scratch: a config and seeded, untrained weights, registered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from zenos import __version__
from zenos.core.errors import InvalidError
from zenos.core.specs import CreateSpec
from zenos.core.wire import Progress
from zenos.models.presets import SETTING_MAX, shown
from zenos.models.registry import Lineage
from zenos.runtime import architectures
from zenos.runtime.context import WorkerContext
from zenos.runtime.train.tokenizer import Vocabulary

VOCABULARY_DEFAULT = 4096


def main(context: WorkerContext) -> int:
    """Build, save, register; `result.json` names the version. Done already: says so again."""
    spec = context.task.spec.work
    if not isinstance(spec, CreateSpec):
        raise InvalidError("cannot create a model from another kind of task")
    for version in context.registry.list():
        if version.name == spec.name and version.lineage.task == context.task.id:
            context.write_result({"model": version.ref, "parameters": version.parameters})
            return 0
    vocabulary = _vocabulary(context, spec)
    settings = dict(spec.settings)
    vocab_size = _vocab_size(settings.pop("vocab_size", None), vocabulary)
    context.report(Progress(stage="building"))
    model = architectures.build(spec.arch, settings, vocab_size, spec.seed)
    if vocabulary is not None:
        _name_tokens(model, settings, vocabulary)
    context.report(Progress(stage="saving"))
    with tempfile.TemporaryDirectory(prefix="create-", dir=context.run_dir) as scratch:
        directory = Path(scratch)
        architectures.save(model, directory)
        files = {path.name: path for path in directory.iterdir()}
        version = context.registry.publish(
            spec.name,
            {**files, **(vocabulary.files if vocabulary else {})},
            lineage=Lineage(
                task=context.task.id,
                code_version=__version__,
                project=context.task.principal.project,
            ),
        )
    context.write_result({"model": version.ref, "parameters": version.parameters})
    return 0


def _vocabulary(context: WorkerContext, spec: CreateSpec) -> Vocabulary | None:
    """The tokenizer of the model that the spec names, if it names one."""
    if spec.tokenizer is None:
        return None
    source = context.registry.path(context.registry.resolve(spec.tokenizer))
    if not (source / "tokenizer.json").exists():
        raise InvalidError(
            f"cannot use the tokenizer of {spec.tokenizer}: it has no tokenizer.json"
        )
    return Vocabulary(source)


def _vocab_size(given: Any, vocabulary: Vocabulary | None) -> int:
    """How many tokens the model knows: all of its tokenizer's, or more."""
    least = 2 if vocabulary is None else max(2, vocabulary.size)
    if given is None:
        return least if vocabulary is not None else VOCABULARY_DEFAULT
    if type(given) is not int or not least <= given <= SETTING_MAX:
        why = "" if vocabulary is None else ", as its tokenizer has so many tokens"
        raise InvalidError(
            f"cannot use vocab_size {shown(given)}: give a whole number from {least}{why}"
        )
    return given


def _name_tokens(model: Any, settings: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Let the config name the tokenizer's special tokens instead of its model type's usual ones."""
    ids = {
        "bos_token_id": vocabulary.end_id,
        "eos_token_id": vocabulary.end_id,
        "pad_token_id": vocabulary.pad_id,
    }
    for config in (model.config, getattr(model, "generation_config", None)):
        for name, id_ in ids.items():
            if config is not None and name not in settings:
                setattr(config, name, id_)
