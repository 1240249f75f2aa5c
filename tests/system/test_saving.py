"""What is told to stop saves or doesn't, in time or not, and who waits for it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.test_training import step, train
from tests.processes import until
from tests.system.harness import System
from zenos.core.task import State

PROGRAM = [sys.executable, "-c", "from zenos.cli.main import main; main()"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    for number in range(10):
        (path / f"{number}.txt").write_text(f"river {number} runs over old stones\n" * 60)
    return path


def saved(system: System, task: str) -> list[int]:
    """The steps of a training's checkpoints."""
    return [int(p.name[5:]) for p in system.home.checkpoint(task).glob("step-*")]


def down(system: System) -> str:
    """What `zenos down` says."""
    environment = {**os.environ, "ZENOS_HOME": str(system.home.root)}
    ran = subprocess.run(
        [*PROGRAM, "down"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert system.gone() == 0
    return ran.stderr


def long_training(system: System, text: Path, model: str) -> str:
    """One without a checkpoint of its own accord."""
    return train(system, text, model, steps=1_000_000, eval_every=10**9, checkpoint_every=10**9)


def test_who_is_cancelled_saves_nothing_and_who_is_suspended_is_saved_in_time_or_named(
    tmp_path: Path, text: Path
) -> None:
    system = System(tmp_path, "zygote=lazy")
    try:
        system.start()
        cancelled = long_training(system, text, "cancelled")
        until(lambda: step(system, cancelled) >= 3, 90)
        system.ask(lambda client: client.cancel(cancelled))
        ended = system.finish()["cancelled"]
        assert ended.state is State.CANCELLED
        assert ended.outcome is not None
        told = (ended.outcome.signal, ended.outcome.result)
        assert told == (None, {"suspended": True, "step": 0, "saved": False})
        assert saved(system, cancelled) == []

        task = long_training(system, text, "m")
        until(lambda: step(system, task) >= 3, 90)
        assert down(system).splitlines()[-1] == "zenos is down (suspend)"
        (first,) = saved(system, task)
        assert first >= 3
        assert "was not saved" not in system.log

        (system.home.root / "zenos.yaml").write_text("suspend_grace_s: 0")
        system.start()
        until(lambda: step(system, task) > first, 90)
        assert f"{task} was not saved in time (suspend_grace_s)" in down(system)
        assert f"{task} was not saved within 0 s (suspend_grace_s)" in system.log
        assert saved(system, task) == [first]
    finally:
        system.close()
