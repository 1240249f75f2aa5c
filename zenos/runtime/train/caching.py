"""Directories that are made once and found again by the content they were made from.

The least recently used ones are removed when there is too much of them. Whoever uses one holds a
shared lock on its seal for as long as its process lives, so that it isn't taken from under it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import durable, limits
from zenos.core.errors import StorageError

log = logging.getLogger(__name__)

SEALED: Final = ("packs", "shards", "tokenizers")
COMPILED: Final = "inductor"
_SEAL: Final = "seal.json"
_BLOCK_BYTES: Final = 4 * 1024 * 1024
# What putting it in place and holding it fail with when others are at it.
_OTHERS: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EAGAIN)
_TRIES: Final = 3
_held: dict[Path, int] = {}  # locked seals, until this process ends


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
    """The directory, if it is there and its files are what they were when it was made.

    It stays there as long as this process lives, and counts as used now.
    """
    try:
        _hold(path)
        whole = _is_whole(path)
    except OSError:
        whole = False
    if whole:
        os.utime(path)
        return path
    _let_go(path)
    return None


def directory(path: Path, build: Callable[[Path], None]) -> Path:
    """The directory at `path`, built by `build` unless it is there and undamaged.

    Two that build the same at once each do the work; the first one's is kept. What is removed again
    before it is held (see `make_room`) is built again.
    Raises StorageError when it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_TRIES):
            if find(path) is not None:
                return path
            _remove_damaged(path)
            if _build(path, build):
                return path
    except OSError as error:
        raise StorageError(
            f"cannot write the cache {path}: {error.strerror or error}; free some space"
        ) from error
    if find(path) is None:
        raise StorageError(
            f"cannot keep the cache {path}: others remove or damage it as often as it is made; "
            "raise cache_bytes_max, or look at the disk"
        )
    return path


def _build(path: Path, build: Callable[[Path], None]) -> bool:
    """Build it, and hold it from then on; False if another was first, or has removed it."""
    filled = False
    try:
        with durable.new_directory(path) as fresh:
            build(fresh)
            seal = {file.name: digest(file) for file in sorted(fresh.iterdir())}
            durable.write_file(fresh / _SEAL, msgspec.json.encode(seal))
            filled = True
        _hold(path)
    except OSError as error:
        if not filled or error.errno not in _OTHERS:
            raise
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Whether its files are what they were when it was made."""
    try:
        seal = msgspec.json.decode((path / _SEAL).read_bytes(), type=dict[str, str])
        return all(digest(path / name) == expected for name, expected in seal.items())
    except (OSError, msgspec.DecodeError):
        return False


def _remove_damaged(path: Path) -> None:
    """Remove it, if it still is damaged: another one may have put a whole one there meanwhile.

    Nothing else goes away there at the same time, and a whole one can't come while this one is in
    its place; so what is removed is what was looked at.
    """
    with _removing(path.parent):
        if path.exists() and not _is_whole(path):
            _remove(path)


def _remove(path: Path) -> None:
    """In one step for everybody else. OSError when it can't be."""
    gone = durable.temporary_beside(path)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _removing(place: Path) -> Iterator[None]:
    """While no other process, or OS thread, removes something there."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def files(path: Path, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The files of the directory at `path`, by name; made and kept there unless it is there whole.

    For small ones: they are given out as bytes, so the directory isn't held. May be called from
    several OS threads. Raises StorageError when it cannot be written.
    """
    found = _read(path)
    if found is not None:
        return found
    made = make()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_damaged(path)
        with durable.new_directory(path) as fresh:
            for name, content in made.items():
                (fresh / name).write_bytes(content)
            durable.write_file(fresh / _SEAL, msgspec.json.encode(_seal_of(made)))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another was first
            raise StorageError(
                f"cannot write the cache {path}: {error.strerror or error}; free some space"
            ) from error
    return made


def _read(path: Path) -> dict[str, bytes] | None:
    try:
        seal = msgspec.json.decode((path / _SEAL).read_bytes(), type=dict[str, str])
        found = {name: (path / name).read_bytes() for name in seal}
        os.utime(path)
    except (OSError, msgspec.DecodeError):
        return None
    return found if _seal_of(found) == seal else None


def _seal_of(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def make_room(cache: Path, bytes_max: int, named: Collection[str]) -> int:
    """Remove what was used the longest ago until at most `bytes_max` bytes are left; the bytes.

    1. What writers have left that were killed goes first, whatever the size.
    2. Never what a process uses, nor what `named` names (a run that waits goes on from it), nor
       compiled code younger than CACHE_FRESH_S seconds.
    """
    for place in SEALED:
        _remove_leftovers(cache / place)  # 1
    entries = [
        (entry, size, used)
        for place in (*SEALED, COMPILED)
        for entry in _directories(cache / place)
        for size, used in [_size_and_use(entry)]
    ]
    total, removed = sum(size for _, size, _ in entries), 0
    for entry, size, used in sorted(entries, key=lambda item: item[2]):
        if total - removed <= bytes_max:
            break
        compiled = entry.parent.name == COMPILED
        if entry.name in named or (compiled and time.time() - used < limits.CACHE_FRESH_S):  # 2
            continue
        with suppress(OSError), _removing(entry.parent), _alone(entry, sealed=not compiled):
            _remove(entry)
            removed += size
            log.info("removed %s from the cache: %d bytes", entry, size)
    return removed


def _hold(path: Path) -> None:
    """Lock a seal that is there; OSError when it is not, or is being removed."""
    if path in _held:
        return
    fd = os.open(path / _SEAL, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), (path / _SEAL).stat()):
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(path))
    except OSError:
        os.close(fd)
        raise
    _held[path] = fd


def _let_go(path: Path) -> None:
    fd = _held.pop(path, None)
    if fd is not None:
        os.close(fd)


@contextmanager
def _alone(path: Path, *, sealed: bool) -> Iterator[None]:
    """While nobody uses it; OSError when somebody does. What has no seal is damaged."""
    try:
        fd = os.open(path / _SEAL, os.O_RDONLY | os.O_CLOEXEC) if sealed else None
    except FileNotFoundError:
        fd = None
    try:
        if fd is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _directories(place: Path) -> list[Path]:
    with suppress(OSError):
        return [
            path
            for path in place.iterdir()
            if path.is_dir() and not path.name.startswith(durable.TEMPORARY_PREFIX)
        ]
    return []


def _size_and_use(path: Path) -> tuple[int, float]:
    """Bytes on the disk, and when it was used last: compiled code says only when it was made."""
    size, used = 0, 0.0
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(OSError):
                found = Path(folder, file).stat()
                size += found.st_blocks * 512
                used = max(used, found.st_mtime)
    with suppress(OSError):
        used = used if path.parent.name == COMPILED else path.stat().st_mtime
    return size, used


def _remove_leftovers(place: Path) -> None:
    """Directories that a process was filling which is gone (see durable.temporary_beside)."""
    with suppress(OSError):
        for path in place.glob(f"{durable.TEMPORARY_PREFIX}*"):
            pid = path.name.removeprefix(durable.TEMPORARY_PREFIX).partition("-")[0]
            if not Path("/proc", pid).exists():
                shutil.rmtree(path, ignore_errors=True)
