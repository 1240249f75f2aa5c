"""A flag for every field of TrainSpec, made from the struct itself so that none is forgotten."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
import typer

from zenos.core.specs import DataSpec, TrainSpec

SPEC_BYTES_MAX: Final = 1024 * 1024
_DATA: Final = "data"
# Flags whose name is not the field's own; `paths` and `settings` may be given several times.
_FLAGS: Final = {
    "data.paths": "--data",
    "data.format": "--data-format",
    "settings": "--set",
}
_PANELS: Final = {
    "What to train": ("model", "arch", "settings", "base", "tokenizer", "objective"),
    "How long": ("steps", "epochs", "time_budget_s"),
    "Batches": ("vocab_size", "sequence_length", "batch_size", "accumulate"),
    "Optimiser": (
        "learning_rate",
        "learning_rate_min",
        "warmup",
        "weight_decay",
        "beta1",
        "beta2",
        "clip",
        "mask_probability",
    ),
    "How to compute": ("dtype", "compile", "seed", "inexact"),
    "Evaluation and checkpoints": ("eval_every", "eval_batches", "checkpoint_every"),
}
HELP: Final = {
    "model": "Name under which the result is registered.",
    "arch": "Architecture from scratch: a short name (llama-nano) or a model type (llama).",
    "settings": "NAME=VALUE: a field of the architecture's configuration; may be repeated.",
    "base": "Registered model to go on from, instead of --arch.",
    "tokenizer": "Registered model whose tokenizer is used; by default one is trained.",
    "objective": "What is learned.",
    "vocab_size": "Size of the tokenizer that is trained.",
    "sequence_length": "Tokens per sequence.",
    "batch_size": "Sequences per micro-batch.",
    "accumulate": "Micro-batches per step.",
    "steps": "Optimiser steps; by default as many as --epochs takes.",
    "epochs": "Passes over the corpus.",
    "time_budget_s": "Seconds after which training ends, whatever the steps.",
    "learning_rate": "Highest learning rate, after the warm-up.",
    "learning_rate_min": "Learning rate at the end of the cosine.",
    "warmup": "Steps of linear warm-up.",
    "weight_decay": "AdamW's weight decay.",
    "beta1": "AdamW's first beta.",
    "beta2": "AdamW's second beta.",
    "clip": "Largest 2-norm of the gradient.",
    "mask_probability": "Share of tokens masked (masked_lm).",
    "dtype": "Arithmetic of the forward pass.",
    "compile": "Compile the model where a compiler is.",
    "seed": "Seed of weights and data order.",
    "inexact": "Go on from a checkpoint although the result will differ in its last bits.",
    "eval_every": "Steps between evaluations.",
    "eval_batches": "Batches per evaluation.",
    "checkpoint_every": "Steps between checkpoints.",
    "data.paths": "File, directory or glob to train on; may be repeated.",
    "data.format": "How the files are read; by default told from their endings.",
    "data.text_column": "Column with the text (jsonl, csv, parquet).",
    "data.encoding": "Encoding of the text, e.g. gb18030.",
    "data.exclude": "Pattern of files to leave out; may be repeated.",
    "data.eval_fraction": "Share of the documents that is held out.",
}


def fields() -> dict[str, Any]:
    """All fields that have a flag, with their types' metadata: `steps`, `data.paths`, …"""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(TrainSpec):
        if field.name == _DATA:
            for inner in msgspec.structs.fields(DataSpec):
                found[f"{_DATA}.{inner.name}"] = inner
        else:
            found[field.name] = field
    return found


def flag_of(name: str) -> str:
    """The flag of a field: `learning_rate` → `--learning-rate`."""
    return _FLAGS.get(name) or f"--{name.rpartition('.')[2].replace('_', '-')}"


def with_train_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each field: `steps`, `data__paths`, …; None: not given."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [*own, *(_parameter(name, field) for name, field in fields().items())]

    def wrapper(**given: Any) -> None:
        command(**given)

    wrapper.__doc__ = command.__doc__
    wrapper.__name__ = command.__name__
    wrapper.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
    return wrapper


def _parameter(name: str, field: Any) -> inspect.Parameter:
    flag = flag_of(name)
    type_ = _plain_type(field.type)
    default = "" if field.default in (msgspec.NODEFAULT, None) else f" Default {field.default}."
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if type_ is bool else flag,
        help=f"{HELP.get(name, '')}{default}",
        rich_help_panel=_panel(name),
        show_default=False,
    )
    return inspect.Parameter(
        name.replace(".", "__"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[type_ | None, option],
    )


def _panel(name: str) -> str:
    for panel, names in _PANELS.items():
        if name in names:
            return panel
    return "Data"


def _plain_type(type_: Any) -> Any:
    """What Typer is told: without None; a mapping is given as NAME=VALUE texts."""
    if get_origin(type_) in (Union, UnionType):
        (type_,) = [part for part in get_args(type_) if part is not NoneType]
    return list[str] if get_origin(type_) is dict else type_


def merged(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The specification as a mapping: what the file says, with what the flags say above it."""
    from zenos.cli.common import parse_settings
    from zenos.client.build import resolve_paths
    from zenos.core.errors import InvalidError

    spec = dict(file)
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    settings = given.pop("settings", None)
    if settings:
        old = spec.get("settings") or {}
        if not isinstance(old, dict):
            raise InvalidError("cannot use settings: it must be a mapping of names to values")
        spec["settings"] = {**old, **parse_settings(settings)}
    data = spec.get(_DATA)
    inner = {name.partition(".")[2]: given.pop(name) for name in list(given) if "." in name}
    if inner:
        if data is not None and not isinstance(data, dict):
            data = {"paths": data}
        # Paths of flags are meant from the working directory, those of the file were made absolute.
        spec[_DATA] = {**(data or {}), **resolve_paths(inner, Path.cwd())}
    return {**spec, **given}


def read_spec(path: Path) -> dict[str, Any]:
    """The file's mapping (YAML or JSON), with data paths meant from where the file lies."""
    import re

    import yaml

    from zenos.client.build import resolve_paths
    from zenos.core.errors import InvalidError, NotFoundError

    class Loader(yaml.SafeLoader):
        """PyYAML reads `1e-3` as text; here it is the number that everyone means."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
    try:
        with path.open("rb") as file:
            raw = file.read(SPEC_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFoundError(f"cannot find the specification {path}") from None
    except OSError as error:
        raise InvalidError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > SPEC_BYTES_MAX:
        raise InvalidError(f"cannot read {path}: a specification has at most 1 MiB")
    try:
        values = yaml.load(raw.decode("utf-8"), Loader=Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise InvalidError(f"cannot read {path}: it is not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise InvalidError(f"cannot read {path}: it is not YAML: {where[:300]}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidError(f"cannot read {path}: it must be a mapping, e.g. 'model: shakespeare'")
    data = values.get(_DATA)
    if isinstance(data, str | list):
        data = {"paths": data}
    if isinstance(data, dict):
        values[_DATA] = resolve_paths(data, path.absolute().parent)
    return values
