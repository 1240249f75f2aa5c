"""Waiting for space on a full disk, with what is to be written still in memory."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

LOOK_S: Final = 0.25  # between two looks at what is free
TRY_S: Final = 30.0  # to the next try, though no more is free: a quota's end shows in nothing else
_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT)
# safetensors writes through Rust, whose errors have no number but in their text.
_WORDS: Final = tuple(f"(os error {number})" for number in _ERRNOS)


def is_lacking(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that the disk takes no more."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return True
        if any(words in str(cause) for words in _WORDS):
            return True
        cause = cause.__cause__
    return False


def wait_for(
    work: Callable[[], T], disk: Path, waiting: Callable[[Exception], None], try_s: float = TRY_S
) -> T:
    """What `work` returns, done again for as long as the disk on which `disk` lies is full.

    It is tried again once more is free than before it, or after `try_s` seconds. Meanwhile
    `waiting` is called with the error, again and again: it may say so, and raises to leave. Other
    errors of `work` are raised.
    """
    while True:
        before = _free(disk)
        try:
            return work()
        except Exception as error:
            if not is_lacking(error):
                raise
            failure = error
        until = time.monotonic() + try_s
        while _free(disk) <= before and time.monotonic() < until:
            waiting(failure)
            time.sleep(LOOK_S)


def _free(path: Path) -> int:
    """Bytes that may still be written there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
