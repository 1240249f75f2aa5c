"""Training yields to traffic and loses nothing: real workers on a machine with room for one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.crash.test_training import finished, step, train, weights
from tests.processes import until
from tests.system.harness import System
from zenos.client import Client, connect
from zenos.core.task import State, TaskEvent


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    for number in range(10):
        (path / f"{number}.txt").write_text(f"river {number} runs over old stones\n" * 60)
    return path


def answer(client: Client) -> str:
    return client.generate("whole", "river", max_tokens=4, temperature=0.0).text()


def test_requests_are_answered_while_a_training_holds_everything_and_it_ends_in_the_same_weights(
    tmp_path: Path, text: Path
) -> None:
    system = System(tmp_path, "cpus=1", "keep_alive_s=0.2", "residence_s=0")
    try:
        system.start()
        train(system, text, "whole")
        assert finished(system, "whole").generation == 1
        asked = system.ask(answer)

        task = train(system, text, "yields")
        for wanted in (5, 60):
            until(lambda wanted=wanted: step(system, task) >= wanted, 90)  # type: ignore[misc]
            assert system.ask(answer) == asked
        ended = finished(system, "yields")
        assert ended.generation == 3
        assert ended.attempts == 0
        assert weights(system, "yields") == weights(system, "whole")
        whole, yields = (curve(system, name) for name in ("whole", "yields"))
        assert yields == whole
        gave_way = [event for event in history(system, task) if "gives way to" in event.detail]
        assert len(gave_way) == 2
    finally:
        system.close()


def curve(system: System, model: str) -> object:
    return system.ask(lambda client: client.model(model)).curve


def history(system: System, task: str) -> list[TaskEvent]:
    """A task's events, up to its end."""
    found: list[TaskEvent] = []
    with connect(home=system.home.root) as client:
        for event in client.events(task, after=0, deadline=time.monotonic() + 60):
            if isinstance(event, TaskEvent):
                found.append(event)
                if event.state is State.SUCCEEDED:
                    break
    return found
