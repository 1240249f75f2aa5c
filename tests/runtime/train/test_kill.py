"""Real processes, killed: whatever dies when, the run ends in the same bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from zenos.core import durable
from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.models.registry import Registry
from zenos.runtime.train.checkpoint import Checkpoints

from .helpers import spec, write_corpus
from .nursery import Nursery

STEPS = 30


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> tuple[TrainSpec, str]:
    """The specification, and the weights that an uninterrupted run ends in."""
    root = tmp_path_factory.mktemp("whole")
    work = spec(
        write_corpus(root / "corpus", files=6, words=500),
        steps=STEPS,
        checkpoint_every=3,
        dtype="bfloat16",
        eval_every=7,
    )
    return work, finish(nursery, root / "home", work)


def weights(home: Path) -> str:
    versions = Registry(Home(home).models).list()
    assert len(versions) == 1
    return versions[0].files["model.safetensors"].digest


def finish(nursery: Nursery, home: Path, work: TrainSpec) -> str:
    code, said = nursery.start(home, 99, work).end()
    assert code == 0, said
    return weights(home)


def test_kill_at_random_steps(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str]
) -> None:
    work, expected = whole
    seed = int.from_bytes(os.urandom(4), "big")
    source = np.random.default_rng(seed)
    step = 0
    for generation in (1, 2, 3):
        step += int(source.integers(2, 9))
        child = nursery.start(tmp_path, generation, work)
        child.until("training", step)
        child.send(signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
    assert finish(nursery, tmp_path, work) == expected, f"seed {seed}"


# Counted from the first step on: each save writes its parts and the manifest.
@pytest.mark.parametrize(
    "failpoint",
    [
        "durable.write=kill@1",
        "durable.write=kill@6",
        "durable.fsync=kill@2",
        "durable.rename=kill@2",
    ],
)
def test_kill_in_the_middle_of_saving(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str], failpoint: str
) -> None:
    work, expected = whole
    child = nursery.start(tmp_path, 1, work, failpoint, armed="training")
    code, said = child.end()
    assert code == -signal.SIGKILL, said
    half = Home(tmp_path).checkpoint("t1").glob(f"{durable.TEMPORARY_PREFIX}*")
    assert list(half), "it fell elsewhere"
    assert finish(nursery, tmp_path, work) == expected


# Of the tokenizer, the shards and the pack, in this order; then comes the plan.
@pytest.mark.parametrize(
    "failpoint", ["durable.write=kill@3", "durable.fsync=kill@20", "durable.rename=kill@7"]
)
def test_kill_in_the_middle_of_preparing(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str], failpoint: str
) -> None:
    work, expected = whole
    code, said = nursery.start(tmp_path, 1, work, failpoint).end()
    assert code == -signal.SIGKILL, said
    assert not Home(tmp_path).checkpoint("t1").exists(), "it fell elsewhere"
    assert list(Home(tmp_path).cache.glob(f"*/{durable.TEMPORARY_PREFIX}*")), "it fell elsewhere"
    assert finish(nursery, tmp_path, work) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_suspends(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str], number: signal.Signals
) -> None:
    work, expected = whole
    child = nursery.start(tmp_path, 1, work)
    child.until("training", 5)
    child.send(signal.SIGHUP)
    child.send(number)
    code, said = child.end()
    assert code == 75, said
    result = msgspec.json.decode((Home(tmp_path).run("t1", 1) / "result.json").read_bytes())
    checkpoint, _ = Checkpoints(Home(tmp_path).checkpoint("t1")).latest()
    assert checkpoint is not None
    assert result == {"suspended": True, "step": checkpoint.state.step, "saved": True}
    assert finish(nursery, tmp_path, work) == expected


def test_kill_between_publishing_and_the_exit(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str]
) -> None:
    work, expected = whole
    child = nursery.start(tmp_path, 1, work)
    code, _ = child.end()
    assert code == 0
    (Home(tmp_path).run("t1", 1) / "result.json").unlink()
    assert finish(nursery, tmp_path, work) == expected


@pytest.mark.soak
def test_a_storm_of_kills(nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str]) -> None:
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
            child = nursery.start(home, generation, work, point)
            if not point:
                child.until("training", int(source.integers(1, STEPS + 1)))
                child.send(signal.SIGKILL)
            code, said = child.end()
            assert code in (0, -signal.SIGKILL), (seed, said)
            kills += code != 0
            ended = code == 0
        assert finish(nursery, home, work) == expected, (seed, runs)
