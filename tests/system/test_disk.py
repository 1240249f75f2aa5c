"""A full disk, a real one: nothing new is taken, nothing old is lost, and then it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import Disk, small_disk
from tests.processes import until
from tests.system.harness import System, refused
from zenos.cli import daemon_process
from zenos.client import TaskHandle, connect
from zenos.core import limits
from zenos.core.errors import StorageError, UnavailableError, ZenosError
from zenos.core.home import Home
from zenos.core.task import State


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with small_disk(request.node, tmp_path / "disk") as made:
        yield made


@pytest.fixture
def full(disk: Disk, tmp_path: Path) -> Iterator[System]:
    """A system whose home lies on the small disk; what its tasks write lies elsewhere."""
    system = System(disk.path, "zygote=lazy")
    system.ran = tmp_path / "ran"
    system.ran.touch()
    yield system
    system.close()


def refuse(system: System) -> None:
    """Submit until that is refused: what the database has of its own space is soon used up."""
    said: ZenosError | None = None
    with connect(home=system.home.root, retry_s=0) as client:
        for number in range(1000, 1400):
            try:
                client.submit(["true"], name=f"x{number}", cpu=0.1, env={"A": "a" * 9000})
            except (StorageError, UnavailableError) as error:
                said = error
                break
        assert said is not None, "never refused"
        assert "full" in said.message
        # The one that met it may wait for the store; the next ones are told at once, and why.
        with pytest.raises(ZenosError, match=r"cannot use the database .* full"):
            client.submit(["true"], name="y")
        status = client.status()
        assert status.store == "failing"
        assert status.disk_free is not None
        assert status.disk_free < limits.MIB


def test_what_runs_on_a_full_disk_ends_as_it_ends(full: System, disk: Disk) -> None:
    full.start()
    full.submit(1, f"{full.hold}; exit 5")
    full.submit(2, full.hold)
    full.runs(1, 2)
    disk.fill()
    refuse(full)
    full.released.touch()
    shims = full.home.runs / "t1" / "1"
    # The worker has ended, and its shim waits for the space to say so.
    until(lambda: not full.pids("started") and (shims / "exit.tmp").exists())
    assert not (shims / "exit").exists()
    disk.clear()
    tasks = full.finish()
    outcome = tasks["n1"].outcome
    assert outcome is not None
    assert (tasks["n1"].state, outcome.exit_code) == (State.FAILED, 5)
    assert tasks["n2"].state is State.SUCCEEDED
    full.submit(3)
    assert full.finish()["n3"].state is State.SUCCEEDED
    lines = full.lines()
    assert (lines[1], lines[2], lines[3]) == (1, 1, 1)
    with connect(home=full.home.root, retry_s=0) as client:
        assert client.status().store == "ok"


def test_a_daemon_that_dies_on_a_full_disk_comes_back_with_all(full: System, disk: Disk) -> None:
    full.start()
    full.submit(1, full.hold)
    workers = full.runs(1)
    accepted = {task.id for task in full.tasks().values()}
    disk.fill()
    refuse(full)
    accepted |= {task.id for task in full.tasks().values()}
    full.kill()
    said = refused(full.home.root)
    assert "cannot" in said
    assert "disk" in said or "space" in said
    disk.clear()
    full.start()
    assert full.pids("started") == workers
    assert accepted <= {task.id for task in full.tasks().values()}
    full.released.touch()
    tasks = full.finish()
    assert all(task.state is State.SUCCEEDED for task in tasks.values()), tasks
    assert full.lines()[1] == 1


@pytest.mark.parametrize("left", [0, 8192, 40_000])
def test_up_on_a_full_disk_says_that_it_is_full(disk: Disk, left: int) -> None:
    home = Home(disk.path / "home")
    disk.fill()
    with (disk.path / "filler").open("r+b") as file:
        file.truncate(max(os.fstat(file.fileno()).st_size - left, 0))
    with pytest.raises(StorageError, match=r"cannot .* full.*make room"):
        daemon_process.start(home, ["--port=0", "--set=zygote=lazy"])


def test_a_training_that_cannot_be_published_waits_until_there_is_room(
    full: System, disk: Disk, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    full.start()
    with connect(home=full.home.root) as client:
        # 12 MB of weights: larger than the disk, as they are and with their moments.
        handle = client.train(
            model="fox",
            arch="llama-nano",
            settings={"num_hidden_layers": 16},
            data={"paths": [str(corpus)], "eval_fraction": 0.1},
            vocab_size=300,
            sequence_length=32,
            batch_size=2,
            steps=3,
            checkpoint_every=2,
        )
        until(lambda: stage(handle) == "waits for space", 120)
        said = "".join(handle.log())
        assert "cannot write a checkpoint" in said
        assert "there is none before it" in said
        assert "cannot publish fox" in said
        assert "waits for space" in said
        disk.grow()
        task = handle.wait(120)
        assert task.state is State.SUCCEEDED, task.outcome
        assert task.generation == 1  # it was not computed again
        assert client.model("fox").metrics["steps"] == 3


def stage(handle: TaskHandle) -> str:
    """What the task says that it does."""
    progress = handle.refresh().progress
    return progress.stage if progress is not None else ""
