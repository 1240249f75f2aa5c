"""A time budget on a machine that becomes slower, by a clock that the tests wind."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.runtime.context import EXIT_SUSPENDED
from zenos.runtime.train import main as main_module
from zenos.runtime.train import schedule
from zenos.runtime.train.checkpoint import Checkpoints, Fit, Plan

from .helpers import Bus, error, result, spec, weights

BUDGET_S = 1000.0
WORK = spec(Path("/x"), steps=10**6, warmup=None, learning_rate=1.0, time_budget_s=BUDGET_S)


def plan(steps: int, **more: Any) -> Plan:
    return Plan(pack="p", tokenizer="t", data_digest="d", steps=steps, planned_at=10, **more)


def drive(factors: list[float]) -> tuple[Plan, int, float, list[float]]:
    """A run whose steps take 1 s, times the factor of each tenth of the budget.

    The plan, steps done, seconds used, and the learning rates.
    """
    pace, made, done, used_s, rates = schedule.Pace(WORK), plan(0), 0, 0.0, list[float]()
    made.steps = None
    while (made.last is None or done < made.last) and not pace.is_over(done, used_s):
        rates.append(schedule.learning_rate(WORK, done, made.steps, made.planned_at, made.fit))
        step_s = factors[min(int(used_s / BUDGET_S * 10), len(factors) - 1)]
        done, used_s = done + 1, used_s + step_s
        if made.steps is None:
            pace.step_took(step_s)
            made.steps = pace.plan(10**6, done, used_s)
            made.planned_at = done
        else:
            made.fit = pace.fit_again(made, done, used_s) or made.fit
    return made, done, used_s, rates


@given(st.floats(0.2, 5.0), st.lists(st.floats(0.95, 1.05), min_size=10, max_size=10))
def test_at_an_even_speed_the_planned_steps_stay(speed: float, noise: list[float]) -> None:
    made, done, _, _ = drive([speed, *(speed * one for one in noise)])
    assert made.fit is None
    assert done == made.steps


@given(st.lists(st.floats(0.3, 12.0), min_size=10, max_size=10))
def test_whatever_the_machine_does_it_ends_near_its_time(factors: list[float]) -> None:
    made, done, used_s, rates = drive(factors)
    assert made.steps is not None
    assert done <= made.steps
    assert used_s <= BUDGET_S * schedule.OVERRUN + max(factors)
    top = rates.index(max(rates))
    assert all(a >= b for a, b in pairwise(rates[top:])), "a rate rose again"


@pytest.mark.parametrize("slower", [2.0, 6.0])
@pytest.mark.parametrize("since", [1, 3, 5])
def test_a_slower_machine_brings_its_schedule_to_the_end(since: int, slower: float) -> None:
    made, done, used_s, rates = drive([1.0] * since + [slower] * (11 - since))
    assert made.steps is not None
    assert made.fit is not None
    assert done == made.last < made.steps
    assert used_s == pytest.approx(BUDGET_S, rel=0.12)
    assert rates[-1] == pytest.approx(WORK.lowest_rate, abs=0.01)
    assert max(a - b for a, b in pairwise(rates)) < 0.05, "the rate jumped"


def test_a_machine_that_was_slow_for_a_while_gets_steps_back() -> None:
    slow, _, _, _ = drive([1.0, 1.0, 4.0, 4.0, 4.0])
    made, done, used_s, _ = drive([1.0, 1.0, 4.0, 4.0, 1.0])
    assert slow.last is not None
    assert made.last == done > slow.last + 100
    assert used_s == pytest.approx(BUDGET_S, rel=0.12)


def test_the_end_does_not_jump_to_and_fro_on_a_machine_with_other_work() -> None:
    pace, made, done, used_s, ends = schedule.Pace(WORK), plan(900), 10, 10.0, list[int]()
    pace.fit_again(made, done, used_s)
    for look in range(18):  # at full speed, and at a third of it, by turns
        done, used_s = done + (45 if look % 2 else 15), used_s + 45.0
        made.fit = pace.fit_again(made, done, used_s) or made.fit
        assert made.last is not None
        ends.append(made.last)
    moves = sum(abs(a - b) for a, b in pairwise([900, *ends]))
    assert ends[-1] == pytest.approx(650, abs=20)  # at the mean of both
    assert moves < 1.5 * (900 - ends[-1])


def test_the_least_steps_are_done_at_any_speed() -> None:
    work = spec(Path("/x"), warmup=0, time_budget_s=100.0, steps_min=80)
    pace, made = schedule.Pace(work), plan(100)
    assert pace.fit_again(made, 20, 20.0) is None
    fit = pace.fit_again(made, 25, 60.0)
    assert fit is not None
    assert fit.steps == 80


def test_a_fit_is_saved_with_the_plan() -> None:
    fit = Fit(at=30, share=0.25, steps=70)
    assert plan(100, fit=fit).last == 70
    assert plan(100, fit=fit, cut=60).last == 60
    rates = [schedule.learning_rate(WORK, step, 100, 10, fit) for step in (30, 50, 70)]
    cosine = [schedule.learning_rate(WORK, step, 120, 10) for step in (45, 95, 120)]
    assert rates[0] == pytest.approx(cosine[0])
    assert rates[2] == pytest.approx(WORK.lowest_rate)
    assert rates[0] > rates[1] > rates[2]


def test_the_last_evaluation_is_in_proportion_to_the_budget() -> None:
    assert schedule.final_tokens(spec(Path("/x")), 10.0) == schedule.FINAL_TOKENS_MAX
    short = spec(Path("/x"), time_budget_s=15.0)
    assert schedule.final_tokens(short, 10_000.0) < schedule.FINAL_TOKENS_MAX / 4
    assert schedule.final_tokens(short, 1.0) >= 2**13
    long = spec(Path("/x"), time_budget_s=3600.0)
    assert schedule.final_tokens(long, 10_000.0) == schedule.FINAL_TOKENS_MAX


class Clock:
    """Each look at it takes a second, and from the `slow_at`th on five."""

    def __init__(self, slow_at: int) -> None:
        self.looks, self.now, self.slow_at = 0, 0.0, slow_at

    def perf_counter(self) -> float:
        self.looks += 1
        self.now += 1.0 if self.looks < self.slow_at else 5.0
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.mark.usefixtures("one_thread")
def test_a_shortened_training_is_measured_says_so_and_resumes_bit_for_bit(
    run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = spec(corpus, steps=None, epochs=500.0, time_budget_s=150.0, eval_every=1000)

    def go(task: str, bus: Bus, slow_at: int, generation: int = 1) -> tuple[int, Any]:
        monkeypatch.setattr(main_module, "time", Clock(slow_at))
        code, context = run(work, task=task, bus=bus, generation=generation)
        return code, context

    bus = Bus()
    code, whole = go("t1", bus, 80)
    assert code == 0, error(whole)
    found = result(whole)
    assert 50 < found["steps"] < found["planned_steps"] - 20
    assert found["note"].startswith("ended early: the machine became slower")
    assert found["trained_s"] <= 150 * schedule.OVERRUN + 5
    assert found["eval_loss"] > 0
    assert isinstance(found["beats_bigram"], bool)
    rates = [p.learning_rate for p in bus.progress if p.stage == "training" and p.loss]
    assert rates[-1] is not None
    assert rates[-1] < work.lowest_rate * 1.2

    bus = Bus()

    def stop_after(progress: Any) -> None:
        if progress.stage == "training" and progress.loss and progress.done == found["steps"] - 3:
            bus.say_stop(save=True)

    bus.on_progress = stop_after
    code, context = go("t2", bus, 80)
    assert code == EXIT_SUSPENDED
    checkpoint, _ = Checkpoints(context.home.checkpoint("t2")).latest()
    assert checkpoint is not None
    assert checkpoint.state.plan.fit is not None
    code, context = go("t2", Bus(), 0, generation=2)
    assert code == 0, error(context)
    assert result(context)["steps"] == found["steps"]
    assert weights(context, "tiny:2") == weights(whole, "tiny:1")
