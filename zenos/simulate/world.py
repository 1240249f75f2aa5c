"""The real kernel under a virtual clock: jobs of a trace, and workers that only take time."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from zenos.core import events as ev
from zenos.core.actions import Action, Reply, StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, ProgramSpec, TrainSpec
from zenos.core.task import Node, Outcome, Principal, Task, TaskSpec
from zenos.kernel.step import Kernel
from zenos.kernel.supervision import EXIT_SUSPENDED
from zenos.simulate.report import Meter, Ran
from zenos.simulate.traces import Job

TRAIN: Final = TrainSpec(model="job", arch="llama-nano", data=DataSpec(paths=["/trace"]))
PROGRAM: Final = ProgramSpec(argv=["job"])


class _Run(msgspec.Struct, gc=False):
    """A job's worker: of which generation, since when, and from when on it works."""

    generation: int
    since_s: float
    works_from_s: float


class World:
    """A cluster of virtual workers. They start at once, work, and can be told to stop.

    restart_s: seconds that a job loses when it goes on after a suspension, for saving and for
    coming back: it holds its GPUs and does no work.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        nodes: Sequence[Node],
        config: Config,
        meter: Meter,
        restart_s: float,
    ) -> None:
        self.jobs = jobs
        self.ran = [Ran() for _ in jobs]
        self.meter = meter
        self.kernel = Kernel(config)
        self.steps = 0
        self.step_s = 0.0
        self._restart_s = restart_s
        self._left = [job.duration_s for job in jobs]
        self._runs: dict[int, _Run] = {}
        self._number: dict[str, int] = {}  # of a task's job
        self._order = itertools.count()
        self._coming: list[tuple[float, int, ev.Event]] = []
        self._specs: dict[tuple[int, int, str], TaskSpec] = {}
        self._done = 0
        self._step([ev.NodeUp(node=node) for node in nodes], 0.0)

    def run(self, progress: Callable[[int], None]) -> list[Ran]:
        """Until every job has ended. `progress` hears how many have."""
        submitted, wake = 0, math.inf
        while self._done < len(self.jobs):
            next_s = self.jobs[submitted].submit_s if submitted < len(self.jobs) else math.inf
            now = min(next_s, self._coming[0][0] if self._coming else math.inf, wake)
            if math.isinf(now):
                raise RuntimeError(f"cannot go on: {len(self.jobs) - self._done} jobs never start")
            events: list[ev.Event] = []
            before = self._done
            while self._coming and self._coming[0][0] <= now:
                event = heapq.heappop(self._coming)[2]
                if not isinstance(event, ev.WorkerExited) or self._ends(event, now):
                    events.append(event)
            while submitted < len(self.jobs) and self.jobs[submitted].submit_s <= now:
                events.append(self._submit(submitted))
                submitted += 1
            wake = self._step(events, now)
            if self._done != before:
                progress(self._done)
        return self.ran

    def _step(self, events: list[ev.Event], now: float) -> float:
        began = time.perf_counter()
        _, actions, wake = self.kernel.step(events, now)
        self.step_s += time.perf_counter() - began
        self.steps += 1
        for action in actions:
            self._perform(action, now)
        return wake

    def _submit(self, number: int) -> ev.Submit:
        job = self.jobs[number]
        key = (job.gpu, job.priority, job.kind)
        spec = self._specs.get(key)
        if spec is None:
            spec = self._specs[key] = TaskSpec(
                work=TRAIN if job.kind == "train" else PROGRAM,
                resources=Resources(gpu=job.gpu),
                priority=job.priority,
            )
        return ev.Submit(request=number, spec=spec, principal=Principal(user=job.user))

    def _perform(self, action: Action, now: float) -> None:
        match action:
            case Reply(request=number, result=Task() as task):
                self._number[task.id] = number
            case Reply(result=error):
                raise RuntimeError(f"cannot simulate: {error}")
            case StartWorker(task=task):
                self._start(task, now)
            case StopWorker(save=True):
                self._suspend(action, now)
            case _:
                pass

    def _start(self, task: Task, now: float) -> None:
        number = self._number[task.id]
        ran = self.ran[number]
        lost_s = self._restart_s if ran.suspensions else 0.0
        ran.lost_s += lost_s
        self._runs[number] = _Run(task.generation, now, now + lost_s)
        self._put(now, ev.WorkerStarted(task=task.id, generation=task.generation, pid=1))
        self._put(now + lost_s + self._left[number], _exited(task.id, task.generation, 0))

    def _suspend(self, action: StopWorker, now: float) -> None:
        """What it had done is saved; what it has lost, in coming back from before, stays lost."""
        number = self._number[action.task]
        run = self._runs.get(number)
        if run is None or run.generation != action.generation:
            return
        self._account(number, run, now)
        ran = self.ran[number]
        ran.lost_s -= max(0.0, run.works_from_s - now)
        ran.suspensions += 1
        self._put(now, _exited(action.task, action.generation, EXIT_SUSPENDED))

    def _ends(self, event: ev.WorkerExited, now: float) -> bool:
        """Whether this worker still runs: one that was suspended does not end a second time."""
        number = self._number[event.task]
        run = self._runs.get(number)
        if event.outcome.exit_code == EXIT_SUSPENDED:
            return True
        if run is None or run.generation != event.generation:
            return False
        self._account(number, run, now)
        self.ran[number].done_s = now
        self._done += 1
        return True

    def _account(self, number: int, run: _Run, now: float) -> None:
        worked_s = max(0.0, now - run.works_from_s)
        self._left[number] = max(0.0, self._left[number] - worked_s)
        self.meter.add(run.works_from_s, max(now, run.works_from_s), self.jobs[number].gpu / 1000)
        del self._runs[number]

    def _put(self, at: float, event: ev.Event) -> None:
        heapq.heappush(self._coming, (at, next(self._order), event))


def _exited(task: str, generation: int, code: int) -> ev.WorkerExited:
    return ev.WorkerExited(task=task, generation=generation, outcome=Outcome(exit_code=code))
