"""Whole runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zenos.core.specs import TrainSpec
from zenos.runtime import context as context_module
from zenos.runtime import worker
from zenos.runtime.context import WorkerContext
from zenos.runtime.train.main import main

from .helpers import Bus, make_context, make_task, write_corpus


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a spec as one generation of task t1; gives the exit code and the context."""
    monkeypatch.setattr(WorkerContext, "install_signal_handlers", lambda self: None)
    monkeypatch.setattr(context_module, "REPORT_EVERY_S", 0.0)

    def go(
        work: TrainSpec, generation: int = 1, bus: Bus | None = None, task: str = "t1"
    ) -> tuple[int, WorkerContext]:
        context = make_context(
            tmp_path / "home", make_task(work, generation=generation, task=task), bus
        )
        return worker.run(context, main), context

    return go
