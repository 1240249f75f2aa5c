"""Ageing and score: the formulas, one for tasks and for threads.

    T = waited / expected remaining time      P(T) = 1 / (1 + 1/T) = T / (1 + T)
    score = priority + ageing · P(T)

Among equal priorities the order by score is that of 1 + T = (waited + expected) / expected: the
highest response ratio next (P. Brinch Hansen, "An analysis of response ratio scheduling", 1971).
"""

from __future__ import annotations

from zenos.core import limits
from zenos.core.resources import Resources


def p_of(waited_s: float, expected_s: float) -> float:
    """P(T) in [0, 1): 0 at submission, growing towards 1 with the time waited."""
    waited = max(waited_s, 0.0)
    return waited / (waited + max(expected_s, 1e-9))


def score(priority: int, ageing: float, waited_s: float, expected_s: float) -> float:
    """A waiting task's score; higher is served first."""
    return priority + ageing * p_of(waited_s, expected_s)


def remaining_s(expected_s: float, ran_s: float) -> float:
    """Expected remaining run time in seconds.

    Once a task has run longer than expected, as long again as it has run: run times are
    heavy-tailed (Harchol-Balter and Downey, 1997: the median remaining time equals the age).
    """
    return expected_s - ran_s if ran_s < expected_s else max(ran_s, 1e-3)


def execution_s(task_s: float, contention: float) -> float:
    """T_exec = T_task · (1 + contention); contention is the share of the CPUs in use, 0 to 1."""
    return task_s * (1.0 + contention)


def wait_s_max(priority: int, base_s: float) -> float:
    """How long a task of this priority waits before it is overdue.

    `base_s` at normal priority, half of it 25 points higher, twice of it 25 points lower.
    """
    steps: float = (limits.PRIORITY_NORMAL - priority) / 25
    return base_s * float(2.0**steps)


def service_s(ran_s: float, resources: Resources) -> float:
    """Device-seconds that a task has had: GPUs times seconds, or cores where it has no GPU.

    Size counts as well as time, so that ten short GPUs-hours do not pass for one ("2D-LAS": J. Gu
    et al., "Tiresias: a GPU cluster manager for distributed deep learning", 2019).
    """
    return ran_s * (resources.gpu or resources.cpu) / 1000
