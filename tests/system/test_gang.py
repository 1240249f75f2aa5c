"""A training of several processes is one task: to kill, to suspend, to cancel, to refuse."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.crash.test_training import step, train, weights
from tests.processes import until
from tests.system.harness import System
from zenos.core.errors import UnfittableError
from zenos.core.processes import children
from zenos.core.task import State


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    for number in range(10):
        (path / f"{number}.txt").write_text(f"river {number} runs over old stones\n" * 60)
    return path


def ranks(system: System) -> list[int]:
    """The pids of the one training's processes, its worker first."""
    (worker,) = system.pids("started")
    return [worker, *children(worker)]


def threads(system: System, task: str) -> set[tuple[str, str]]:
    """Pool and name of each thread that runs."""
    processes = system.ask(lambda client: client.threads(task)).processes
    return {
        (pool.name, thread.name)
        for process in processes
        for pool in process.pools
        for thread in pool.threads
        if thread.runs
    }


def test_a_gang_is_one_task(tmp_path: Path, text: Path) -> None:
    system = System(tmp_path, "zygote=lazy")
    try:
        system.start()
        with pytest.raises(UnfittableError, match="cannot ever fit: wants 4000 CPUs"):
            train(system, text, "wide", workers=40, cpu=100, batch_size=40)

        whole = {"workers": 2, "eval_every": 100}
        train(system, text, "whole", **whole)
        assert system.finish()["whole"].state is State.SUCCEEDED

        # Of two that are the same, one meets everything that can happen.
        task = train(system, text, "m", **whole)
        until(lambda: step(system, task) >= 15, 90)
        os.kill(ranks(system)[1], signal.SIGKILL)
        until(lambda: system.tasks()["m"].generation == 2, 60)
        until(lambda: step(system, task) >= 25, 90)
        assert system.shut_down("suspend") == 0
        assert list(system.home.checkpoint(task).glob("step-*"))
        system.start()
        ended = system.finish()["m"]
        assert ended.state is State.SUCCEEDED, ended.outcome
        assert weights(system, "m") == weights(system, "whole")

        endless = train(system, text, "endless", workers=2, steps=10**6, checkpoint_every=10**9)
        until(lambda: step(system, endless) >= 2, 90)
        pids = ranks(system)
        assert len(pids) == 2
        # Each process tells of its own steps, and of the batches that it makes ahead.
        wanted = {("input", "batches"), *(("training", f"steps of rank {n}") for n in range(2))}
        until(lambda: threads(system, endless) == wanted, 60)
        assert len(system.ask(lambda client: client.threads(endless)).processes) == 2
        system.ask(lambda client: client.cancel(endless))
        assert system.finish()["endless"].state is State.CANCELLED
    finally:
        system.close()
