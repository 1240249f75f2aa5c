"""The one module for durable writes: beside, fsync, rename, fsync of the directory.

A reader sees the old file or the new one, whole, whatever dies in between.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zenos.core import failpoints

TEMPORARY_PREFIX: Final = ".tmp-"
# What is wrong with a path that somebody gave, rather than with the disk.
OF_THE_PATH: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    }
)


def temporary_beside(path: Path) -> Path:
    """A name beside `path`, unique to this process and call, that garbage collection knows."""
    return path.with_name(
        f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}-{path.name[:100]}"
    )


def remove_temporaries(directory: Path) -> None:
    """Remove the files that writers left there which were killed. Nobody may be writing there."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames and new names in the directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        failpoints.passing("durable.fsync")
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the content of a file that something else wrote durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        failpoints.passing("durable.fsync")
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Write `data` to `path`, replacing what is there, atomically and durably.

    sync: as of `new_directory`.
    """
    temporary = temporary_beside(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            failpoints.passing("durable.write")
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                failpoints.passing("durable.fsync")
                os.fsync(fd)
        finally:
            os.close(fd)
        failpoints.passing("durable.rename")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def sync_tree(path: Path) -> None:
    """Make a directory durable with all that was written below it. OSError."""
    _sync_below(path)
    sync_directory(path.parent)


def _sync_below(path: Path) -> None:
    for root, _, files in os.walk(path):
        for name in files:
            sync_file(Path(root, name))
        sync_directory(Path(root))


@contextmanager
def new_directory(path: Path, mode: int = 0o700, *, sync: bool = True) -> Iterator[Path]:
    """Fill a directory beside `path`, then put it in place at the end, atomically and durably.

    `path` must not exist. The files written inside are fsynced here. On an error nothing is left.
    sync: False leaves making it durable to `sync_tree`, later. Until then a crash of the machine
    may leave it in place with files that are not whole: whoever reads it has to see that.
    """
    temporary = temporary_beside(path)
    temporary.mkdir(mode=mode)
    try:
        yield temporary
        if sync:
            _sync_below(temporary)
        failpoints.passing("durable.rename")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if sync:
        sync_directory(path.parent)


def append(fd: int, data: bytes) -> None:
    """Write `data` at the end of an open file, all of it; `sync` makes it durable."""
    failpoints.passing("durable.write")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(fd: int) -> None:
    """Make durable what was written to an open file, and how long it is."""
    failpoints.passing("durable.fsync")
    os.fdatasync(fd)


def private(path: str, flags: int) -> int:
    """An opener for `open`: a file that is made is its owner's alone."""
    return os.open(path, flags, 0o600)
