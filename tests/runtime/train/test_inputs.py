"""The input pipeline: one step ahead, in whichever order steps are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import until
from zenos.runtime.train.inputs import Inputs
from zenos.runtime.train.trainer import Trainer

from .helpers import spec


class Making:
    """Inputs whose batches say which step they are of; what was made, in order."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.inputs = Inputs(self._make)

    def _make(self, step: int) -> str:
        if step == 13:
            raise ValueError("step 13")
        self.threads.add(threading.current_thread().name)
        self.made.append(step)
        return f"batches of step {step}"


@pytest.fixture
def making() -> Iterator[Making]:
    made = Making()
    yield made
    made.inputs.close()


def test_the_next_one_is_made_meanwhile_and_no_more_than_that(making: Making) -> None:
    for step in range(5, 9):
        assert making.inputs.take(step, last=20) == f"batches of step {step}"
        until(lambda: making.made[-1] == step + 1)  # noqa: B023 - called at once
    making.inputs.close()
    assert making.made == [5, 6, 7, 8, 9]
    assert making.threads == {"input-lane-1"}


@given(st.lists(st.integers(0, 9), max_size=12))
def test_each_step_gets_its_own_whatever_came_before(steps: list[int]) -> None:
    making = Making()
    try:
        for step in steps:
            assert making.inputs.take(step) == f"batches of step {step}"
    finally:
        making.inputs.close()


def test_what_fails_ahead_fails_the_step_that_needs_it(making: Making) -> None:
    assert making.inputs.take(12) == "batches of step 12"
    with pytest.raises(ValueError, match="step 13"):
        making.inputs.take(13)


def test_a_training_has_its_batches_made_there(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by: list[str] = []
    make = Trainer._micro_batches

    def noted(self: Trainer, step: int) -> Any:
        made_by.append(threading.current_thread().name)
        return make(self, step)

    monkeypatch.setattr(Trainer, "_micro_batches", noted)
    code, _ = run(spec(corpus))
    assert code == 0
    assert len(made_by) >= 12
    assert set(made_by) == {"input-lane-1"}


def test_closing_before_the_first_and_twice(making: Making) -> None:
    making.inputs.close()
    making.inputs.close()
    assert making.made == []
