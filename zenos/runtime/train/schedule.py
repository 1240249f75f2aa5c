"""Learning rates, and how many steps a run takes."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from zenos.core.specs import TrainSpec
from zenos.runtime.train.checkpoint import Fit, Plan

# Steps at the beginning that are not measured: memory is allocated, kernels are chosen.
_UNMEASURED: Final = 2
_MEASURED_MIN: Final = 4
_MEASURE_S: Final = 3.0
_MEASURE_SHARE: Final = 0.05
# What is planned with, of the budget: machines have other work too.
_PLANNED_SHARE: Final = 0.97
# An evaluation's forward pass costs about a third of a training step's passes.
_FORWARD_SHARE: Final = 0.35
# How often it is looked whether the planned steps still fit, as a share of the budget.
_REVIEW_SHARE: Final = 0.04
# Over so many looks the speed is taken.
_LOOKS: Final = 4
# They do while the run would end before this many budgets.
_LATE: Final = 1.1
# Steps are given back once they are this share of what was planned.
_GIVEN_BACK: Final = 0.05
# A run that is over its budget by more ends at once, wherever its schedule is.
OVERRUN: Final = 1.15
# The last evaluation: over so many tokens, but of a budget's time at most about this share.
FINAL_TOKENS_MAX: Final = 2**18
_FINAL_TOKENS_MIN: Final = 2**13
_FINAL_SHARE: Final = 0.1
# Warm-up where the specification doesn't say: at most a tenth of the run.
WARMUP: Final = 100
_WARMUP_SHARE: Final = 0.1


def learning_rate(
    spec: TrainSpec, step: int, total: int | None, planned_at: int, fit: Fit | None = None
) -> float:
    """The rate of step number `step` (from 0) of `total`.

    Linear warm-up, then half a cosine from the peak to the minimum (Loshchilov and Hutter, "SGDR",
    2016). Before a time budget has become a number of steps (the first `planned_at` ones) the end
    isn't known, and the rate rises as in a long run; from there on it rises evenly to the peak.
    fit: the way to an earlier end, for steps from `fit.at` on; the rate makes no jump there.
    """
    peak, low = spec.learning_rate, spec.lowest_rate
    first = spec.warmup if spec.warmup is not None else WARMUP
    if total is None or step < planned_at:
        return peak * min(1.0, (step + 1) / max(1, first))
    warmup = _warmup(spec, total, planned_at)
    if step < warmup:
        begun = planned_at / first
        return peak * (begun + (1 - begun) * (step + 1 - planned_at) / (warmup - planned_at))
    share = _share(step, total, warmup, fit)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * share))


def _share(step: int, total: int, warmup: int, fit: Fit | None) -> float:
    """How much of the cosine is behind a run, from 0 to 1."""
    if fit is None:
        return min(1.0, (step - warmup) / max(1, total - warmup))
    return min(1.0, fit.share + (1 - fit.share) * (step - fit.at) / max(1, fit.steps - fit.at))


def _warmup(spec: TrainSpec, total: int, planned_at: int) -> int:
    """Steps of warm-up: as specified; else a tenth, and as long again as it took to plan."""
    if spec.warmup is not None:
        return spec.warmup
    return min(WARMUP, max(2 * planned_at, int(total * _WARMUP_SHARE)))


def steps_wanted(spec: TrainSpec, samples_per_epoch: int) -> int:
    """Steps that the specification asks for without regard to a time budget."""
    if spec.steps is not None:
        return spec.steps
    samples = spec.epochs * samples_per_epoch
    return max(1, math.ceil(samples / (spec.batch_size * spec.accumulate)))


def final_tokens(spec: TrainSpec, tokens_per_s: float | None) -> int:
    """Held-out tokens that the finished model is measured on, at a training speed."""
    if spec.time_budget_s is None or tokens_per_s is None:
        return FINAL_TOKENS_MAX
    fit = int(_FINAL_SHARE * spec.time_budget_s * tokens_per_s / _FORWARD_SHARE)
    return min(FINAL_TOKENS_MAX, max(_FINAL_TOKENS_MIN, fit))


class Pace:
    """Turns a time budget into a number of steps, and keeps a run near its budget.

    The number comes from the speed of the first steps. A machine may become slower afterwards: then
    the run is shortened and its schedule brought to its end in time, but never lengthened beyond
    what was planned, so that a run at an even speed has the planned steps.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self._spec = spec
        self._seconds: list[float] = []
        # Steps and seconds at the last looks.
        self._marks: deque[tuple[int, float]] = deque(maxlen=1 + _LOOKS)

    def step_took(self, seconds: float) -> None:
        """One step took this long."""
        self._seconds.append(seconds)

    def plan(self, wanted: int, done: int, used_s: float) -> int | None:
        """Total steps that fit the budget; None until enough was measured.

        At most `wanted`, at least `steps_min` of the specification.
        """
        budget_s = self._spec.time_budget_s
        if budget_s is None:
            return wanted
        measured = self._seconds[_UNMEASURED:]
        enough_s = min(_MEASURE_S, _MEASURE_SHARE * budget_s)
        if (
            done < wanted
            and used_s < budget_s
            and (len(measured) < _MEASURED_MIN or sum(measured) < enough_s)
        ):
            return None
        step_s = sum(measured) / len(measured) if measured else used_s / max(1, done)
        micro_s = step_s / self._spec.accumulate
        evaluation_s = self._spec.eval_batches * micro_s * _FORWARD_SHARE
        each_s = step_s + evaluation_s / self._spec.eval_every
        more = int((_PLANNED_SHARE * budget_s - used_s) / each_s)
        return max(done, min(wanted, max(done + more, self._spec.steps_min)))

    def fit_again(self, plan: Plan, done: int, used_s: float) -> Fit | None:
        """Another end for a planned run; None while the one that it has is right.

        1. A look after each _REVIEW_SHARE of the budget; and none during the warm-up, where there
           is no way to an earlier end yet.
        2. As many steps more as fit what is left of the budget, at the speed over the last _LOOKS
           of them: the last alone makes the end jump to and fro on a machine with other work. No
           more than planned, no less than `steps_min`.
        3. It is shortened when it would end later than _LATE budgets, and gets steps back when
           those are a good part of what was planned.
        """
        budget_s, last = self._spec.time_budget_s, plan.last
        if budget_s is None or plan.steps is None or last is None:
            return None
        if not self._marks:
            self._marks.append((done, used_s))
        marked, marked_s = self._marks[-1]
        if done == marked or used_s - marked_s < _REVIEW_SHARE * budget_s:  # 1
            return None
        self._marks.append((done, used_s))
        warmup = _warmup(self._spec, plan.steps, plan.planned_at)
        if done < warmup or done >= last:
            return None
        marked, marked_s = self._marks[0]
        each_s = (used_s - marked_s) / (done - marked)
        more = max(1, int((_PLANNED_SHARE * budget_s - used_s) / each_s))  # 2
        steps = min(plan.steps, max(done + more, self._spec.steps_min))
        late = used_s + (last - done) * each_s > _LATE * budget_s  # 3
        if not (late and steps < last) and steps - last < max(1, _GIVEN_BACK * plan.steps):
            return None
        return Fit(at=done, share=_share(done, plan.steps, warmup, plan.fit), steps=steps)

    def is_over(self, done: int, used_s: float) -> bool:
        """Whether the budget is so long over that the run must end before its planned steps."""
        budget_s = self._spec.time_budget_s
        if budget_s is None or done < self._spec.steps_min:
            return False
        return used_s > budget_s * OVERRUN
