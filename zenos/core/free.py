"""What is free on a disk, and the words for one that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zenos.core import limits
from zenos.core.errors import StorageError
from zenos.core.resources import show_size


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write there; None where that can't be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    if not found.f_blocks:  # no disk, such as /proc
        return None
    return found.f_bavail * found.f_frsize


def full(path: Path) -> str:
    """That the disk on which `path` lies is full, and what to do; nothing where it isn't."""
    free = free_bytes(path)
    if free is None or free >= limits.DISK_FULL_BYTES:
        return ""
    return f"its disk is full ({show_size(free)} free); make room there"


def check_room(cannot: str, needed: int, path: Path, advice: str) -> None:
    """Raises StorageError where so many bytes don't fit onto the disk of `path`, before any does.

    Its cause is the error that writing would have met. cannot: "cannot …", without a colon.
    """
    free = free_bytes(path)
    if free is None or needed <= free:
        return
    lacking = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    raise StorageError(
        f"{cannot}: it takes {show_size(needed)}, and {show_size(free)} are free on the disk of "
        f"{path}; {advice}"
    ) from lacking
