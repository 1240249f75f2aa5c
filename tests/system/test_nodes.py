"""The machine is drained while real programs run on it, and its daemon is killed meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import until
from tests.system.harness import System
from tests.system.test_yielding import SAVES, submit
from zenos.core.task import State


def test_a_drained_machine_keeps_what_was_saved_for_later_and_starts_nothing(
    system: System, tmp_path: Path
) -> None:
    system.start()
    argv = [sys.executable, "-c", SAVES, str(tmp_path / "saved"), "helper", str(system.released)]
    saves = submit(system, argv, name="n1", yields="helper")
    system.submit(2, system.hold)
    until(lambda: system.task(1).state is State.RUNNING and system.lines()[2] == 1)
    until(lambda: "begins at 0" in log(system, saves))
    system.ask(lambda client: client.drain("local"))
    # What can save is saved and waits; what can't runs on.
    until(lambda: system.task(1).state is State.QUEUED)
    system.submit(3)
    assert system.task(2).state is State.RUNNING
    system.restart()
    assert system.ask(lambda client: client.nodes()[0].node.standing) == "drained"
    assert [system.task(n).state for n in (1, 3)] == [State.QUEUED] * 2
    assert system.ask(lambda client: client.why(saves)).reason == (
        "it waits until a node takes it: node local is drained"
    )
    system.released.touch()
    until(lambda: system.task(2).state is State.SUCCEEDED)
    assert [system.task(n).generation for n in (1, 3)] == [1, 0]
    system.ask(lambda client: client.uncordon("local"))
    ended = system.finish()
    assert {task.state for task in ended.values()} == {State.SUCCEEDED}
    assert ended["n1"].generation == 2
    saved = int((tmp_path / "saved").read_text())
    assert f"begins at {saved}" in log(system, saves)
    assert system.lines()[3] == 1


def log(system: System, task: str) -> str:
    """What a program has written in its newest generation."""
    known = next(one for one in system.tasks().values() if one.id == task)
    path = system.home.run(task, known.generation) / "log"
    return path.read_text() if path.exists() else ""


def test_a_machine_that_is_renamed_is_one_node_with_what_runs_on_it(system: System) -> None:
    system.home.config.write_text("node: before")
    system.start()
    system.submit(1, system.hold, cpu=0.5)
    system.runs(1)
    assert system.shut_down("leave") == 0
    system.home.config.write_text("node: after")
    system.start()
    (shown,) = system.ask(lambda client: client.nodes())
    assert (shown.node.name, shown.used.cpu) == ("after", 500)
    allocation = system.task(1).allocation
    assert allocation is not None
    assert allocation.node == "after"
    system.released.touch()
    assert system.finish()["n1"].state is State.SUCCEEDED
    assert system.lines() == {1: 1}
