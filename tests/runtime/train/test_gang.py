"""Several processes that train one model: the same training, whatever becomes of one of them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.processes import until
from zenos.core.home import Home
from zenos.core.processes import children, start_time
from zenos.core.specs import TrainSpec
from zenos.models.records import ModelVersion
from zenos.models.registry import Registry

from .helpers import spec, write_corpus
from .nursery import Child, Nursery

STEPS = 20
# Sums of float32 gradients in another order; what that makes of a loss after some steps.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus", files=6, words=500)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, nursery: Nursery, text: Path
) -> tuple[TrainSpec, str]:
    """A gang of two, and the weights that it ends in when nobody interrupts it."""
    work = spec(text, workers=2, steps=STEPS, checkpoint_every=3, eval_every=7)
    return work, weights(train(nursery, tmp_path_factory.mktemp("whole"), work))


def train(nursery: Nursery, home: Path, work: TrainSpec, generation: int = 99) -> ModelVersion:
    code, said = nursery.start(home, generation, work).end()
    assert code == 0, said
    (version,) = Registry(Home(home).models).list()
    return version


def weights(version: ModelVersion) -> str:
    return version.files["model.safetensors"].digest


def losses(version: ModelVersion) -> list[float]:
    return [loss for _, *both in version.curve for loss in both if loss is not None]


def others(child: Child, count: int = 1) -> list[int]:
    """The pids of the ranks after the first, in their order."""
    until(lambda: len(children(child.pid)) >= count)
    return sorted(children(child.pid), key=lambda pid: (start_time(pid), pid))


def gone(pids: list[int]) -> bool:
    return not any(start_time(pid) for pid in pids)


def error(home: Path, generation: int) -> dict[str, str]:
    path = Home(home).run("t1", generation) / "error.json"
    found: dict[str, str] = msgspec.json.decode(path.read_bytes())
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"workers": 3, "accumulate": 2},
        {"workers": 2, "backend": "gloo"},
        {"workers": 2, "objective": "masked_lm", "arch": "bert-nano"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_a_gang_learns_what_one_process_learns(
    nursery: Nursery, tmp_path: Path, text: Path, changes: dict[str, Any]
) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if changes.get("arch") == "bert-nano":
        # No dropout: each process draws its own.
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        changes = {**changes, "settings": small | off}
    alone = {**changes, "workers": 1, "backend": "auto"}
    one = train(nursery, tmp_path / "one", spec(text, **alone))
    many = train(nursery, tmp_path / "many", spec(text, **changes))
    assert losses(many) == pytest.approx(losses(one), abs=TOLERANCE)
    assert len(losses(many)) > 12
    assert many.metrics["eval_loss"] == pytest.approx(one.metrics["eval_loss"], abs=TOLERANCE)


def test_whichever_rank_is_killed_the_others_end_and_the_next_gang_ends_in_the_same_weights(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str]
) -> None:
    work, expected = whole
    seed = int.from_bytes(os.urandom(4), "big")
    source = np.random.default_rng(seed)
    step = 0
    for generation in range(1, 4):
        child = nursery.start(tmp_path, generation, work)
        follower, *_ = others(child)
        step += int(source.integers(1, 5))
        child.until("training", step)
        if generation % 2:
            os.kill(follower, signal.SIGKILL)
            code, said = child.end()
            assert code == 1, (seed, said)
            assert error(tmp_path, generation) == {
                "code": "rank",
                "message": "cannot go on together: rank 1 of 2 was ended by SIGKILL",
            }
        else:
            child.send(signal.SIGKILL)
            assert child.end()[0] == -signal.SIGKILL
        until(lambda pid=follower: gone([pid]))  # type: ignore[misc]
    assert weights(train(nursery, tmp_path, work)) == expected, f"seed {seed}"


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "batch_size": 5}], ids=["", "in parts"])
def test_with_any_number_of_workers_an_elastic_training_ends_in_the_same_weights(
    nursery: Nursery, tmp_path: Path, text: Path, changes: dict[str, Any]
) -> None:
    """Also when that changes at each start, in the middle of a run."""
    # With dropout: what is drawn hangs on the shard, not on who computes it.
    work = spec(
        text, workers=3, workers_min=1, steps=STEPS, checkpoint_every=1000, eval_every=7, **changes
    )
    found = {}
    for count in (1, 2, 3):
        home = tmp_path / str(count)
        code, said = nursery.start(home, 1, work, workers=count).end()
        assert code == 0, said
        (version,) = Registry(Home(home).models).list()
        found[count] = (weights(version), losses(version))
    assert found[1] == found[2] == found[3]

    for generation, count in enumerate((3, 1, 2), 1):
        child = nursery.start(tmp_path / "changing", generation, work, workers=count)
        child.until("training", 5 * generation)
        child.send(signal.SIGTERM)
        assert child.end()[0] == 75
    version = train(nursery, tmp_path / "changing", work)
    assert (weights(version), losses(version)) == found[1]


@pytest.mark.parametrize("stage", ["", "reading", "building"])
def test_a_rank_may_be_killed_before_the_gang_has_met(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str], stage: str
) -> None:
    work, expected = whole
    child = nursery.start(tmp_path, 1, work)
    follower, *_ = others(child)
    if stage:
        child.until(stage, 0)
    os.kill(follower, signal.SIGKILL)
    code, said = child.end()
    assert code == 1, said
    assert error(tmp_path, 1)["code"] == "rank"
    assert weights(train(nursery, tmp_path, work)) == expected


def test_of_three_ranks_two_end_when_one_is_killed(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    for generation, victim in enumerate((0, 1), 1):
        child = nursery.start(tmp_path, generation, spec(text, workers=3, steps=10**6))
        pids = others(child, 2)
        child.until("training", 2)
        os.kill(pids[victim], signal.SIGKILL)
        code, said = child.end()
        assert code == 1, said
        message = error(tmp_path, generation)["message"]
        assert message == f"cannot go on together: rank {victim + 1} of 3 was ended by SIGKILL"
        assert gone(pids)


def test_with_gloo_a_killed_rank_ends_the_others_too(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    child = nursery.start(tmp_path, 1, spec(text, workers=2, backend="gloo", steps=10**6))
    pids = others(child)
    child.until("training", 2)
    os.kill(pids[0], signal.SIGKILL)
    code, said = child.end()
    assert code == 1, said
    assert error(tmp_path, 1)["code"] == "rank"


def test_a_rank_that_hangs_ends_with_the_first(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    child = nursery.start(tmp_path, 1, spec(text, workers=2, steps=10**6))
    pids = others(child)
    child.until("training", 2)
    os.kill(pids[0], signal.SIGSTOP)
    try:
        child.send(signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
        until(lambda: gone(pids))
    finally:
        for pid in pids:
            if start_time(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_to_all_of_them_suspends_the_gang_at_one_step(
    nursery: Nursery, tmp_path: Path, text: Path, accumulate: int
) -> None:
    work = spec(
        text, workers=2, steps=STEPS, checkpoint_every=10**6, eval_every=7, accumulate=accumulate
    )
    expected = weights(train(nursery, tmp_path / "whole", work))
    child = nursery.start(tmp_path, 1, work)
    pids = [child.pid, *others(child)]
    child.until("training", 5)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    code, said = child.end()
    assert code == 75, said
    assert gone(pids)
    assert weights(train(nursery, tmp_path, work)) == expected


def test_ranks_that_share_no_memory_go_on_with_the_moments_that_each_has_read(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    work = spec(text, workers=2, backend="gloo", steps=STEPS, checkpoint_every=10**6, eval_every=7)
    expected = weights(train(nursery, tmp_path / "whole", work))
    child = nursery.start(tmp_path, 1, work)
    child.until("training", 8)
    child.send(signal.SIGTERM)
    assert child.end()[0] == 75
    assert weights(train(nursery, tmp_path, work)) == expected


def test_a_rank_that_goes_on_holds_no_more_than_one_that_begins(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    """Moments and best weights, 12 bytes for each parameter, are read by rank 0 alone."""
    large = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4}
    work = spec(
        text, workers=2, settings=large, batch_size=2, sequence_length=16, steps=10**6, eval_every=2
    )
    peaks = []
    for generation in (1, 2):
        child = nursery.start(tmp_path, generation, work)
        (follower,) = others(child)
        child.until("training", 5 * generation)
        lines = Path(f"/proc/{follower}/status").read_text().splitlines()
        peaks.append(1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:")))
        child.send(signal.SIGTERM)
        assert child.end()[0] == 75
    (saved,) = sorted(Home(tmp_path).checkpoint("t1").glob("step-*"))[-1:]
    weights_bytes = (saved / "model.safetensors").stat().st_size
    assert weights_bytes > 25 * 10**6
    assert peaks[1] < peaks[0] + weights_bytes, peaks


def test_another_number_of_ranks_would_change_the_sums(
    nursery: Nursery, tmp_path: Path, whole: tuple[TrainSpec, str]
) -> None:
    work, _ = whole
    child = nursery.start(tmp_path, 1, work)
    child.until("training", 5)
    child.send(signal.SIGTERM)
    assert child.end()[0] == 75
    wider = msgspec.structs.replace(work, workers=3)
    assert nursery.start(tmp_path, 2, wider).end()[0] == 1
    assert "shards was '2' and is '3'" in error(tmp_path, 2)["message"]
    version = train(nursery, tmp_path, msgspec.structs.replace(wider, inexact=True))
    assert version.metrics["steps"] == STEPS


def test_what_one_rank_fails_at_is_the_error_of_all(
    nursery: Nursery, tmp_path: Path, text: Path
) -> None:
    child = nursery.start(tmp_path, 1, spec(text, workers=2))
    pids = others(child)
    os.kill(pids[0], signal.SIGSTOP)
    child.until("building", 0)
    shutil.rmtree(Home(tmp_path).cache / "packs")  # the first rank has it open
    os.kill(pids[0], signal.SIGCONT)
    code, said = child.end()
    assert code == 1, said
    assert gone(pids)
    assert error(tmp_path, 1)["code"] == "storage"
    assert "/packs/" in error(tmp_path, 1)["message"]
