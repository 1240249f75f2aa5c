"""What the C library's allocator does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_TRIM_SETTING: Final = ("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold")
_MMAP_SETTING: Final = ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold")
_NEVER: Final = -1
# Larger ones are mapped one by one. Older libraries take no more than the second.
_MAPPED_BYTES: Final = (2**30, 2**25)


def keep_freed() -> None:
    """Keep what is freed for what is allocated next, however much it is.

    A training step frees all that it has allocated, and the next allocates the same. As it is by
    default, the library gives most of that back to the system meanwhile, and gets it again page by
    page, each of which is filled with zeros: a tenth of a short step. Does nothing where the
    library is not glibc, nor to a threshold that the environment sets (mallopt(3)).

    It holds until the process ends, since glibc has no way back to thresholds that it finds itself:
    `give_back` empties what is free then, and what is freed later is kept again.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version")):
        return
    if not _is_set(*_TRIM_SETTING):
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
    if not _is_set(*_MMAP_SETTING):
        any(library.mallopt(_MMAP_THRESHOLD, size) for size in _MAPPED_BYTES)


def give_back() -> None:
    """Give the system what is free at the moment."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _is_set(variable: str, tunable: str) -> bool:
    """In the environment that the library has read as the process began."""
    return variable in os.environ or f"{tunable}=" in os.environ.get("GLIBC_TUNABLES", "")
