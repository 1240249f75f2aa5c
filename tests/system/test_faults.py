"""What dies while a task runs is recorded for what it was, and tried again as the task says."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.processes import mentioning, until
from tests.system.harness import AT_REST, System, family
from zenos.core import shim
from zenos.core.task import Outcome, State, Task


def outcome(task: Task) -> Outcome:
    assert task.outcome is not None
    return task.outcome


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_program_that_fails_is_tried_again_as_often_as_it_says(system: System) -> None:
    system.start()
    system.submit(1, "echo in generation $ZENOS_GENERATION; exit 9", retries=1)
    system.submit(2, "exit 9")
    tasks = system.finish()
    first, second = outcome(tasks["n1"]), outcome(tasks["n2"])
    assert (tasks["n1"].state, tasks["n2"].state) == (State.FAILED, State.FAILED)
    assert (first.exit_code, first.signal, second.exit_code) == (9, None, 9)
    assert first.log_tail == "in generation 2\n"
    assert "exit code 9" in first.describe()
    assert (tasks["n1"].generation, tasks["n1"].attempts) == (2, 2)
    assert system.lines() == {1: 2, 2: 1}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_a_signal_ends_is_recorded_with_it(
    system: System, number: signal.Signals
) -> None:
    system.start()
    # What the worker has started itself ends with it, whatever it ignores.
    system.submit(1, "trap '' TERM; sleep 600 & trap - TERM; echo last words; exec sleep 600")
    until(lambda: "last words" in log(system, 1))
    (worker,) = system.runs(1)
    os.kill(worker, number)
    task = system.finish()["n1"]
    assert task.state is State.FAILED
    assert (outcome(task).signal, outcome(task).exit_code) == (number, None)
    assert f"signal {int(number)}" in outcome(task).describe()
    assert outcome(task).log_tail == "last words\n"
    until(lambda: len(family(system.home)) == AT_REST)


def log(system: System, number: int) -> str:
    """What a task has written so far, in any generation."""
    task = system.task(number)
    found = system.home.runs.glob(f"{task.id}/*/log")
    return "".join(path.read_text() for path in found)


def test_what_a_task_said_is_kept_when_its_shim_is_killed(system: System) -> None:
    system.start()
    system.submit(1, "echo last words; sleep 60")
    until(lambda: "last words" in log(system, 1))
    kill(system.pids("shim")[0])
    task = system.finish()["n1"]
    assert task.state is State.LOST
    assert outcome(task).describe() == "cannot say how it ended: its shim was killed"
    assert outcome(task).log_tail == "last words\n"
    until(lambda: len(family(system.home)) == AT_REST)


@pytest.mark.parametrize("victim", ["shim", "started"])
def test_retries_are_for_a_killed_shim_and_a_killed_worker(system: System, victim: str) -> None:
    system.start()
    system.submit(1, system.hold, retries=1)
    system.runs(1)
    kill(system.pids(victim)[0])
    until(lambda: system.lines()[1] == 2)
    # Once more than it may.
    kill(system.pids(victim)[0])
    task = system.finish()["n1"]
    assert task.state is (State.LOST if victim == "shim" else State.FAILED)
    assert (task.generation, task.attempts) == (2, 2)
    assert system.lines() == {1: 2}


@pytest.mark.parametrize(("retries", "state"), [(0, State.LOST), (2, State.SUCCEEDED)])
def test_when_everything_dies_at_once(system: System, retries: int, state: State) -> None:
    system.start()
    system.submit(1, system.hold, retries=retries)
    system.submit(2)
    until(lambda: system.task(2).is_ended)
    system.runs(1)
    shims = system.pids("shim")
    # As when the machine loses its power, but for the boot id: daemon, shim and worker.
    for pid in [*family(system.home), *shims]:
        if shim.start_time(pid):
            kill(pid)
    assert system.gone() == -signal.SIGKILL
    until(lambda: not family(system.home))
    system.start()
    system.released.touch()
    tasks = system.finish()
    assert tasks["n1"].state is state
    assert tasks["n2"].state is State.SUCCEEDED
    assert system.lines() == {1: 2 if retries else 1, 2: 1}


def test_a_run_does_not_notice_that_its_zygote_is_killed(tmp_path: Path) -> None:
    source = random.Random(0)  # noqa: S311 - a text, no secret
    text = tmp_path / "text.txt"
    words = ["a", "river", "ran", "over", "old", "stones"]
    text.write_text("\n".join(" ".join(source.choices(words, k=20)) for _ in range(400)))
    system = System(tmp_path, "zygote=eager")
    try:
        system.start()
        task = system.ask(
            lambda client: (
                client.train(
                    model="long",
                    arch="llama-nano",
                    settings={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
                    data={"paths": [str(text)]},
                    vocab_size=270,
                    sequence_length=16,
                    batch_size=2,
                    steps=1_000_000,
                    dtype="float32",
                    cpu=1,
                ).id
            )
        )

        def step() -> float:
            progress = system.ask(lambda client: client.look(task)).progress
            return progress.done if progress is not None and progress.stage == "training" else 0

        until(lambda: step() > 1, 90)
        workers = system.pids("started")
        zygotes = [
            pid
            for pid, command in mentioning(str(system.home.root)).items()
            if "zenos.runtime.zygote" in command
        ]
        # Shim and worker were forked from it: the zygote is the oldest of them.
        zygote = min(zygotes, key=shim.start_time)
        assert zygote not in {*workers, *system.pids("shim")}
        kill(zygote)
        until(lambda: "the zygote has died; starting another" in system.log)
        before = step()
        until(lambda: step() > before + 1)
        assert system.pids("started") == workers
        system.ask(lambda client: client.cancel(task))
        ended = system.finish()[task]
        assert (ended.state, ended.generation) == (State.CANCELLED, 1)
    finally:
        system.close()
