"""A real training is paused and suspended, the daemon killed meanwhile, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.machine import Machine
from tests.crash.test_training import finished, step, text, train, weights
from tests.processes import until
from zenos.core.task import State, Task

__all__ = ["text"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def look(machine: Machine, task: str) -> Task:
    return machine.ask(lambda client: client.look(task)).task


def test_a_training_pauses_over_a_kill_of_the_daemon_is_suspended_and_loses_nothing(
    machine: Machine, text: Path
) -> None:
    machine.start()
    train(machine, text, "whole", checkpoint_every=1000)
    assert finished(machine, "whole").generation == 1

    task = train(machine, text, "m", checkpoint_every=1000)
    until(lambda: step(machine, task) >= 5, 60)
    machine.ask(lambda client: client.pause(task))
    until(lambda: look(machine, task).state is State.PAUSED, 60)
    used = machine.ask(lambda client: client.nodes())[0].used
    assert (used.cpu, used.memory > 0) == (0, True)
    (pid,) = machine.pids("started")
    machine.restart()
    until(lambda: machine.pids("started") == [pid], 60)
    assert look(machine, task).state is State.PAUSED
    # A client's answer takes longer than a step: what computed would have come further.
    until(lambda: step(machine, task) >= 5, 60)
    at = step(machine, task)
    for _ in range(20):
        assert step(machine, task) == at
    machine.ask(lambda client: client.resume(task))
    until(lambda: step(machine, task) > at, 60)
    assert look(machine, task).generation == 1

    # Paused again, and saved out of that; it stays so over another kill.
    machine.ask(lambda client: client.pause(task))
    until(lambda: look(machine, task).state is State.PAUSED, 60)
    machine.ask(lambda client: client.suspend(task))
    until(lambda: look(machine, task).state is State.QUEUED, 60)
    machine.restart()
    now = look(machine, task)
    assert (now.state, now.held, now.attempts) == (State.QUEUED, "suspend", 0)
    saved = [p.name for p in machine.home.checkpoint(task).glob("step-*")]
    assert len(saved) == 1
    machine.ask(lambda client: client.resume(task))
    assert finished(machine, "m").generation == 2
    assert weights(machine, "m") == weights(machine, "whole")
