"""Learning rates, and how many steps a run takes."""

from __future__ import annotations

import math
from typing import Final

from zenos.core.specs import TrainSpec

# Steps at the beginning that are not measured: memory is allocated, kernels are chosen.
_UNMEASURED: Final = 2
_MEASURED_MIN: Final = 4
_MEASURE_S: Final = 3.0
_MEASURE_SHARE: Final = 0.05
# What is planned with, of the budget: machines have other work too.
_PLANNED_SHARE: Final = 0.97
# An evaluation's forward pass costs about a third of a training step's passes.
_FORWARD_SHARE: Final = 0.35
# A run whose machine has become this much slower than planned ends early all the same.
OVERRUN: Final = 1.5
# Warm-up where the specification doesn't say: at most a tenth of the run.
WARMUP: Final = 100
_WARMUP_SHARE: Final = 0.1


def learning_rate(spec: TrainSpec, step: int, total: int | None, planned_at: int) -> float:
    """The rate of step number `step` (from 0) of `total`.

    Linear warm-up, then half a cosine from the peak to the minimum (Loshchilov and Hutter, "SGDR",
    2016). Before a time budget has become a number of steps (the first `planned_at` ones) the end
    isn't known, and the rate rises as in a long run; from there on it rises evenly to the peak.
    """
    peak, low = spec.learning_rate, spec.learning_rate_min
    first = spec.warmup if spec.warmup is not None else WARMUP
    if total is None or step < planned_at:
        return peak * min(1.0, (step + 1) / max(1, first))
    warmup = _warmup(spec, total, planned_at)
    if step < warmup:
        begun = planned_at / first
        return peak * (begun + (1 - begun) * (step + 1 - planned_at) / (warmup - planned_at))
    share = (step - warmup) / max(1, total - warmup)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


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


class Pace:
    """Turns a time budget into a number of steps, from the speed of the first ones."""

    def __init__(self, spec: TrainSpec) -> None:
        self._spec = spec
        self._seconds: list[float] = []

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

    def is_over(self, done: int, used_s: float) -> bool:
        """Whether the budget is so long over that the run must end before its planned steps."""
        budget_s = self._spec.time_budget_s
        if budget_s is None or done < self._spec.steps_min:
            return False
        return used_s > budget_s * OVERRUN
