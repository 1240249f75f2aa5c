"""Ageing and score: the formulas, one for tasks and for threads.

    T = waited / expected remaining time      P(T) = 1 / (1 + 1/T) = T / (1 + T)
    score = priority + ageing · P(T)

Among equal priorities the order by score is that of 1 + T = (waited + expected) / expected: the
highest response ratio next (P. Brinch Hansen, "An analysis of response ratio scheduling", 1971).
"""

from __future__ import annotations

import math

from zenos.core import limits
from zenos.core.resources import Resources


def p_of(waited_s: float, expected_s: float) -> float:
    """P(T) in [0, 1): 0 at submission, growing towards 1 with the time waited."""
    waited = max(waited_s, 0.0)
    return waited / (waited + max(expected_s, 1e-9))


def score(priority: int, ageing: float, waited_s: float, expected_s: float) -> float:
    """A waiting task's score; higher is served first."""
    return priority + ageing * p_of(waited_s, expected_s)


def urgency(deadline: float, expected_s: float, now: float) -> float:
    """Which share of the time that is left until a deadline a task needs, 0 to 1.

    The inverse of the critical ratio, by which job shops order (1: it has to start now). Past that
    it stays 1.
    """
    left_s = deadline - now
    return 1.0 if left_s <= expected_s else max(expected_s, 1e-3) / left_s


def raised(priority: int, deadline: float | None, expected_s: float, now: float) -> int:
    """Points that a deadline adds to a waiting task's priority, in whole steps.

        raised = (100 - priority) · urgency²      in steps of DEADLINE_STEP

    All that is left to 100 when it has to start now, a quarter of it when twice the time it needs
    is left, a hundredth at ten times.
    """
    if deadline is None:
        return 0
    room = limits.PRIORITY_MAX - priority
    share = urgency(deadline, expected_s, now)
    if share >= 1.0:
        return room
    return int(room * share**2 // limits.DEADLINE_STEP * limits.DEADLINE_STEP)


def raised_next(priority: int, deadline: float | None, expected_s: float, points: int) -> float:
    """When a task that is raised by so many points is raised further; infinity for never."""
    room = limits.PRIORITY_MAX - priority
    if deadline is None or points >= room:
        return math.inf
    wanted = min(points // limits.DEADLINE_STEP * limits.DEADLINE_STEP + limits.DEADLINE_STEP, room)
    return deadline - max(expected_s, 1e-3) / math.sqrt(wanted / room)


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
