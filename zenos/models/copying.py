"""Copies files and hashes them on the way, several at a time.

The lanes here are plain OS threads of the standard library, not those of `zenos.threads`: that
package unpickles what its processes send, and so the daemon, which imports models, must not have
it. Hashing and writing release Python's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from zenos.core import limits

T = TypeVar("T")
R = TypeVar("R")
# When a file was last written, as the registry has it: whoever writes into it later changes that.
SEALED_NS: Final = 946_684_800 * 10**9  # 2000-01-01
CHUNK_BYTES: Final = 4 * limits.MIB


def each(work: Callable[[T], R], items: Sequence[T], lanes: int) -> list[R]:
    """What the work gives for each item, in order, on so many lanes; raises what the first raises.

    Then those that wait are never begun, and those that run have ended when this returns.
    """
    if lanes == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(lanes, len(items)), "models") as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def copy(source: BinaryIO, target: BinaryIO, *, beside: bool) -> tuple[str, int]:
    """Copy all of a file; its SHA-256 (hex) and its size.

    beside: hash each block on a thread of its own while it is written and the next one is read.
    """
    hasher, size = hashlib.sha256(), 0
    if not beside:
        while data := source.read(CHUNK_BYTES):
            hasher.update(data)
            size += target.write(data)
        return hasher.hexdigest(), size
    with ThreadPoolExecutor(1, "hashing") as hashing:
        hashed: Future[None] | None = None
        while data := source.read(CHUNK_BYTES):
            if hashed is not None:
                hashed.result()  # two blocks are in memory, not more
            hashed = hashing.submit(hasher.update, data)
            size += target.write(data)
        if hashed is not None:
            hashed.result()
    return hasher.hexdigest(), size


def digest(path: Path) -> str:
    """SHA-256 of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Note in a file's own times that its content is what it was hashed as.

    Where that cannot be written down, it is hashed again the next time.
    """
    with contextlib.suppress(OSError):
        os.utime(path, ns=(SEALED_NS, SEALED_NS))


def is_unchanged(path: Path, size: int, sha256: str) -> bool:
    """Whether a file is what it was sealed as; OSError where it can't be read.

    It is hashed only if it was written to since, or comes from a backup that has not kept the
    times. Damage below the file system is not seen here.
    """
    found = path.stat()
    if found.st_size != size:
        return False
    if found.st_mtime_ns == SEALED_NS:
        return True
    if digest(path) != sha256:
        return False
    seal(path)
    return True
