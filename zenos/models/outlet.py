"""What leaves the registry: a version as a directory that transformers opens."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from zenos.core import durable
from zenos.core.errors import ConflictError, InvalidError, StorageError
from zenos.core.free import check_room
from zenos.models.records import ModelVersion


def is_there(version: ModelVersion, target: Path) -> bool:
    """Whether the version lies at `target` already, whole and with nothing beside it.

    So an export that is asked for again, its first answer lost, has succeeded. Raises ConflictError
    for anything else that is there, InvalidError where nothing can be written.
    """
    try:
        there = target.lstat()
    except FileNotFoundError:
        if target.parent.is_dir():
            return False
        raise InvalidError(f"cannot export to {target}: {target.parent} is no directory") from None
    except (OSError, ValueError) as error:
        shown = ascii(str(target)[:1000])
        raise InvalidError(f"cannot export to {shown}: {error.args[-1]}") from error
    try:
        same = stat.S_ISDIR(there.st_mode) and _holds(target, version)
    except OSError:
        same = False
    if not same:
        raise ConflictError(
            f"cannot export to {target}: it exists already, and is not this version as it was "
            "exported; give a directory that does not exist, or remove that one first"
        )
    return True


def write(version: ModelVersion, blobs: Mapping[str, Path], target: Path) -> None:
    """Copy the version's files (by name) to `target`, whole or not at all.

    Raises InvalidError where the daemon may not write there, StorageError when the disk fails.
    """
    check_room(
        f"cannot export to {target}", version.bytes, target.parent, "make room, or export elsewhere"
    )
    try:
        with durable.new_directory(target, mode=0o755) as directory:
            for name, blob in blobs.items():
                shutil.copyfile(blob, directory / name)
    except OSError as error:
        # The same request again, while the first is under way: one of them was faster.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_there(version, target):
            return
        reason = f"cannot export to {target}: {error.strerror or error}"
        if error.errno in durable.OF_THE_PATH and error.filename not in map(str, blobs.values()):
            raise InvalidError(
                f"{reason}; give a directory into which the daemon's user may write"
            ) from error
        raise StorageError(reason) from error


def _holds(directory: Path, version: ModelVersion) -> bool:
    """Whether a directory has exactly the version's files, all of them plain ones."""
    if {entry.name for entry in directory.iterdir()} != set(version.files):
        return False
    return all(
        _is(directory / name, file.size, file.digest) for name, file in version.files.items()
    )


def _is(path: Path, size: int, digest: str) -> bool:
    """Whether a plain file has that content. A pipe or a link could be anything, or block."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == digest
