"""What may come into the registry: each file is checked before it is believed."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, StorageError
from zenos.core.resources import show_size
from zenos.models import safetensors

FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
JSON_BYTES_MAX: Final = 16 * limits.MIB
FILES_MAX: Final = 1000
INDEX_SUFFIX: Final = ".safetensors.index.json"
# What of a model's directory is taken in: weights, configs, tokenizers, templates.
SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
# Why other files are not, in the words that who imports is told.
PICKLE: Final = "a pickle, and loading one runs whatever code is in it; the safetensors are taken"
CODE: Final = "program code of the model's author, which is never run"
NO_PART: Final = "no part of a model: weights are safetensors, beside them configs and tokenizers"
INSIDE: Final = "a directory: what is inside one is not taken"
AUTO_MAP: Final = "it names program code, which is never run; transformers' own class is used"
_AUTO_MAP: Final = "auto_map"
_MAY_NAME_CODE: Final = ("config.json", "tokenizer_config.json")
_CODE_SUFFIXES: Final = frozenset({".py", ".pyc", ".so", ".ipynb", ".sh"})


class Gathered(NamedTuple):
    """files: by name. left_out: what of the directory is not taken, and why."""

    files: dict[str, Path]
    left_out: dict[str, str]


def gather(directory: Path) -> Gathered:
    """The files of a Hugging Face directory that make a model: config, tokenizer, safetensors.

    Raises InvalidError for pickled weights alone, and for links that lead out of the directory.
    """
    shown = str(directory)[:1000]
    shown = shown if shown.isprintable() else ascii(shown)
    try:
        if not directory.is_dir():
            raise InvalidError(f"cannot import {shown}: it is no directory")
        entries = sorted(directory.iterdir())
        wanted = [p for p in entries if p.suffix in SUFFIXES and (p.is_symlink() or p.is_file())]
        files = {path.name: _inside(path, directory) for path in wanted}
        if not any(file.endswith(".safetensors") for file in files):
            for path in entries:
                if path.is_file():
                    safetensors.refuse_pickle(path)
            raise InvalidError(f"cannot import {shown}: it has no safetensors weights")
    except OSError as error:
        raise InvalidError(f"cannot import {shown}: {error.strerror or error}") from error
    left_out = _left_out(path for path in entries if path.name not in files)
    for name in _MAY_NAME_CODE:
        if _names_code(files, name):
            left_out[f"{_AUTO_MAP} of {name}"] = AUTO_MAP
    return Gathered(files, left_out)


@contextmanager
def taken(directory: Path) -> Iterator[Gathered]:
    """As `gather`; configs that name program code are copies without that, for as long as it is
    used. What is exported later must not send anybody to code that isn't beside it."""
    files, left_out = gather(directory)
    named = [name for name in _MAY_NAME_CODE if f"{_AUTO_MAP} of {name}" in left_out]
    if not named:
        yield Gathered(files, left_out)
        return
    with _scratch() as scratch:
        for name in named:
            kept = {k: v for k, v in read_object(files[name], name).items() if k != _AUTO_MAP}
            files[name] = scratch / name
            try:
                files[name].write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                raise StorageError(
                    f"cannot write {files[name]}: {error.strerror or error}"
                ) from error
        yield Gathered(files, left_out)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory for as long as it is used."""
    try:
        made = tempfile.TemporaryDirectory(prefix="zenos-import-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"cannot make a directory for temporary files: {error.strerror or error}; free space, "
            "or set TMPDIR to a place that has some"
        ) from error
    with made as path:
        yield Path(path)


def _left_out(paths: Iterable[Path]) -> dict[str, str]:
    """Why each of these isn't taken; nothing of hidden ones, which are a repository's own.

    Of many the first are named, and the others counted.
    """
    shown = [path for path in paths if not path.name.startswith(".")]
    found: dict[str, str] = {}
    for path in shown[: limits.LEFT_OUT_MAX]:
        # A file's name may be no Unicode, which the manifest could not hold.
        name = path.name.encode("utf-8", "replace").decode()
        if path.is_dir():
            found[f"{name}/"] = INSIDE
        elif path.suffix.lower() in _CODE_SUFFIXES:
            found[name] = CODE
        else:
            found[name] = PICKLE if safetensors.is_pickle(path) else NO_PART
    if len(shown) > limits.LEFT_OUT_MAX:
        found["…"] = f"{len(shown) - limits.LEFT_OUT_MAX} more"
    return found


def _names_code(files: Mapping[str, Path], name: str) -> bool:
    """Whether a config names program code; of one that can't be read nothing is said here."""
    if name not in files or not files[name].is_file():
        return False
    with suppress(InvalidError):
        return bool(read_object(files[name], name).get(_AUTO_MAP))
    return False


def inspect(files: Mapping[str, Path]) -> tuple[dict[str, Any], int]:
    """Check a version's files: its config, and its number of parameters.

    Raises InvalidError for pickles, lying headers, shards that are missing, names and configs that
    cannot be used.
    """
    if len(files) > FILES_MAX:
        raise InvalidError(f"cannot register {len(files)} files: at most {FILES_MAX}")
    headers: dict[str, safetensors.Header] = {}
    for name, path in files.items():
        if not FILE.fullmatch(name):
            raise InvalidError(
                f"cannot register a file called {name[:64]!a}: rename it, with letters, digits, "
                "'_', '-' and '.' alone"
            )
        if not path.is_file():
            raise InvalidError(f"cannot register {name}: {str(path)[:1000]} is no file")
        if name.endswith(".safetensors"):
            headers[name] = safetensors.check(path, name)
        elif Path(name).suffix.lower() in safetensors.PICKLE_NAMES:
            safetensors.refuse_pickle(path, name)
        elif (size := path.stat().st_size) > limits.MODEL_PART_BYTES_MAX:
            raise InvalidError(
                f"cannot register {name}: it has {show_size(size)}, and beside the weights a file "
                f"has at most {show_size(limits.MODEL_PART_BYTES_MAX)}; fetch it again, or take it "
                "out of the directory"
            )
    if "config.json" not in files:
        raise InvalidError("cannot register a model without a config.json")
    for name, path in files.items():
        if name.endswith(INDEX_SUFFIX):
            _check_index(name, read_object(path, name), headers)
    config = read_object(files["config.json"], "config.json")
    if not isinstance(config.get("model_type", ""), str):
        raise InvalidError("cannot read config.json: its model_type is no text")
    return config, sum(header.parameters for header in headers.values())


def has_chat_template(files: Mapping[str, Path]) -> bool:
    """Whether the tokenizer among these files has a template for conversations."""
    if "chat_template.jinja" in files:
        return True
    if "tokenizer_config.json" not in files:
        return False
    try:
        return bool(read_object(files["tokenizer_config.json"], "it").get("chat_template"))
    except InvalidError:
        return False  # who opens the tokenizer is told


def _check_index(
    name: str, index: dict[str, Any], headers: Mapping[str, safetensors.Header]
) -> None:
    """Every tensor of a sharded model must lie in the shard that the index names, among these."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise InvalidError(f"cannot read {name}: it has no weight_map of names to files")
    for tensor, file in places.items():
        if file not in headers:
            raise InvalidError(
                f"cannot register this model: {name} names the file {file[:64]!a}, which is not "
                "among its files; is the download complete?"
            )
        if tensor not in headers[file].shapes:
            raise InvalidError(f"cannot register this model: {file} lacks {tensor[:64]!a}")


def read_object(path: Path, name: str) -> dict[str, Any]:
    """A file with a JSON object that the manifest can hold."""
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise InvalidError(f"cannot read {name}: it is larger than {JSON_BYTES_MAX} bytes")
        found = json.loads(path.read_bytes().decode("utf-8"))
        # Python reads numbers of any size, lone surrogates and deep nesting, which others do not.
        msgspec.json.decode(msgspec.json.encode([[found]]))
    except RecursionError:
        raise InvalidError(f"cannot read {name}: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidError(
            f"cannot read {name}: it is no UTF-8, which JSON is written in; save it as that"
        ) from None
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"cannot read {name}: {str(error)[:300]}; fetch it again") from error
    except OSError as error:
        raise InvalidError(f"cannot read {name}: {error.strerror or error}") from error
    if not isinstance(found, dict):
        raise InvalidError(f"cannot read {name}: it is no object")
    return found


def _inside(path: Path, directory: Path) -> Path:
    """`path` without links, if it stays inside, or in the blobs of the hub's cache beside it."""
    try:
        real, root = path.resolve(strict=True), directory.resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidError(f"cannot import {path.name!a}: it is a link to nothing") from error
    cache = root.parent.parent / "blobs"  # .../models--X/snapshots/REVISION → .../models--X/blobs
    if real.is_relative_to(root) or (root.parent.name == "snapshots" and real.parent == cache):
        return real
    raise InvalidError(f"cannot import {path.name!a}: it is a link that leads out of the directory")
