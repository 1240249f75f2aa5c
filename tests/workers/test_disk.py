"""A disk that is nearly full is told of in the daemon's log: once when it is, once when not."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

import pytest

from zenos.core import limits
from zenos.core.free import free_bytes
from zenos.workers import disk


async def test_a_nearly_full_disk_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    low, much = limits.DISK_LOW_BYTES - 1, limits.DISK_LOW_BYTES
    looks: list[int | None] = [much, low, None, low, much, much, low]

    def free(path: Path) -> int | None:
        assert path == tmp_path
        if not looks:
            raise asyncio.CancelledError
        return looks.pop(0)

    caplog.set_level(logging.INFO, disk.log.name)
    with suppress(asyncio.CancelledError):
        await disk.keep_telling(tmp_path, free, look_s=0)
    said = ["nearly full" in record.message for record in caplog.records]
    assert said == [True, False, True]


def test_what_is_free_is_told_of_a_disk_that_is_there(tmp_path: Path) -> None:
    assert (free_bytes(tmp_path) or 0) > 0
    assert free_bytes(tmp_path / "nowhere") is None
