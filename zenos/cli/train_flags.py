"""A flag for every field of TrainSpec, made from the struct itself so that none is forgotten."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
import typer

from zenos.cli.common import complete_architectures, complete_from
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
    "How long": ("steps", "epochs", "time_budget_s", "steps_min"),
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
    "How to compute": (
        "workers",
        "workers_min",
        "backend",
        "dtype",
        "compile",
        "seed",
        "inexact",
    ),
    "Evaluation and checkpoints": ("eval_every", "eval_batches", "checkpoint_every"),
    "Publishing on the way": ("publish", "publish_every", "publish_keep"),
}
# Where a flag takes something else than the field.
_HELP: Final = {
    "settings": "NAME=VALUE: a field of the architecture's configuration; may be repeated.",
    "data.paths": "File, directory or glob to train on; may be repeated.",
    "data.exclude": "Pattern of files to leave out; may be repeated.",
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
    type_, about = _plain_type(field.type)
    if name == "workers":
        type_, about = str, f"{about} LEAST..MOST: so many as there is room for, while it runs too."
    default = "" if field.default in (msgspec.NODEFAULT, None) else f" Default {field.default}."
    choices: tuple[str, ...] = get_args(type_) if get_origin(type_) is Literal else ()
    completion = complete_architectures if name == "arch" else complete_from(lambda: choices)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if type_ is bool else flag,
        help=f"{_HELP.get(name) or about}{default}",
        rich_help_panel=_panel(name),
        show_default=False,
        autocompletion=completion if choices or name == "arch" else None,
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


def _plain_type(type_: Any) -> tuple[Any, str]:
    """What Typer is told, without None, and what it means; a mapping is given as NAME=VALUE."""
    type_, meta = get_args(type_)
    if get_origin(type_) in (Union, UnionType):
        (type_,) = [part for part in get_args(type_) if part is not NoneType]
    # A description names other fields; here they are flags.
    about = re.sub(r"`(\w+)`", lambda found: flag_of(found[1]), meta.description)
    return list[str] if get_origin(type_) is dict else type_, about


def merged(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The specification as a mapping: what the file says, with what the flags say above it."""
    from zenos.cli.common import parse_settings
    from zenos.client.build import resolve_paths
    from zenos.core.errors import InvalidError

    spec = dict(file)
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in given and other not in given:
            spec.pop(other, None)  # of the file: both say how long, and flags win
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
        spec[_DATA] = {**(data or {}), **resolve_paths(inner, Path())}
    return {**spec, **given}


@contextmanager
def in_flags(flags: Mapping[str, Any], *, has_file: bool = False) -> Iterator[None]:
    """Errors name what was typed: a field that was given as a flag by its flag.

    What is missing is a flag too where there is no file that it might stand in.
    """
    from zenos.core.errors import InvalidError
    from zenos.core.wording import FieldError

    try:
        yield
    except InvalidError as error:
        missing = re.fullmatch(r"cannot do without the field '([\w.]+)': give it", error.message)
        if missing and not has_file:
            told = f"cannot do without {flag_of(missing[1])}: give it; see 'zenos train --help'"
            raise FieldError(told, error.param) from None
        message = error.message
        for given, value in flags.items():
            name = given.replace("__", ".")
            if value is not None:
                message = re.sub(
                    rf"^(cannot use (?:the field )?)'?{re.escape(name)}(?:'|\b)(?=[ :\[.])",
                    lambda found, name=name: f"{found[1]}{flag_of(name)}",  # type: ignore[misc]
                    message,
                )
        if message == error.message:
            raise
        raise FieldError(message, error.param) from None


def read_spec(path: Path) -> dict[str, Any]:
    """The file's mapping (YAML or JSON), with data paths meant from where the file lies."""
    import yaml

    from zenos.cli import yaml_files
    from zenos.client.build import resolve_paths
    from zenos.client.calls import check_numbers
    from zenos.core.errors import InvalidError, NotFoundError

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
        values = yaml_files.parse(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidError(f"cannot read {path}: it is not UTF-8 text") from None
    except RecursionError:
        raise InvalidError(f"cannot read {path}: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        where = " ".join(str(error).split())
        raise InvalidError(f"cannot read {path}: it is not YAML: {where[:300]}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidError(f"cannot read {path}: it must be a mapping, e.g. 'model: shakespeare'")
    check_numbers("", values)
    data = values.get(_DATA)
    if isinstance(data, str | list):
        data = {"paths": data}
    if isinstance(data, dict):
        values[_DATA] = resolve_paths(data, path.absolute().parent)
    return values
