"""kill -9 of anything at any moment: what was accepted is neither lost nor run twice."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.crash import labels
from tests.crash.machine import Machine
from tests.processes import until
from zenos.client import build
from zenos.core.task import State

TASKS = 5


def counts(label: str) -> list[int]:
    """The first time that a daemon passes a label in this test, and a later one."""
    most = TASKS if label.startswith("worker") else 2 * TASKS
    source = random.Random(label)  # noqa: S311 - for a test's choice
    return [1, source.randrange(2, most)]


@pytest.mark.parametrize(
    "plan", [f"{name}=kill@{n}" for name in labels.DAEMON for n in counts(name)]
)
def test_the_daemon_is_killed_at(machine: Machine, plan: str) -> None:
    machine.start(plan)
    for number in range(TASKS):
        machine.submit(number)
    tasks = machine.finish()
    assert {name: task.state for name, task in tasks.items()} == {
        f"n{number}": State.SUCCEEDED for number in range(TASKS)
    }
    assert machine.lines() == dict.fromkeys(range(TASKS), 1)


# How a program ends whose shim dies there, and how often it has run.
ENDS = {
    # Nothing of the task had run: it is started again, and the second shim lives.
    "shim.claim.before": (State.SUCCEEDED, 1),
    "shim.claim.after": (State.SUCCEEDED, 1),
    "shim.fork.after": (State.SUCCEEDED, 1),
    # It may have run, and nobody knows how it ended.
    "shim.started.after": (State.LOST, 0),
    "shim.exit.before": (State.LOST, 1),
    # That it has ended was written.
    "shim.exit.after": (State.SUCCEEDED, 1),
}


@pytest.mark.parametrize("label", labels.SHIM)
def test_a_shim_is_killed_at(machine: Machine, label: str) -> None:
    state, ran = ENDS[label]
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


@pytest.mark.parametrize("label", labels.LAUNCHER)
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


VICTIMS = ("daemon", "daemon", "shim", "shim", "started", "launcher", "zygote")


def fell(machine: Machine, what: str, source: random.Random) -> None:
    """Kill one of these, if there is one."""
    if what == "daemon":
        machine.restart()
        return
    server = machine.server(what) if what in ("launcher", "zygote") else None
    pids = [server] if server is not None else []
    if what in ("shim", "started"):
        pids = machine.pids(what)
    if pids:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(source.choice(pids), signal.SIGKILL)


def storm(machine: Machine, tasks: int, kills: int, seed: int) -> None:
    """Kill whatever is there, again and again, while tasks are submitted and run.

    Some of them make models: these go on from whatever they had saved.
    """
    source = random.Random(seed)  # noqa: S311 - seeded, to be repeated
    machine.start()
    pauses = [source.random() / 20 for _ in range(tasks)]
    models = [f"m{number}" for number in range(0, tasks, 25)]

    def create(name: str) -> None:
        made = build.create(name=name, arch="llama-nano", settings={}, seed=0, tokenizer=None)
        spec = build.options({"name": name, "cpu": 0.1, "memory": "600MiB"}).task(made)
        machine.ask(lambda client: client.submit(spec, key=name).id)

    def submit() -> None:
        for number, pause in enumerate(pauses):
            if number % 25 == 0:
                create(f"m{number}")
            machine.submit(number, f"sleep {pause:.3f}", memory="16MiB")

    # Each falls at least once, whatever else the seed's numbers are used for.
    victims = [*VICTIMS, *source.choices(VICTIMS, k=kills - len(VICTIMS))]
    source.shuffle(victims)
    submitting = threading.Thread(target=submit)
    submitting.start()
    for victim in victims:
        fell(machine, victim, source)
        ended = machine.ended()
        # The next one falls when the system has got on a little, or has nothing left to do.
        wanted = min(ended + source.randrange(1, 6), tasks)
        until(lambda wanted=wanted: machine.ended() >= wanted, 60)  # type: ignore[misc]
    submitting.join(120)
    assert not submitting.is_alive()
    ended_tasks = machine.finish()
    lines = machine.lines()
    programs = {f"n{number}" for number in range(tasks)}
    assert programs <= set(ended_tasks), "a task was forgotten"
    assert not [number for number, count in lines.items() if count > 1], "a task ran twice"
    for number in range(tasks):
        task = ended_tasks[f"n{number}"]
        if task.state is State.SUCCEEDED:
            assert lines[number] == 1
        else:
            # Only a task whose own shim or worker was killed may end otherwise.
            assert task.state in (State.FAILED, State.LOST)
    failed = [name for name in programs if ended_tasks[name].state is not State.SUCCEEDED]
    assert len(failed) <= sum(victim in ("shim", "started") for victim in victims)
    made = sorted(version.name for version in machine.ask(lambda client: client.models()))
    assert set(made) == set(models), "a model was not made"


def test_a_storm(machine: Machine) -> None:
    storm(machine, tasks=100, kills=20, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_long_storm(machine: Machine, seed: int) -> None:
    storm(machine, tasks=500, kills=100, seed=seed)
