"""Policies to compare with, as the literature has them.

They suspend and resume for nothing, which is in their favour.

fifo: in order of submission, nobody passes anybody.
easy: backfill with true run times (D. Lifka, "The ANL/IBM SP scheduling system", 1995): the first
    that doesn't fit has a reservation, others go ahead when they don't delay it.
srtf: shortest remaining time first, with true run times, preemptive.
las: least attained service first (L. Kleinrock, 1967), preemptive, in classes that grow by a factor
    of four from ten minutes on, so that equals don't take turns for ever.

fifo and easy place jobs on nodes as the kernel does, a gang on as few as there can be. srtf and las
count GPUs and know no nodes, so none is ever left over in pieces: that is in their favour too.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.task import Allocation
from zenos.kernel.entries import Shape
from zenos.kernel.resource_manager import ResourceManager
from zenos.simulate.cluster import workers_of
from zenos.simulate.report import Meter, Ran
from zenos.simulate.traces import Job

POLICIES: Final = ("fifo", "easy", "srtf", "las")
LAS_FIRST_S: Final = 600.0
LAS_FACTOR: Final = 4.0

Progress = Callable[[int], None]


def run(
    policy: str, jobs: Sequence[Job], nodes: Sequence[Node], meter: Meter, progress: Progress
) -> list[Ran]:
    """Run jobs (in order of submission) on these nodes under one of POLICIES."""
    if policy in ("fifo", "easy"):
        return _in_order(jobs, _Places(jobs, nodes), meter, progress, backfill=policy == "easy")
    gpu = sum(node.capacity.gpu for node in nodes)
    return _preemptive(jobs, gpu, meter, progress, by_age=policy == "las")


class _Places:
    """Which job lies on which nodes."""

    def __init__(self, jobs: Sequence[Job], nodes: Sequence[Node]) -> None:
        self._resources = ResourceManager()
        for node in nodes:
            self._resources.add(node, [])
        self._jobs = jobs
        self._held: dict[int, Allocation] = {}

    @property
    def are_full(self) -> bool:
        """Whether nothing at all is free."""
        return self._resources.used().gpu >= self._resources.capacity().gpu

    def take(self, number: int) -> bool:
        """Place a job, if there is room."""
        request, workers = self._shape(number)
        allocation = self._resources.allocate(request, workers=workers)
        if allocation is None:
            return False
        self._held[number] = allocation
        return True

    def give(self, number: int) -> None:
        """Give its place back."""
        self._resources.release(self._held.pop(number))

    def fits_without(self, first: int, ended: Sequence[int]) -> bool:
        """Whether there would be room for the job `first` if those jobs had ended."""
        for number in ended:
            self._resources.release(self._held[number])
        fits = self._resources.fits(self._shape(first), {})
        for number in ended:
            self._resources.occupy(self._held[number])
        return fits

    def _shape(self, number: int) -> Shape:
        job = self._jobs[number]
        return Shape(Resources(gpu=job.gpu), workers_of(job))

    def awaited(self, first: int, running: Iterable[int]) -> list[int]:
        """Which of `running`, in their order, have to end until there is room for `first`."""
        ended: list[int] = []
        for number in running:
            self._resources.release(self._held[number])
            ended.append(number)
            if self._resources.fits(self._shape(first), {}):
                break
        for number in ended:
            self._resources.occupy(self._held[number])
        return ended


def _in_order(
    jobs: Sequence[Job], places: _Places, meter: Meter, progress: Progress, *, backfill: bool
) -> list[Ran]:
    ran = [Ran() for _ in jobs]
    running: list[tuple[float, int]] = []  # a heap of ends
    waiting: deque[int] = deque()
    coming, done = 0, 0

    def start(number: int, now: float) -> None:
        job = jobs[number]
        heapq.heappush(running, (now + job.duration_s, number))
        meter.add(now, now + job.duration_s, job.gpu / 1000)

    while coming < len(jobs) or running:
        now = min(
            jobs[coming].submit_s if coming < len(jobs) else math.inf,
            running[0][0] if running else math.inf,
        )
        while running and running[0][0] <= now:
            _, number = heapq.heappop(running)
            places.give(number)
            ran[number].done_s = now
            done += 1
            progress(done)
        while coming < len(jobs) and jobs[coming].submit_s <= now:
            waiting.append(coming)
            coming += 1
        while waiting and places.take(waiting[0]):
            start(waiting.popleft(), now)
        if backfill and len(waiting) > 1 and not places.are_full:
            waiting = _backfill(jobs, waiting, running, places, now, start)
    return ran


def _backfill(
    jobs: Sequence[Job],
    waiting: deque[int],
    running: Sequence[tuple[float, int]],
    places: _Places,
    now: float,
    start: Callable[[int, float], None],
) -> deque[int]:
    """Start those behind the first that don't delay it; the ones that are left, in order.

    1. The first one's time is when enough of the running have ended.
    2. Another may start when it fits and ends by then, or leaves the first its room at that time.
    3. What one was refused for, others that want as much are: there is only ever less room.
    """
    ends = sorted(running)
    first = waiting[0]
    awaited = places.awaited(first, (number for _, number in ends))  # 1
    shadow_s = ends[len(awaited) - 1][0] if awaited else now
    left: deque[int] = deque([waiting.popleft()])
    without_room: set[tuple[int, str]] = set()
    in_the_way: set[tuple[int, str]] = set()
    for number in waiting:  # 2
        job = jobs[number]
        wanted, in_time = (job.gpu, job.kind), now + job.duration_s <= shadow_s
        if wanted in without_room or (not in_time and wanted in in_the_way):  # 3
            left.append(number)
        elif not places.take(number):
            without_room.add(wanted)
            left.append(number)
        elif in_time:
            awaited.append(number)
            start(number, now)
        elif places.fits_without(first, awaited):
            start(number, now)
        else:
            places.give(number)
            in_the_way.add(wanted)
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
