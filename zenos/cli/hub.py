"""What `zenos pull` is given: a directory, or a model of the Hugging Face Hub that is fetched."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zenos.cli.output import say
from zenos.client.build import absolute
from zenos.core.errors import InvalidError, NotFoundError, UnavailableError

NAMED_MAX: Final = 20
# What a model consists of; weights in other formats are not even fetched.
PATTERNS: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "tokenizer*",
    "vocab*",
    "merges*",
)


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """The directory with the model; one that was fetched is there until the end of the block."""
    path = Path(source)
    with suppress(RuntimeError):  # nobody is called what stands behind ~
        path = path.expanduser()
    if path.is_dir():
        yield Path(absolute(path))
        return
    if path.exists():
        raise InvalidError(f"cannot import {source}: give the directory with config.json in it")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise NotFoundError(
            f"cannot find {source}: give a directory, or a model of the Hub as ORG/NAME"
        )
    with tempfile.TemporaryDirectory(prefix="zenos-pull-") as directory:
        _download(source, directory)
        yield Path(directory)


def size_of(directory: Path) -> int:
    """Bytes of the files in a directory, without those of directories in it."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    return 0


def _download(source: str, directory: str) -> None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise InvalidError(
            "cannot fetch from the Hub: 'pip install huggingface_hub' first"
        ) from None
    try:
        snapshot_download(source, local_dir=directory, allow_patterns=list(PATTERNS))
    except RepositoryNotFoundError:
        raise NotFoundError(
            f"cannot find {source} on the Hub, and there is no such directory here"
        ) from None
    except HFValidationError as error:
        raise InvalidError(f"cannot use {source!r} as a model of the Hub: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise UnavailableError(
            f"cannot fetch {source} from the Hub ({reason}): is there a network? "
            "A directory of that name is not here either"
        ) from None
    _say_unfetched(source)


def _say_unfetched(source: str) -> None:
    """Which of the model's files were not even fetched: pickles, program code, other formats."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(source, revision="main").siblings or []
    except Exception:  # noqa: BLE001 - the model is here, and that is what counts
        return
    names = [file.rfilename for file in found if not file.rfilename.startswith(".")]
    if left := sorted(n for n in names if not any(fnmatch.fnmatch(n, p) for p in PATTERNS)):
        more = f" and {len(left) - NAMED_MAX} more" if len(left) > NAMED_MAX else ""
        say(
            f"not fetched: {', '.join(left[:NAMED_MAX])}{more} (weights are taken as safetensors "
            "alone, with their configs and tokenizers)"
        )
