"""SIGINT, SIGTERM and SIGHUP to each process but the daemon: no task is lost by it.

Shims and fork servers ignore them: a service manager that ends a whole group sends them to all, and
only the daemon decides what becomes of tasks. A replica that is told to end finishes its answers.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos.client import Client, connect
from zenos.core import shim
from zenos.core.processes import stat_fields
from zenos.core.task import State, Task

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
WORDS = ["a", "river", "ran", "over", "old", "stones", "under", "one", "hill"]
LONG_S = 120


class World(System):
    """A program that goes on, a training that goes on, and a model that is served."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "zygote=eager")
        self.start()
        # Before it has imported a thing.
        self.boot = self.fork_server("zygote")
        for number in NUMBERS:
            os.kill(self.boot, number)
        self.text = root / "text.txt"
        source = random.Random(0)  # noqa: S311 - a text, no secret
        lines = (" ".join(source.choices(WORDS, k=20)) for _ in range(400))
        self.text.write_text("\n".join(lines))
        self.client: Client = connect(home=self.home.root)
        assert self.client.task(self.train("m", steps=2)).wait(LONG_S).state is State.SUCCEEDED
        self.client.serve("m", min_replicas=1, cpu=0.2, memory="700MiB", dtype="float32")
        self.submit(0, self.hold)
        self.training = self.train("long", steps=1_000_000)
        until(lambda: self.step() > 1 and self.lines()[0] and self.replica(), LONG_S)

    def train(self, model: str, steps: int) -> str:
        """A tiny run; its id."""
        return self.client.train(
            model=model,
            name=model,
            arch="llama-nano",
            settings={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
            data={"paths": [str(self.text)]},
            vocab_size=270,
            sequence_length=16,
            batch_size=2,
            steps=steps,
            checkpoint_every=1000,
            dtype="float32",
            cpu=0.2,
            memory="700MiB",
        ).id

    def step(self) -> float:
        """How far the training is."""
        progress = self.client.look(self.training).progress
        return progress.done if progress is not None and progress.stage == "training" else 0

    def replica(self) -> Task | None:
        """The replica that answers."""
        found = [view.task for view in self.client.tasks(kind="serve") if view.task.ready]
        return found[0] if found else None

    def fork_server(self, name: str) -> int:
        """One that must be there."""
        pid = self.server(name)
        assert pid is not None
        return pid

    def pid_of(self, which: str) -> int:
        """A process by what it is."""
        if which in ("launcher", "zygote"):
            return self.fork_server(which)
        names = {"program": "n0", "training": "long"}
        replica = self.replica()
        assert replica is not None
        task = self.tasks()[names[which]] if which in names else replica
        record = shim.read_record(str(self.home.run(task.id, task.generation)), "shim")
        assert record is not None
        return int(record["pid"])

    def close(self) -> None:
        self.client.close()
        self.released.touch()
        super().close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("signals"))
    yield made
    made.close()


def pending(pid: int) -> bool:
    """Whether a signal is on its way to a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(int(line.split()[1], 16) for line in lines if line[:7] in ("SigPnd:", "ShdPnd:"))


def lives(pid: int, since: int) -> bool:
    """Whether a process has got what was sent, and lives."""
    until(lambda: not pending(pid))
    return shim.start_time(pid) == since and stat_fields(pid)[0] not in "ZX"


def test_a_zygote_ignores_them_while_it_imports(world: World) -> None:
    assert world.fork_server("zygote") == world.boot
    assert "has died" not in world.log


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("which", ["launcher", "zygote", "program", "training", "replica"])
def test_a_fork_server_or_a_shim_ignores_it(
    world: World, which: str, number: signal.Signals
) -> None:
    pid = world.pid_of(which)
    since, workers = shim.start_time(pid), sorted(world.pids("started"))
    os.kill(pid, number)
    # What is being started meanwhile isn't started twice.
    if which == "launcher":
        ids = [world.client.submit(["true"], cpu=0.05, memory="16MiB").id for _ in range(3)]
        os.kill(pid, number)
        ended = [world.client.task(id_).wait(LONG_S) for id_ in ids]
        assert {(task.state, task.generation) for task in ended} == {(State.SUCCEEDED, 1)}
    if which == "zygote":
        made = world.client.create("made", arch="llama-nano", cpu=0.1, memory="700MiB")
        os.kill(pid, number)
        task = made.wait(LONG_S)
        assert (task.state, task.generation) == (State.SUCCEEDED, 1)
    assert lives(pid, since)
    assert sorted(world.pids("started")) == workers
    before = world.step()
    until(lambda: world.step() > before, LONG_S)
    assert world.tasks()["n0"].state is State.RUNNING
    assert world.tasks()["long"].generation == 1
    answer = world.client.generate("m", "a river", max_tokens=2)
    answer.text()
    assert answer.finish() in ("length", "stop")
    assert world.lines() == {0: 1}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_replica_finishes_its_answer_and_another_follows(
    world: World, number: signal.Signals
) -> None:
    replica = world.replica()
    assert replica is not None
    record = shim.read_record(str(world.home.run(replica.id, replica.generation)), "started")
    assert record is not None
    answer = world.client.generate("m", "a river", max_tokens=400, temperature=1.0)
    with answer:
        first = next(answer)
        os.kill(int(record["pid"]), number)
        text = first.text + "".join(chunk.text for chunk in answer)
    assert answer.finish() in ("stop", "length")
    assert text
    if number is signal.SIGHUP:
        assert lives(int(record["pid"]), int(record["start_time"]))
        assert world.client.task(replica.id).task.state is State.RUNNING
    else:
        task = world.client.task(replica.id).wait(LONG_S)
        assert (task.state, task.outcome and task.outcome.exit_code) == (State.SUCCEEDED, 0)
    # Whoever asks meanwhile waits for the next one.
    again = world.client.generate("m", "a river", max_tokens=2)
    again.text()
    assert again.finish() in ("length", "stop")
    until(lambda: world.replica(), LONG_S)


def test_what_ran_through_it_all_ends_as_if_nothing_had_been(world: World) -> None:
    world.released.touch()
    program = world.client.task(world.tasks()["n0"].id).wait(LONG_S)
    assert (program.state, program.generation) == (State.SUCCEEDED, 1)
    world.client.cancel(world.training)
    training = world.client.task(world.training).wait(LONG_S)
    assert (training.state, training.generation) == (State.CANCELLED, 1)
