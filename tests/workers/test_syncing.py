"""Checkpoints that trainings have left are synced: a little later, or as the daemon ends."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.processes import until
from zenos.core import durable, failpoints
from zenos.core.home import Home
from zenos.workers.syncing import LateSyncs

SYNC_TREE = durable.sync_tree


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One in which the training t1 has left two checkpoints, and what is none."""
    made = Home(tmp_path)
    for name in ("step-000000009", "step-000000010", "damaged-step-000000011"):
        (made.checkpoint("t1") / name).mkdir(parents=True)
        (made.checkpoint("t1") / name / "manifest.json").write_text("{}")
    return made


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was synced."""
    found: list[str] = []

    def sync(path: Path) -> None:
        SYNC_TREE(path)
        found.append(path.name)

    monkeypatch.setattr(durable, "sync_tree", sync)
    return found


async def test_what_was_left_is_synced_once_when_the_daemon_ends(
    home: Home, synced: list[str]
) -> None:
    syncs = LateSyncs(home, later_s=3600)
    for _ in range(2):
        syncs.saved("t1")
    await asyncio.sleep(0)
    assert synced == []
    await syncs.close()
    assert synced == ["step-000000010"]


async def test_it_is_synced_by_itself(home: Home, synced: list[str]) -> None:
    syncs = LateSyncs(home, later_s=0)
    syncs.saved("t1")
    await asyncio.to_thread(until, lambda: bool(synced))
    await syncs.close()
    assert synced == ["step-000000010"]


async def test_programs_and_what_cannot_be_synced_are_no_trouble(
    home: Home, synced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    syncs = LateSyncs(home, later_s=3600)
    syncs.saved("t2")  # a program: it keeps elsewhere what it has saved
    failpoints.arm("durable.fsync=raise@1")
    syncs.saved("t1")
    await syncs.close()
    failpoints.arm("")
    assert "cannot sync" in caplog.text
    syncs = LateSyncs(home, later_s=3600)
    syncs.saved("t1")
    shutil.rmtree(home.checkpoint("t1"))
    await syncs.close()
    assert synced == []
