"""Directories that are made once and found again by the content they were made from."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import durable
from zenos.core.errors import StorageError

_SEAL: Final = "seal.json"
_BLOCK_BYTES: Final = 4 * 1024 * 1024


def key(*parts: object) -> str:
    """A name (32 hex digits) for what is made from these parts."""
    text = "\0".join(f"{len(str(part))}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest(path: Path) -> str:
    """SHA-256 of a file (hex)."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def find(path: Path) -> Path | None:
    """The directory, if it is there and its files are what they were when it was made."""
    try:
        seal = msgspec.json.decode((path / _SEAL).read_bytes(), type=dict[str, str])
        whole = all(digest(path / name) == expected for name, expected in seal.items())
    except (OSError, msgspec.DecodeError):
        return None
    if whole:
        os.utime(path)  # least recently used ones may be removed first
    return path if whole else None


def directory(path: Path, build: Callable[[Path], None]) -> Path:
    """The directory at `path`, built by `build` unless it is there and undamaged.

    Two that build the same at once each do the work; the first one's is kept.
    Raises StorageError when it cannot be written.
    """
    if find(path) is not None:
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            shutil.rmtree(path)  # damaged
        try:
            with durable.new_directory(path) as fresh:
                build(fresh)
                seal = {file.name: digest(file) for file in sorted(fresh.iterdir())}
                durable.write_file(fresh / _SEAL, msgspec.json.encode(seal))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or find(path) is None:
                raise
    except OSError as error:
        raise StorageError(
            f"cannot write the cache {path}: {error.strerror or error}; free some space"
        ) from error
    return path
