"""What a training says of itself after each step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from zenos.core.wire import Progress
from zenos.runtime.train import schedule

from .test_updates import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_step_is_told_with_its_loss_rate_speed_and_time_left(tmp_path: Path) -> None:
    reports: list[Progress] = []
    trainer = trainer_in(
        tmp_path, reports.append, steps=4, batch_size=3, accumulate=2, warmup=2, eval_every=2
    )
    ticks = itertools.count()
    trainer.clock = lambda: float(next(ticks))  # whatever is measured takes a second
    trainer.run()
    told = [p for p in reports if p.loss is not None]
    assert [(p.stage, p.done, p.total) for p in told] == [("training", n, 4) for n in (1, 2, 3, 4)]
    # Two micro-batches of three sequences of eight tokens.
    assert [p.tokens_per_s for p in told] == [48.0] * 4
    # Four steps and, after the second and the fourth, an evaluation: what is left takes as long as
    # what has been did, for as many steps.
    assert [p.left_s for p in told] == [3.0, 3.0, pytest.approx(4 / 3), 0.0]
    rates = [schedule.learning_rate(trainer.spec, step, 4, 0) for step in range(4)]
    assert [p.learning_rate for p in told] == rates
    assert len(set(rates)) > 2
    held_out = {step: loss for step, _, loss in trainer.state.curve if loss is not None}
    assert list(held_out) == [2, 4]
    assert [p.eval_loss for p in told] == [None, held_out[2], held_out[2], held_out[4]]
