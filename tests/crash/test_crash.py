"""kill -9 of anything at any moment: what was accepted is neither lost nor run twice."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.crash.machine import Machine
from tests.processes import until
from zenos.core.task import State

TASKS = 5
LABELS = (
    "loop.decided",
    "loop.committed",
    "loop.performed",
    "worker.start.begin",
    "worker.start.spec",
    "worker.start.forked",
)


def counts(label: str) -> list[int]:
    """Some of the times that a daemon passes a label in this test: first, last, and in between."""
    most = TASKS if label.startswith("worker") else 2 * TASKS
    source = random.Random(label)  # noqa: S311 - for a test's choice
    return sorted({1, 2, *source.sample(range(3, most), 1)})


@pytest.mark.parametrize("plan", [f"{name}=kill@{n}" for name in LABELS for n in counts(name)])
def test_the_daemon_is_killed_at(machine: Machine, plan: str) -> None:
    machine.start(plan)
    for number in range(TASKS):
        machine.submit(number)
    tasks = machine.finish()
    assert {name: task.state for name, task in tasks.items()} == {
        f"n{number}": State.SUCCEEDED for number in range(TASKS)
    }
    assert machine.lines() == dict.fromkeys(range(TASKS), 1)


@pytest.mark.parametrize(
    ("label", "state", "ran"),
    [
        # Nothing of the task had run: it is started again, and the second shim lives.
        ("shim.claim.before", State.SUCCEEDED, 1),
        ("shim.claim.after", State.SUCCEEDED, 1),
        ("shim.fork.after", State.SUCCEEDED, 1),
        # It may have run, and nobody knows how it ended.
        ("shim.started.after", State.LOST, 0),
        ("shim.exit.before", State.LOST, 1),
        # That it has ended was written.
        ("shim.exit.after", State.SUCCEEDED, 1),
    ],
)
def test_a_shim_is_killed_at(machine: Machine, label: str, state: State, ran: int) -> None:
    machine.start(f"{label}=kill")
    machine.submit(1)
    # The shims of this daemon all die there; those of the next one don't.
    path = machine.home.runs
    until(lambda: list(path.glob("*/1.json")))
    with_shim = list(path.glob("*/1/shim"))
    until(lambda: machine.tasks()["n1"].generation > 1 or machine.tasks()["n1"].is_ended)
    machine.kill()
    machine.start()
    task = machine.finish()["n1"]
    assert task.state is state, (task, with_shim)
    assert machine.lines()[1] == ran


@pytest.mark.parametrize("label", ["launcher.fork.before", "launcher.fork.after"])
def test_the_launcher_is_killed_as_it_forks(machine: Machine, label: str) -> None:
    machine.start(f"{label}=kill@2")
    # Each launcher dies at its second fork, and another takes its place.
    for number in range(4):
        machine.submit(number)
    tasks = machine.finish()
    assert {task.state for task in tasks.values()} == {State.SUCCEEDED}
    assert machine.lines() == dict.fromkeys(range(4), 1)
    assert "the launcher has died" in machine.home.daemon_log.read_text()


def test_live_workers_are_adopted(machine: Machine) -> None:
    machine.start()
    release = machine.ran.with_name("release")
    for number in range(3):
        machine.submit(number, f"while [ ! -e {release} ]; do sleep 0.01; done")
    until(lambda: len(machine.pids("started")) == 3 and len(machine.lines()) == 3)
    before = sorted(machine.pids("started"))
    for _ in range(2):
        machine.restart()
        assert sorted(machine.pids("started")) == before
    release.touch()
    assert all(task.state is State.SUCCEEDED for task in machine.finish().values())
    assert machine.lines() == dict.fromkeys(range(3), 1)
    assert all(task.generation == 1 for task in machine.tasks().values())


def test_what_ends_while_nobody_looks_has_ended(machine: Machine) -> None:
    machine.start()
    release = machine.ran.with_name("release")
    machine.submit(1, f"while [ ! -e {release} ]; do sleep 0.01; done; echo done; exit 7")
    until(lambda: machine.lines()[1])
    machine.kill()
    release.touch()
    until(lambda: list(machine.home.runs.glob("*/1/exit")))
    machine.start()
    task = machine.finish()["n1"]
    assert task.state is State.FAILED
    assert task.outcome is not None
    assert (task.outcome.exit_code, task.outcome.log_tail) == (7, "done\n")


def test_a_killed_worker_is_a_fault_with_its_signal_and_its_last_words(machine: Machine) -> None:
    machine.start()
    machine.submit(1, "echo last words; exec sleep 60")
    until(lambda: machine.lines()[1])
    (pid,) = machine.pids("started")
    os.kill(pid, signal.SIGKILL)
    task = machine.finish()["n1"]
    assert task.state is State.FAILED
    assert task.outcome is not None
    assert task.outcome.signal == signal.SIGKILL
    assert "last words" in task.outcome.log_tail


def test_a_killed_shim_takes_its_worker_with_it(machine: Machine) -> None:
    machine.start()
    machine.submit(1, "sleep 60 & sleep 60")
    until(lambda: machine.lines()[1])
    (worker,) = machine.pids("started")
    os.kill(machine.pids("shim")[0], signal.SIGKILL)
    assert machine.finish()["n1"].state is State.LOST
    until(lambda: not Path(f"/proc/{worker}").exists())


def test_retries_run_a_killed_worker_again(machine: Machine) -> None:
    machine.start()
    marker = machine.ran.with_name("first")
    machine.submit(1, f"[ -e {marker} ] || {{ touch {marker}; exec sleep 60; }}", retries=2)
    until(marker.exists)
    os.kill(machine.pids("started")[0], signal.SIGKILL)
    task = machine.finish()["n1"]
    assert (task.state, task.generation) == (State.SUCCEEDED, 2)
    assert machine.lines()[1] == 2


def storm(machine: Machine, tasks: int, kills: int, seed: int) -> None:
    """Kill whatever is there, again and again, while tasks are submitted and run."""
    source = random.Random(seed)  # noqa: S311 - seeded, to be repeated
    machine.start()
    pauses = [source.random() / 20 for _ in range(tasks)]

    def submit() -> None:
        for number, pause in enumerate(pauses):
            machine.submit(number, f"sleep {pause:.3f}", memory="16MiB")

    victims: list[str] = []
    submitting = threading.Thread(target=submit)
    submitting.start()
    for _ in range(kills):
        what = source.choice(["daemon", "daemon", "shim", "started"])
        if what == "daemon":
            machine.restart()
        else:
            pids = machine.pids(what)
            if pids:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(source.choice(pids), signal.SIGKILL)
        victims.append(what)
        ended = sum(task.is_ended for task in machine.tasks().values())
        # The next one falls when the system has got on a little, or has nothing left to do.
        wanted = min(ended + source.randrange(1, 6), tasks)
        until(
            lambda wanted=wanted: (  # type: ignore[misc]
                sum(task.is_ended for task in machine.tasks().values()) >= wanted
            )
        )
    submitting.join(120)
    assert not submitting.is_alive()
    ended_tasks = machine.finish()
    lines = machine.lines()
    assert set(ended_tasks) == {f"n{number}" for number in range(tasks)}, "a task was forgotten"
    assert not [number for number, count in lines.items() if count > 1], "a task ran twice"
    for number in range(tasks):
        task = ended_tasks[f"n{number}"]
        if task.state is State.SUCCEEDED:
            assert lines[number] == 1
        else:
            # Only a task whose own shim or worker was killed may end otherwise.
            assert task.state in (State.FAILED, State.LOST)
    failed = [task for task in ended_tasks.values() if task.state is not State.SUCCEEDED]
    assert len(failed) <= sum(victim != "daemon" for victim in victims)


def test_a_storm(machine: Machine) -> None:
    storm(machine, tasks=100, kills=20, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_long_storm(machine: Machine, seed: int) -> None:
    storm(machine, tasks=500, kills=100, seed=seed)
