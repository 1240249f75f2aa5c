"""What is free on the disk of the home, and a word in the log when that is hardly anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from zenos.core import limits
from zenos.core.free import free_bytes
from zenos.core.resources import show_size

log = logging.getLogger(__name__)


async def keep_telling(
    root: Path,
    free: Callable[[Path], int | None] = free_bytes,
    look_s: float = limits.DISK_LOOK_S,
) -> None:
    """Look every `look_s` seconds; say once when the disk is nearly full, and when it isn't again.

    Until cancelled.
    """
    low = False
    while True:
        left = free(root)
        if left is not None and (left < limits.DISK_LOW_BYTES) != low:
            low = not low
            if low:
                log.warning(
                    "the disk of %s is nearly full: %s free; free some space, or models and "
                    "checkpoints cannot be stored",
                    root,
                    show_size(left),
                )
            else:
                log.info("the disk of %s has %s free again", root, show_size(left))
        await asyncio.sleep(look_s)
