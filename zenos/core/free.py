"""What is free on a disk, and the words for one that is full."""

from __future__ import annotations

import os
from pathlib import Path

from zenos.core import limits
from zenos.core.resources import show_size


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write there; None where that can't be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def full(path: Path) -> str:
    """That the disk on which `path` lies is full, and what to do; nothing where it isn't."""
    free = free_bytes(path)
    if free is None or free >= limits.DISK_FULL_BYTES:
        return ""
    return f"its disk is full ({show_size(free)} free); make room there"
