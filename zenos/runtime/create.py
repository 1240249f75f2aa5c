"""Create a model from scratch: a config and seeded, untrained weights, registered."""

from __future__ import annotations

import tempfile
from pathlib import Path

from zenos import __version__
from zenos.core.errors import InvalidError
from zenos.core.specs import CreateSpec
from zenos.core.wire import Progress
from zenos.models.registry import Lineage
from zenos.runtime import architectures
from zenos.runtime.context import WorkerContext

VOCABULARY_DEFAULT = 4096
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def main(context: WorkerContext) -> int:
    """Build, save, register; `result.json` names the version. Done already: says so again."""
    spec = context.task.spec.work
    if not isinstance(spec, CreateSpec):
        raise InvalidError("cannot create a model from another kind of task")
    for version in context.registry.list():
        if version.name == spec.name and version.lineage.task == context.task.id:
            context.write_result({"model": version.ref, "parameters": version.parameters})
            return 0
    tokenizer = _tokenizer(context, spec)
    settings = dict(spec.settings)
    vocab_size = settings.pop("vocab_size", None) or _vocabulary_size(tokenizer)
    if not isinstance(vocab_size, int) or not 2 <= vocab_size <= architectures.SETTING_MAX:
        raise InvalidError(f"cannot use vocab_size {vocab_size!r}: give a number from 2")
    context.report(Progress(stage="building"))
    model = architectures.build(spec.arch, settings, vocab_size, spec.seed)
    context.report(Progress(stage="saving"))
    with tempfile.TemporaryDirectory(prefix="create-", dir=context.run_dir) as scratch:
        directory = Path(scratch)
        architectures.save(model, directory)
        files = {path.name: path for path in directory.iterdir()}
        version = context.registry.publish(
            spec.name,
            {**files, **tokenizer},
            lineage=Lineage(task=context.task.id, code_version=__version__),
        )
    context.write_result({"model": version.ref, "parameters": version.parameters})
    return 0


def _tokenizer(context: WorkerContext, spec: CreateSpec) -> dict[str, Path]:
    """The tokenizer files of the model that the spec names, if it names one."""
    if spec.tokenizer is None:
        return {}
    source = context.registry.path(context.registry.resolve(spec.tokenizer))
    found = {name: source / name for name in TOKENIZER_FILES if (source / name).exists()}
    if "tokenizer.json" not in found:
        raise InvalidError(f"cannot use the tokenizer of {spec.tokenizer}: it has none")
    return found


def _vocabulary_size(tokenizer: dict[str, Path]) -> int:
    if not tokenizer:
        return VOCABULARY_DEFAULT
    import tokenizers

    size: int = tokenizers.Tokenizer.from_file(str(tokenizer["tokenizer.json"])).get_vocab_size()
    return size
