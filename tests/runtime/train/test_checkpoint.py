"""Checkpoints: what is written comes back, damage is found, and a full disk harms nothing."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests import disks
from tests.processes import until
from zenos.core import durable, failpoints
from zenos.core.errors import RefusedError
from zenos.core.home import Home
from zenos.core.wire import Progress
from zenos.runtime.train import checkpoint as module
from zenos.runtime.train.checkpoint import Checkpoint, Checkpoints, DamagedError, Plan, State

from .helpers import Bus, spec

MODEL = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}
MOMENTS = {"exp_avg.weight": torch.full((3, 4), 1e-8), "step.weight": torch.tensor(7.0)}


def state(step: int) -> State:
    plan = Plan(pack="p", tokenizer="t", data_digest="d", steps=100)
    return State(
        step=step,
        plan=plan,
        fingerprint={"threads": "1"},
        curve=[(1, 0.1 + 0.2, None), (2, 1e-9, 3.5)],
    )


def save(checkpoints: Checkpoints, step: int, best: dict[str, torch.Tensor] | None = None) -> None:
    shifted = {name: tensor + step for name, tensor in MODEL.items()}
    checkpoints.begin(state(step), shifted, MOMENTS, best)
    assert checkpoints.wait() is None


def latest_step(root: Path) -> int | None:
    found, _ = Checkpoints(root).latest()
    return None if found is None else found.state.step


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest() == (None, [])
    save(checkpoints, 3, best={"weight": MODEL["weight"]})
    found, notes = Checkpoints(tmp_path / "c").latest()
    assert found is not None
    assert notes == []
    assert found.state == state(3)
    for part, expected in (
        ("model", {name: tensor + 3 for name, tensor in MODEL.items()}),
        ("optimizer", MOMENTS),
        ("best", {"weight": MODEL["weight"]}),
    ):
        tensors = found.tensors(part)
        assert tensors is not None
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)


def test_how_far_a_training_is_saved_is_seen_by_who_cannot_read_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.saved_step("t1") == 0
    checkpoints = Checkpoints(home.checkpoint("t1"))
    for step in (9, 1200):
        save(checkpoints, step)
    (home.checkpoint("t1") / "damaged-step-000009999").mkdir()
    assert home.saved_step("t1") == 1200


def test_the_copy_is_made_before_begin_returns(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    weight = torch.zeros(1000)
    checkpoints.begin(state(1), {"weight": weight}, {}, None)
    weight += 1
    assert checkpoints.wait() is None
    found, _ = checkpoints.latest()
    assert found is not None
    tensors = found.tensors("model")
    assert tensors is not None
    assert not tensors["weight"].any()


def test_a_training_goes_on_while_a_checkpoint_is_written(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, by = threading.Event(), []
    write = Checkpoints._write

    def held(self: Checkpoints, saved: State, *rest: Any, sync: bool) -> None:
        if saved.step == 4:  # the disk takes as long as four more steps
            by.append(threading.current_thread().name)
            assert later.wait(30)
        write(self, saved, *rest, sync=sync)

    def look(progress: Progress) -> None:
        if progress.stage == "training" and progress.done >= 8:
            later.set()

    monkeypatch.setattr(Checkpoints, "_write", held)
    bus = Bus()
    bus.on_progress = look
    code, _ = run(spec(corpus), bus=bus)
    assert (code, by) == (0, ["checkpoint-lane-1"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
        assert latest_step(tmp_path) == step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]
    checkpoints.remove()
    assert not tmp_path.exists()


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1, best=MODEL)
    names = sorted(p.name for p in (tmp_path / "step-000000001").iterdir())
    assert names == [
        "best.safetensors",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_bit_flip_and_truncation_is_found(tmp_path: Path, seed: int) -> None:
    source = np.random.default_rng(seed)
    save(Checkpoints(tmp_path / "good"), 1)
    save(good := Checkpoints(tmp_path / "good"), 2)
    for trial in range(25):
        root = tmp_path / f"damaged-{trial}"
        shutil.copytree(good.root, root)
        paths = sorted((root / "step-000000002").iterdir())
        path = paths[source.integers(len(paths))]
        data = bytearray(path.read_bytes())
        if source.random() < 0.7:
            at = source.integers(len(data))
            data[at] ^= 1 << int(source.integers(8))
        else:
            del data[source.integers(len(data)) :]
        path.write_bytes(data)
        found, notes = Checkpoints(root).latest()
        assert found is not None, (seed, trial, path)
        assert found.state.step == 1, (seed, trial, path)
        assert len(notes) == 1
        assert notes[0].startswith("cannot use the checkpoint step-000000002")
        # The damaged step can be written again, and what was damaged goes.
        save(Checkpoints(root), 2)
        assert latest_step(root) == 2
        assert len(list(root.iterdir())) == 2


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    (tmp_path / "step-000000001" / "optimizer.safetensors").unlink()
    with pytest.raises(DamagedError):
        Checkpoint(tmp_path / "step-000000001")
    assert latest_step(tmp_path) is None


def test_only_the_parts_that_are_asked_for_are_read(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    (tmp_path / "step-000000001" / "optimizer.safetensors").unlink()
    found = Checkpoint(tmp_path / "step-000000001", parts=("model", "best"))
    assert found.tensors("model")
    assert found.tensors("optimizer") is None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path), 1)
    path = tmp_path / "step-000000001" / "manifest.json"
    body = msgspec.json.decode(path.read_bytes().splitlines()[0])
    body["format"] = module.FORMAT + 1
    path.write_bytes(module._seal(msgspec.json.encode(body)))
    with pytest.raises(RefusedError, match="newer zenos"):
        Checkpoints(tmp_path).latest()
    assert path.exists()


def test_the_plan(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.read_plan() is None
    plan = Plan(pack="p", tokenizer="t", data_digest="d", steps=None)
    checkpoints.write_plan(plan)
    assert checkpoints.read_plan() == plan
    path = tmp_path / "c" / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'"p"', b'"q"'))
    assert checkpoints.read_plan() is None


@pytest.fixture
def armed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.mark.parametrize("label", ["durable.write", "durable.fsync", "durable.rename"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_any_failing_write_leaves_the_one_before(
    tmp_path: Path, armed: None, label: str, nth: int
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    failpoints.arm(f"{label}=enospc@{nth}")
    checkpoints.begin(state(2), MODEL, MOMENTS, None)
    failure = checkpoints.wait()
    failpoints.arm("")
    if failure is not None:
        assert failure.errno == errno.ENOSPC
    # After the rename the new one is in place, though its directory was not synced.
    assert latest_step(tmp_path) in ((1, 2) if failure else (2,))
    save(checkpoints, 3)
    assert latest_step(tmp_path) == 3


def leave(root: Path, step: int) -> None:
    """What a process does that goes with a checkpoint."""
    checkpoints = Checkpoints(root)
    shifted = {name: tensor + step for name, tensor in MODEL.items()}
    checkpoints.begin(state(step), shifted, MOMENTS, None, copy=False, sync=False)
    assert checkpoints.wait() is None


def test_who_leaves_does_not_wait_for_the_disk_and_whoever_goes_on_has_it_synced(
    tmp_path: Path, armed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(Checkpoints(tmp_path), step)
    failpoints.arm("durable.fsync=raise@1")  # nothing comes by here
    leave(tmp_path, 3)
    failpoints.arm("")
    assert [p.name[-1] for p in sorted(tmp_path.iterdir())] == ["1", "2", "3"]
    synced: list[Path] = []
    monkeypatch.setattr("zenos.core.durable.sync_tree", synced.append)
    checkpoints = Checkpoints(tmp_path)
    found, _ = checkpoints.latest()
    assert found is not None
    assert synced == []
    for _ in range(2):
        checkpoints.tidy()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert synced == [found.directory]
    assert [p.name[-1] for p in sorted(tmp_path.iterdir())] == ["2", "3"]


def test_what_is_too_old_goes_while_the_next_one_is_written(tmp_path: Path) -> None:
    for step in (1, 2):
        save(Checkpoints(tmp_path), step)
    leave(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.latest()
    with durable.new_directory(tmp_path / "step-000000004") as fresh:
        checkpoints.tidy()
        until(lambda: not (tmp_path / "step-000000001").exists())
        assert fresh.exists()
    assert (tmp_path / "step-000000004").exists()


def test_what_cannot_be_synced_leaves_all_the_others(
    tmp_path: Path, armed: None, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save(Checkpoints(tmp_path), step)
    leave(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.latest()
    failpoints.arm("durable.fsync=raise@1")
    checkpoints.tidy()
    until(lambda: "cannot sync" in caplog.text)
    assert [p.name[-1] for p in sorted(tmp_path.iterdir())] == ["1", "2", "3"]


@pytest.mark.parametrize("left", [0, 100, None])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_power_cut_before_it_is_synced_costs_what_came_after_the_one_before(
    tmp_path: Path, name: str, left: int | None
) -> None:
    """The names are there, and of a file what the disk had got; or not even that."""
    save(Checkpoints(tmp_path), 2)
    leave(tmp_path, 3)
    path = tmp_path / "step-000000003" / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    assert latest_step(tmp_path) == 2


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with disks.small_disk(request.node, tmp_path / "disk", "1m") as disk:
        yield disk.path


def test_a_full_disk_leaves_the_one_before(small_disk: Path) -> None:
    checkpoints = Checkpoints(small_disk / "c")
    save(checkpoints, 1)
    large = {"weight": torch.zeros(300_000)}
    checkpoints.begin(state(2), MODEL, MOMENTS, large)
    failure = checkpoints.wait()
    assert failure is not None
    assert failure.errno == errno.ENOSPC
    assert checkpoints.saved_step == 1
    assert latest_step(small_disk / "c") == 1
    # Nothing half written takes the space that is left.
    assert [p.name for p in (small_disk / "c").iterdir()] == ["step-000000001"]
    save(checkpoints, 3)
    assert latest_step(small_disk / "c") == 3
