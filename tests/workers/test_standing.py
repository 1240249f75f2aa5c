"""daemon.json, kept while the home is ours."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from zenos.core.home import Home
from zenos.workers import standing


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.root.mkdir()
    made.lock.touch()
    return made


async def looks(home: Home, lock: int, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many looks, one after the other."""
    left = iter(range(count))

    async def sleep(_: float) -> None:
        if next(left, None) is None:
            raise asyncio.CancelledError

    monkeypatch.setattr(standing.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await standing.keep_daemon_file(home, lock, "127.0.0.1", 8642)


async def test_what_is_gone_is_written_anew_and_what_another_home_has_is_not(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = os.open(home.lock, os.O_RDONLY)
    try:
        await looks(home, lock, monkeypatch, 1)
        assert json.loads(home.daemon.read_bytes())["pid"] == os.getpid()
        # Somebody has made the home anew, and another daemon runs on it.
        home.lock.unlink()
        home.lock.touch()
        home.daemon.write_bytes(b"another's")
        await looks(home, lock, monkeypatch, 3)
        assert home.daemon.read_bytes() == b"another's"
        home.lock.unlink()
        await looks(home, lock, monkeypatch, 3)
        assert home.daemon.read_bytes() == b"another's"
    finally:
        os.close(lock)


async def test_that_it_cannot_be_written_is_said_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home.daemon.mkdir()
    lock = os.open(home.lock, os.O_RDONLY)
    try:
        with caplog.at_level(logging.ERROR):
            await looks(home, lock, monkeypatch, 5)
    finally:
        os.close(lock)
    assert len(caplog.records) == 1
    assert "cannot be written anew: " in caplog.records[0].getMessage()
