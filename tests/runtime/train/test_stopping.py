"""Told to stop, a training saves or doesn't, and goes on to the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zenos.core.wire import Progress
from zenos.runtime.context import EXIT_SUSPENDED
from zenos.runtime.train.checkpoint import Checkpoints
from zenos.runtime.train.trainer import Trainer

from .helpers import Bus, error, result, spec, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_stop_saves_and_the_next_generation_goes_on_to_the_same_weights(
    run: Any, corpus: Path
) -> None:
    work = spec(corpus, checkpoint_every=1000)
    code, context = run(work, task="whole")
    assert code == 0, error(context)
    expected = weights(context)

    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=True) if p.done == 7 else None
    code, context = run(work, bus=bus)
    assert code == EXIT_SUSPENDED == 75
    assert result(context) == {"suspended": True, "step": 7, "saved": True}
    assert Checkpoints(context.home.checkpoint("t1")).latest()[0] is not None
    assert len(context.registry.list()) == 1

    bus = Bus()
    code, context = run(work, bus=bus, generation=2)
    assert code == 0, error(context)
    assert result(context)["model"] == "tiny:2"
    resumed_at, next_step = [p for p in bus.progress if p.stage == "training"][:2]
    assert resumed_at.note == "resumed at step 7"
    assert resumed_at.learning_rate == next_step.learning_rate
    assert weights(context) == expected
    whole, resumed = context.registry.list()
    assert whole.curve == resumed.curve
    assert whole.metrics["eval_loss"] == resumed.metrics["eval_loss"]


def test_stop_before_the_first_step(run: Any, corpus: Path) -> None:
    for stage in ("reading", "tokenizer", "tokenizing", "building"):
        bus = Bus()

        def stop(progress: Progress, stage: str = stage, bus: Bus = bus) -> None:
            if progress.stage.partition(",")[0] == stage:
                bus.say_stop(save=True)

        bus.on_progress = stop
        code, context = run(spec(corpus, vocab_size=333), bus=bus)
        assert code == EXIT_SUSPENDED, stage
        assert result(context) == {"suspended": True, "step": 0, "saved": True}
    code, context = run(spec(corpus, vocab_size=333))
    assert code == 0, error(context)


def test_stop_without_saving(run: Any, corpus: Path) -> None:
    bus = Bus()
    bus.on_progress = lambda p: bus.say_stop(save=False) if p.done == 3 else None
    code, context = run(spec(corpus), bus=bus)
    assert code == EXIT_SUSPENDED
    assert result(context) == {"suspended": True, "step": 0, "saved": False}
    assert Checkpoints(context.home.checkpoint("t1")).latest()[0] is None


def test_a_stop_in_an_evaluation_ends_it_and_loses_nothing(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = spec(corpus, eval_batches=4, steps=10)
    code, context = run(work, task="whole")
    assert code == 0, error(context)
    expected, held_out = weights(context), Trainer._held_out
    cut: list[tuple[int, int]] = []
    for generation in (1, 2, 3):  # twice in the same, then in that of the last step
        bus, last = Bus(), 10 if generation == 3 else 5

        def told(self: Trainer, count: int, bus: Bus = bus, last: int = last) -> Iterator[Any]:
            for number, batch in enumerate(held_out(self, count)):
                if number == 1 and self.state.step == last:
                    bus.say_stop(save=True)
                cut.append((self.state.step, number))
                yield batch

        monkeypatch.setattr(Trainer, "_held_out", told)
        code, context = run(work, bus=bus, generation=generation)
        assert code == EXIT_SUSPENDED
        assert result(context) == {"suspended": True, "step": last, "saved": True}
        assert cut[-1] == (last, 1)
    monkeypatch.setattr(Trainer, "_held_out", held_out)
    code, context = run(work, generation=4)
    assert code == 0, error(context)
    assert weights(context) == expected
    whole, resumed = context.registry.list()
    assert whole.curve == resumed.curve
    assert whole.metrics["eval_loss"] == resumed.metrics["eval_loss"]
