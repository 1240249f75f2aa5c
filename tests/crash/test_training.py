"""A training run loses nothing, whatever is killed; and the zygote can be killed at any time."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash import labels
from tests.crash.machine import Machine
from tests.processes import mentioning, until
from zenos.core.task import State, Task

_TEXT = "a river ran over old stones under one green hill"
WORDS = _TEXT.split()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """With a zygote that is started at once."""
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    source = random.Random(0)  # noqa: S311 - a text, no secret
    path = tmp_path / "text"
    path.mkdir()
    for number in range(10):
        words = source.choices(WORDS, k=300)
        (path / f"{number}.txt").write_text(" ".join(words))
    return path


def train(machine: Machine, text: Path, model: str, **changes: Any) -> str:
    """A run of some seconds, with a checkpoint every few steps. Its id."""
    settings: dict[str, Any] = {
        "arch": "llama-nano",
        "settings": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        "data": {"paths": [str(text)]},
        "vocab_size": 300,
        "sequence_length": 64,
        "batch_size": 4,
        "steps": 240,
        "warmup": 5,
        "eval_every": 40,
        "checkpoint_every": 10,
        "dtype": "float32",
        "cpu": 1,
        **changes,
    }
    return machine.ask(
        lambda client: client.train(model=model, name=model, key=model, **settings).id
    )


def step(machine: Machine, task: str) -> int:
    """How far it is."""
    view = machine.ask(lambda client: client.look(task))
    progress = view.progress
    return int(progress.done) if progress is not None and progress.stage == "training" else 0


def weights(machine: Machine, model: str) -> str:
    """The digest of a version's weights."""
    version = machine.ask(lambda client: client.model(model))
    return version.files["model.safetensors"].digest


def finished(machine: Machine, name: str) -> Task:
    task = machine.finish()[name]
    assert task.state is State.SUCCEEDED, task.outcome
    return task


def test_a_run_that_is_killed_ends_in_the_same_weights(machine: Machine, text: Path) -> None:
    machine.start()
    train(machine, text, "whole")
    assert finished(machine, "whole").generation == 1

    # The worker is killed: it goes on from its last checkpoint.
    task = train(machine, text, "worker")
    until(lambda: step(machine, task) >= 25, 60)
    os.kill(machine.pids("started")[0], signal.SIGKILL)
    assert finished(machine, "worker").generation == 2
    assert weights(machine, "worker") == weights(machine, "whole")

    # The daemon and the zygote are killed: the run doesn't notice.
    task = train(machine, text, "daemon")
    until(lambda: step(machine, task) >= 5, 60)
    machine.restart()
    assert finished(machine, "daemon").generation == 1
    assert weights(machine, "daemon") == weights(machine, "whole")

    # The daemon is told to end: the run saves, and goes on under the next one.
    task = train(machine, text, "suspended")
    until(lambda: step(machine, task) >= 5, 60)
    assert machine.process is not None
    machine.process.send_signal(signal.SIGTERM)
    assert machine.process.wait(60) == 0
    machine.start()
    assert finished(machine, "suspended").generation == 2
    assert weights(machine, "suspended") == weights(machine, "whole")


@pytest.mark.parametrize("label", labels.ZYGOTE)
def test_the_zygote_is_killed_as_it_forks(machine: Machine, label: str) -> None:
    machine.start(f"{label}=kill")
    task = machine.ask(lambda client: client.create("made", arch="llama-nano", retries=3).id)
    # The zygotes of this daemon all die there; those of the next one don't.
    until(lambda: list(machine.home.runs.glob(f"{task}/*.json")), 60)
    until(lambda: "the zygote has died" in machine.home.daemon_log.read_text(), 60)
    machine.restart()
    until(lambda: machine.ask(lambda client: client.look(task)).task.is_ended, 60)
    assert machine.ask(lambda client: client.look(task)).task.state is State.SUCCEEDED
    versions = machine.ask(lambda client: client.models())
    assert [version.ref for version in versions] == ["made:1"]


def test_a_killed_zygote_comes_back(machine: Machine) -> None:
    machine.start()
    until(lambda: machine.ask(lambda client: client.status()).zygote_ready, 60)
    (zygote,) = [
        pid
        for pid, command in mentioning(str(machine.home.root)).items()
        if "zenos.runtime.zygote" in command
    ]
    os.kill(zygote, signal.SIGKILL)
    task = machine.ask(lambda client: client.create("made", arch="llama-nano").id)
    until(lambda: machine.ask(lambda client: client.look(task)).task.is_ended, 60)
    assert machine.ask(lambda client: client.look(task)).task.state is State.SUCCEEDED
