"""Policies to compare with, as the literature has them, on one pool of GPUs.

They count GPUs and know no nodes, so none is ever left over in pieces, and they suspend and resume
for nothing: both are in their favour.

fifo: in order of submission, nobody passes anybody.
easy: backfill with true run times (D. Lifka, "The ANL/IBM SP scheduling system", 1995): the first
    that doesn't fit has a reservation, others go ahead when they don't delay it.
srtf: shortest remaining time first, with true run times, preemptive.
las: least attained service first (L. Kleinrock, 1967), preemptive, in classes that grow by a factor
    of four from ten minutes on, so that equals don't take turns for ever.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from zenos.simulate.report import Meter, Ran
from zenos.simulate.traces import Job

POLICIES: Final = ("fifo", "easy", "srtf", "las")
LAS_FIRST_S: Final = 600.0
LAS_FACTOR: Final = 4.0

Progress = Callable[[int], None]


def run(policy: str, jobs: Sequence[Job], gpu: int, meter: Meter, progress: Progress) -> list[Ran]:
    """Run jobs (in order of submission) on `gpu` milli-GPUs under one of POLICIES."""
    if policy in ("fifo", "easy"):
        return _in_order(jobs, gpu, meter, progress, backfill=policy == "easy")
    return _preemptive(jobs, gpu, meter, progress, by_age=policy == "las")


def _in_order(
    jobs: Sequence[Job], gpu: int, meter: Meter, progress: Progress, *, backfill: bool
) -> list[Ran]:
    ran = [Ran() for _ in jobs]
    running: list[tuple[float, int]] = []  # a heap of ends
    waiting: deque[int] = deque()
    free, coming, done = gpu, 0, 0

    def start(number: int, now: float) -> None:
        nonlocal free
        job = jobs[number]
        free -= job.gpu
        heapq.heappush(running, (now + job.duration_s, number))
        meter.add(now, now + job.duration_s, job.gpu / 1000)

    while coming < len(jobs) or running:
        now = min(
            jobs[coming].submit_s if coming < len(jobs) else math.inf,
            running[0][0] if running else math.inf,
        )
        while running and running[0][0] <= now:
            _, number = heapq.heappop(running)
            free += jobs[number].gpu
            ran[number].done_s = now
            done += 1
            progress(done)
        while coming < len(jobs) and jobs[coming].submit_s <= now:
            waiting.append(coming)
            coming += 1
        while waiting and jobs[waiting[0]].gpu <= free:
            start(waiting.popleft(), now)
        if backfill and waiting and free:
            waiting = _backfill(jobs, waiting, running, free, now, start)
    return ran


def _backfill(
    jobs: Sequence[Job],
    waiting: deque[int],
    running: Sequence[tuple[float, int]],
    free: int,
    now: float,
    start: Callable[[int, float], None],
) -> deque[int]:
    """Start those behind the first that don't delay it; the ones that are left, in order.

    1. The first one's time is when enough of the running have ended; what is then left is extra.
    2. Another may start when it fits and ends by then, or fits in what is extra.
    """
    need, room, shadow_s, extra = jobs[waiting[0]].gpu, free, math.inf, 0  # 1
    for end, number in sorted(running):
        room += jobs[number].gpu
        if room >= need:
            shadow_s, extra = end, room - need
            break
    left: deque[int] = deque([waiting.popleft()])
    for number in waiting:  # 2
        job = jobs[number]
        in_time = now + job.duration_s <= shadow_s
        if job.gpu <= free and (in_time or job.gpu <= extra):
            start(number, now)
            free -= job.gpu
            extra -= 0 if in_time else job.gpu
        else:
            left.append(number)
    return left


def _preemptive(
    jobs: Sequence[Job], gpu: int, meter: Meter, progress: Progress, *, by_age: bool
) -> list[Ran]:
    """At each event the first by rank run, as many as fit.

    Between two events only what runs changes: `left`, what each has still to do.
    """
    ran = [Ran() for _ in jobs]
    left = [job.duration_s for job in jobs]
    active: list[int] = []
    running: list[int] = []
    now, coming, done = 0.0, 0, 0

    def rank(number: int) -> tuple[float, int]:
        if by_age:
            return float(_age_class(jobs[number].duration_s - left[number])), number
        return left[number], number

    while coming < len(jobs) or active:
        until = jobs[coming].submit_s if coming < len(jobs) else math.inf
        for number in running:
            until = min(until, now + left[number])
            if by_age:
                until = min(until, now + _to_next_class(jobs[number].duration_s - left[number]))
        for number in running:
            left[number] -= until - now
            meter.add(now, until, jobs[number].gpu / 1000)
        now = until
        for number in [n for n in running if left[n] <= 1e-6]:
            ran[number].done_s = now
            active.remove(number)
            done += 1
            progress(done)
        while coming < len(jobs) and jobs[coming].submit_s <= now:
            active.append(coming)
            coming += 1
        before, running = set(running), _first(jobs, active, gpu, rank)
        for number in before.difference(running):
            if left[number] > 1e-6:
                ran[number].suspensions += 1
    return ran


def _first(
    jobs: Sequence[Job], active: list[int], gpu: int, rank: Callable[[int], tuple[float, int]]
) -> list[int]:
    """The first by rank that fit together; those that don't are passed over."""
    if sum(jobs[number].gpu for number in active) <= gpu:
        return list(active)
    active.sort(key=rank)
    chosen: list[int] = []
    for number in active:
        if jobs[number].gpu <= gpu:
            gpu -= jobs[number].gpu
            chosen.append(number)
            if not gpu:
                break
    return chosen


def _age_class(attained_s: float) -> int:
    if attained_s < LAS_FIRST_S - 1e-6:
        return 0
    return 1 + math.floor(math.log(attained_s / LAS_FIRST_S + 1e-9, LAS_FACTOR))


def _to_next_class(attained_s: float) -> float:
    """Seconds of running until the next class."""
    return max(1e-3, LAS_FIRST_S * LAS_FACTOR ** _age_class(attained_s) - attained_s)
