"""A real disk that is full: it is told, training goes on, and at its end waits for space."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.disks import Disk, small_disk
from zenos.core.errors import InvalidError, StorageError
from zenos.core.wire import Progress
from zenos.runtime import context as context_module
from zenos.runtime import space, worker
from zenos.runtime.context import EXIT_SUSPENDED, WorkerContext
from zenos.runtime.train import publish
from zenos.runtime.train.checkpoint import Checkpoints
from zenos.runtime.train.main import main

from .helpers import Bus, error, make_context, make_task, result, spec, write_corpus

pytestmark = pytest.mark.usefixtures("one_thread", "told_all")


@pytest.fixture
def told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers within this process, which report each step."""
    monkeypatch.setattr(WorkerContext, "install_signal_handlers", lambda self: None)
    monkeypatch.setattr(context_module, "REPORT_EVERY_S", 0.0)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with small_disk(request.node, tmp_path / "disk") as made:
        yield made


def test_training_goes_on_and_writes_again_when_there_is_room(disk: Disk, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    notes: list[tuple[float, str]] = []
    seen: list[str] = []

    def meet(progress: Progress) -> None:
        if progress.note:
            notes.append((progress.done, progress.note))
        if not seen and progress.stage == "training" and progress.done >= 2:
            disk.fill()
            seen.append("full")
        elif seen == ["full"] and "cannot write a checkpoint" in progress.note:
            disk.clear()
            seen.append("room")

    bus = Bus()
    bus.on_progress = meet
    work = spec(corpus, steps=24, checkpoint_every=4)
    context = make_context(disk.path / "home", make_task(work), bus)
    code = worker.run(context, main)
    assert code == 0, error(context)
    assert seen == ["full", "room"], notes
    told = [note for _, note in notes if "cannot write a checkpoint" in note]
    assert "No space left" in told[0]
    # Not each one after it: the next ones were written.
    assert len(told) < 24 // 4, told
    assert context.registry.resolve("tiny").metrics["steps"] == 24


def test_the_checkpoint_before_stays_and_can_be_read_while_there_is_no_room(
    disk: Disk, tmp_path: Path
) -> None:
    bus, found, filled = Bus(), list[tuple[int, str]](), list[int]()
    work = spec(write_corpus(tmp_path / "corpus"), steps=40, checkpoint_every=4)
    context = make_context(disk.path / "home", make_task(work), bus)
    saved = context.home.checkpoint("t1")

    def meet(progress: Progress) -> None:
        if not filled and progress.stage == "training" and [*saved.glob("step-*")]:
            disk.fill()
            filled.append(int(progress.done))
        elif not found and "cannot write a checkpoint" in progress.note:
            checkpoint, _ = Checkpoints(saved).latest()
            assert checkpoint is not None
            assert checkpoint.tensors("model")
            found.append((checkpoint.state.step, progress.note))
            disk.clear()

    bus.on_progress = meet
    assert worker.run(context, main) == 0, error(context)
    [(step, note)] = found
    assert step % 4 == 0
    assert f"the one of step {step} is intact; training goes on; free some space" in note
    assert context.registry.resolve("tiny").metrics["steps"] == 40


def fill_at(bus: Bus, disk: Disk, step: int, room: Callable[[Progress], bool]) -> None:
    """Have the disk full from that step of the training on, until `room` says True."""
    seen: list[str] = []

    def meet(progress: Progress) -> None:
        if not seen and progress.stage == "training" and progress.done >= step:
            disk.fill()
            seen.append("full")
        elif seen == ["full"] and room(progress):
            disk.clear()
            seen.append("room")

    bus.on_progress = meet


def test_what_could_not_be_saved_waits_for_space_to_be_published(
    disk: Disk, tmp_path: Path
) -> None:
    work = spec(write_corpus(tmp_path / "corpus"), checkpoint_every=1000)
    whole = make_context(disk.path / "home", make_task(work, task="whole"))
    assert worker.run(whole, main) == 0, error(whole)
    bus = Bus()
    fill_at(bus, disk, 11, lambda p: p.stage == "waits for space" and not p.note)  # goes on saying
    context = make_context(disk.path / "home", make_task(work), bus)
    assert worker.run(context, main) == 0, error(context)
    first, second = context.registry.list()
    assert first.files == second.files
    told = [p.note for p in bus.progress if p.stage == "waits for space" and p.note]
    assert len(told) == 1
    assert told[0].startswith("cannot publish tiny: ")
    assert "No space left" in told[0]
    assert not any("is saved" in p.note for p in bus.progress)
    steps = [p.done for p in bus.progress if p.stage == "training" and p.loss is not None]
    assert steps == sorted(set(steps))  # none was done twice


def test_told_to_stop_while_it_waits_it_saves_the_last_weights_if_it_can(
    disk: Disk, tmp_path: Path
) -> None:
    own = write_corpus(tmp_path / "small", files=3, words=200)
    work = spec(
        own,
        steps=160,
        eval_every=20,
        checkpoint_every=1000,
        learning_rate=1e-2,
        learning_rate_min=1e-2,
    )
    bus = Bus()

    def room(progress: Progress) -> bool:
        if progress.stage == "waits for space":
            bus.say_stop(save=True)
        return progress.stage == "saving" and "told to stop" in progress.note

    fill_at(bus, disk, 159, room)
    context = make_context(disk.path / "home", make_task(work), bus)
    assert worker.run(context, main) == EXIT_SUSPENDED, error(context)
    assert result(context) == {"suspended": True, "step": 160, "saved": True}
    checkpoint, _ = Checkpoints(context.home.checkpoint("t1")).latest()
    assert checkpoint is not None
    last, best = checkpoint.tensors("model"), checkpoint.tensors("best")
    assert last is not None
    assert best is not None  # an earlier step's, which is what is published
    assert any(not torch.equal(last[name], best[name]) for name in best)
    again = make_context(disk.path / "home", make_task(work, generation=2), Bus())
    assert worker.run(again, main) == 0, error(again)
    assert result(again)["steps"] == 160


def test_a_training_that_waits_for_space_can_be_cancelled(disk: Disk, tmp_path: Path) -> None:
    work = spec(write_corpus(tmp_path / "corpus"), checkpoint_every=1000)
    bus = Bus()

    def room(progress: Progress) -> bool:
        if progress.stage == "waits for space":
            bus.say_stop(save=False)
        return False

    fill_at(bus, disk, 11, room)
    context = make_context(disk.path / "home", make_task(work), bus)
    worker.run(context, main)
    disk.clear()
    assert context.registry.list() == []
    assert bus.progress[-1].stage == "waits for space"


def test_however_often_it_tries_it_says_seldom_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []
    write = publish._write

    def full(*given: Any) -> Any:
        tries.append(len(tries))
        if len(tries) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    monkeypatch.setattr(publish, "_write", full)
    monkeypatch.setattr(space, "LOOK_S", 0.001)
    monkeypatch.setattr(space, "wait_for", partial(space.wait_for, try_s=0.01))
    context = make_context(tmp_path / "home", make_task(spec(write_corpus(tmp_path / "corpus"))))
    with caplog.at_level("INFO"):
        assert worker.run(context, main) == 0, error(context)
    assert len(tries) == 6
    told = [r.getMessage() for r in caplog.records if r.name == context_module.__name__]
    assert [text.partition(":")[0] for text in told][-2:] == ["publishing", "waits for space"]

    now, said = 0.0, list[float]()
    waits = publish._Waits(
        "tiny",
        Progress(stage="waits for space"),
        lambda progress: said.append(now) if progress.note else None,
        clock=lambda: now,
    )
    for second in range(1000):
        now = float(second)
        waits.tell(OSError(errno.ENOSPC, "No space left on device"))
    assert said == [0.0, 60.0, 180.0, 420.0, 900.0]
    waits.tell(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert said[5:] == [999.0], "another reason is told at once"
    lacking = OSError(errno.EDQUOT, "Disk quota exceeded")
    for size in range(10):  # how much is free is told with each error, and is no other reason
        error_ = StorageError(f"cannot store it: it takes 2 GiB, and {size} MiB are free")
        error_.__cause__ = lacking
        waits.tell(error_)
    assert said[6:] == []


def test_only_a_lack_of_space_is_waited_for(tmp_path: Path) -> None:
    tries: list[BaseException] = [
        StorageError("cannot do it", retry_after_s=1.0),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ]
    tries[0].__cause__ = OSError(errno.ENOSPC, "No space left on device")

    def work() -> str:
        if tries:
            raise tries.pop()
        return "done"

    seen: list[Exception] = []
    assert space.wait_for(work, tmp_path, seen.append, try_s=0.01) == "done"
    assert len(seen) <= 3
    for error_ in (OSError(errno.EIO, "Input/output error"), InvalidError("cannot")):
        tries.append(error_)
        with pytest.raises(type(error_)):
            space.wait_for(work, tmp_path, seen.append)
