"""A real disk that is full when a checkpoint is written: it is told, and training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.disks import Disk, small_disk
from zenos.core.wire import Progress
from zenos.runtime import context as context_module
from zenos.runtime import worker
from zenos.runtime.context import WorkerContext
from zenos.runtime.train.main import main

from .helpers import Bus, error, make_context, make_task, spec, write_corpus


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with small_disk(request.node, tmp_path / "disk") as made:
        yield made


def test_training_goes_on_and_writes_again_when_there_is_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerContext, "install_signal_handlers", lambda self: None)
    monkeypatch.setattr(context_module, "REPORT_EVERY_S", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # beside others two take longer
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
    torch.set_num_threads(before)
    assert context.registry.resolve("tiny").metrics["steps"] == 24
