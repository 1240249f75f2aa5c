"""Real processes, killed: whatever dies when, the run ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.models.registry import Registry
from zenos.runtime.train.checkpoint import Checkpoints

from .helpers import spec, write_corpus

STEPS = 30


class Child:
    """One generation of the task, in a process of its own."""

    def __init__(self, home: Path, generation: int, work: TrainSpec, failpoints: str = "") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ZENOS_FAILPOINTS": failpoints}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.runtime.train.child",
                str(home),
                str(generation),
                msgspec.json.encode(work).decode(),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        yield from self.process.stdout

    def end(self) -> tuple[int, str]:
        """The exit code and what it said on standard error."""
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def until(self, stage: str, done: int) -> None:
        """Read its progress up to there, or to its end."""
        for line in self.lines():
            said = line.split()
            if said[0] == stage and int(said[1]) >= done:
                return


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSpec, str]:
    """The specification, and the weights that an uninterrupted run ends in."""
    root = tmp_path_factory.mktemp("whole")
    work = spec(
        write_corpus(root / "corpus", files=6, words=500),
        steps=STEPS,
        checkpoint_every=3,
        dtype="bfloat16",
        eval_every=7,
    )
    code, said = Child(root / "home", 1, work).end()
    assert code == 0, said
    return work, weights(root / "home")


def weights(home: Path) -> str:
    versions = Registry(Home(home).models).list()
    assert len(versions) == 1
    return versions[0].files["model.safetensors"].digest


def finish(home: Path, work: TrainSpec) -> str:
    code, said = Child(home, 99, work).end()
    assert code == 0, said
    return weights(home)


def test_kill_at_random_steps(tmp_path: Path, whole: tuple[TrainSpec, str]) -> None:
    work, expected = whole
    seed = int.from_bytes(os.urandom(4), "big")
    source = np.random.default_rng(seed)
    step = 0
    for generation in (1, 2, 3):
        step += int(source.integers(2, 9))
        child = Child(tmp_path, generation, work)
        child.until("training", step)
        child.process.kill()
        assert child.end()[0] == -signal.SIGKILL
    assert finish(tmp_path, work) == expected, f"seed {seed}"


# Write passes in order: three for the caches and the plan, then four for each checkpoint.
@pytest.mark.parametrize(
    "failpoint",
    [
        "durable.write=kill@3",
        "durable.write=kill@9",
        "durable.fsync=kill@24",
        "durable.rename=kill@9",
    ],
)
def test_kill_in_the_middle_of_saving(
    tmp_path: Path, whole: tuple[TrainSpec, str], failpoint: str
) -> None:
    work, expected = whole
    child = Child(tmp_path, 1, work, failpoint)
    code, said = child.end()
    assert code == -signal.SIGKILL, said
    assert finish(tmp_path, work) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_suspends(
    tmp_path: Path, whole: tuple[TrainSpec, str], number: signal.Signals
) -> None:
    work, expected = whole
    child = Child(tmp_path, 1, work)
    child.until("training", 5)
    child.process.send_signal(signal.SIGHUP)
    child.process.send_signal(number)
    code, said = child.end()
    assert code == 75, said
    result = msgspec.json.decode((Home(tmp_path).run("t1", 1) / "result.json").read_bytes())
    checkpoint, _ = Checkpoints(Home(tmp_path).checkpoint("t1")).latest()
    assert checkpoint is not None
    assert result == {"suspended": True, "step": checkpoint.state.step}
    assert finish(tmp_path, work) == expected


def test_kill_between_publishing_and_the_exit(tmp_path: Path, whole: tuple[TrainSpec, str]) -> None:
    work, expected = whole
    child = Child(tmp_path, 1, work)
    code, _ = child.end()
    assert code == 0
    (Home(tmp_path).run("t1", 1) / "result.json").unlink()
    assert finish(tmp_path, work) == expected


@pytest.mark.soak
def test_a_storm_of_kills(tmp_path: Path, whole: tuple[TrainSpec, str]) -> None:
    """200 kills at random steps and in random writes, over as many runs as that takes."""
    work, expected = whole
    seed = int.from_bytes(os.urandom(4), "big")
    source = np.random.default_rng(seed)
    kills = runs = 0
    while kills < 200:
        home = tmp_path / str(runs)
        runs += 1
        generation = 0
        ended = False
        while not ended and generation < 12:
            generation += 1
            point = ""
            if source.random() < 0.5:
                label = ("durable.write", "durable.fsync", "durable.rename")[source.integers(3)]
                point = f"{label}=kill@{source.integers(1, 30)}"
            child = Child(home, generation, work, point)
            if not point:
                child.until("training", int(source.integers(1, STEPS + 1)))
                child.process.kill()
            code, said = child.end()
            assert code in (0, -signal.SIGKILL), (seed, said)
            kills += code != 0
            ended = code == 0
        assert finish(home, work) == expected, (seed, runs)
