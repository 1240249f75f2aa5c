"""The real kernel under a virtual clock: jobs of a trace, and workers that only take time."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import msgspec

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import Action, Reply, StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, ProgramSpec, TrainSpec
from zenos.core.task import Deployment, Outcome, Principal, Task, TaskSpec
from zenos.core.wording import counted
from zenos.kernel.step import Kernel
from zenos.kernel.supervision import EXIT_SUSPENDED
from zenos.simulate.cluster import workers_of
from zenos.simulate.failures import Failure, Failures
from zenos.simulate.report import Meter, Ran
from zenos.simulate.serving import Serving
from zenos.simulate.traces import Job

TRAIN: Final = TrainSpec(model="job", arch="llama-nano", data=DataSpec(paths=["/trace"]))
PROGRAM: Final = ProgramSpec(argv=["job"])
CHECKPOINT_S: Final = 1800.0
FAILURES_MAX: Final = 900  # below what a program's retries allow


class _Spec(TaskSpec, frozen=True, kw_only=True):
    """A job of a trace wants what it wants, also more workers than a training here may have."""

    def check(self) -> None:
        """All that can be wrong with it was found as the trace was read."""


class _Run(msgspec.Struct, gc=False):
    """A job's worker: of which generation, since when, and from when on it works."""

    generation: int
    since_s: float
    works_from_s: float


class World:
    """A cluster of virtual workers. They start at once, work, and can be told to stop.

    restart_s: seconds that a job loses when it goes on after a suspension or a failure, for saving
    and for coming back: it holds its GPUs and does no work. failures: which nodes fail; with one
    of them a training goes back to its last checkpoint, of which it makes one in every
    checkpoint_s seconds of work, and a `run` to its beginning. serving: requests that come
    meanwhile.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        nodes: Sequence[Node],
        config: Config,
        meter: Meter,
        restart_s: float,
        failures: Failures | None = None,
        checkpoint_s: float = CHECKPOINT_S,
        serving: Serving | None = None,
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
        self._failures = failures or Failures()
        self._checkpoint_s = checkpoint_s
        self._nodes = {node.name: node for node in nodes}
        self.node_failures = 0
        self._node_gpu = max(node.capacity.gpu for node in nodes)  # what is more is a gang
        self._done = 0
        self._serving = serving
        self._step([ev.NodeUp(node=node) for node in nodes], 0.0)
        for failure in self._failures.stated:
            self._put_failure(failure)
        for name in self._nodes:
            self._draw(name, 0.0)
        if serving is not None:
            self._step([serving.deploy()], 0.0)

    def run(self, progress: Callable[[int], None]) -> list[Ran]:
        """Until every job has ended, and every request. `progress` hears how many jobs have."""
        submitted, wake, serving = 0, math.inf, self._serving
        while self._done < len(self.jobs) or (serving is not None and not serving.done):
            next_s = self.jobs[submitted].submit_s if submitted < len(self.jobs) else math.inf
            asked_s = serving.next_s if serving is not None else math.inf
            now = min(next_s, self._coming[0][0] if self._coming else math.inf, asked_s, wake)
            if math.isinf(now):
                self._stuck()
            events: list[ev.Event] = []
            before = self._done
            while self._coming and self._coming[0][0] <= now:
                event = heapq.heappop(self._coming)[2]
                if isinstance(event, ev.NodeDown):
                    self._lose(event.node, now)
                elif isinstance(event, ev.NodeUp):
                    self._draw(event.node.name, now)
                if not isinstance(event, ev.WorkerExited) or self._ends(event, now):
                    events.append(event)
            while submitted < len(self.jobs) and self.jobs[submitted].submit_s <= now:
                events.append(self._submit(submitted))
                submitted += 1
            if serving is not None:
                events += serving.due(self.kernel.state, now)
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
        if self._serving is not None:
            self._serving.settle(self.kernel.state, now)
        return wake

    def _stuck(self) -> NoReturn:
        left = len(self.jobs) - self._done
        if self._serving is not None:
            raise InvalidError(
                f"cannot go on: {counted(left, 'job')} never had room beside the replicas that "
                "stay; give more nodes, or fewer min_replicas"
            )
        raise RuntimeError(f"cannot go on: {left} jobs never start")

    def _submit(self, number: int) -> ev.Submit:
        job = self.jobs[number]
        key = (job.gpu, job.priority, job.kind)
        spec = self._specs.get(key)
        if spec is None:
            train = TRAIN
            if job.gpu > self._node_gpu:
                train = msgspec.structs.replace(TRAIN, workers=workers_of(job))
            spec = self._specs[key] = _Spec(
                work=train if job.kind == "train" else PROGRAM,
                resources=Resources(gpu=job.gpu),
                priority=job.priority,
                retries=limits.RETRIES_MAX if self._failures else 0,
            )
        return ev.Submit(request=number, spec=spec, principal=Principal(user=job.user))

    def _perform(self, action: Action, now: float) -> None:
        match action:
            case Reply(request=number, result=Task() as task):
                self._number[task.id] = number
            case Reply(result=Deployment()):
                pass
            case Reply(result=error):
                raise RuntimeError(f"cannot simulate: {error}")
            case StartWorker(task=task) if self._serving is not None and task.kind == "serve":
                self._serving.start(task, now)
            case StartWorker(task=task):
                self._start(task, now)
            case StopWorker(save=True):
                self._suspend(action, now)
            case StopWorker() if self._serving is not None:
                self._serving.stop(action.task, action.generation, action.grace_s, now)
            case _:
                pass

    def _start(self, task: Task, now: float) -> None:
        number = self._number[task.id]
        ran = self.ran[number]
        lost_s = self._restart_s if ran.suspensions or ran.failures else 0.0
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

    # -- nodes that fail

    def _put_failure(self, failure: Failure) -> None:
        self._put(failure.at_s, ev.NodeDown(node=failure.node, reason="it has failed"))
        back = ev.NodeUp(node=self._nodes[failure.node], running=())
        self._put(failure.at_s + failure.for_s, back)

    def _draw(self, node: str, now: float) -> None:
        failure = self._failures.following(node, now)
        if failure is not None:
            self._put_failure(failure)

    def _lose(self, node: str, now: float) -> None:
        """What ran there has not been done since the last checkpoint."""
        self.node_failures += 1
        for task_id in self.kernel.state.on_node.get(node, ()):
            number = self._number.get(task_id)
            if number is None:
                continue  # a replica: the kernel has it killed
            run = self._runs.pop(number, None)
            if run is None:
                continue  # it has just ended
            job, ran = self.jobs[number], self.ran[number]
            worked_s = max(0.0, now - run.works_from_s)
            saved_s = 0.0
            if job.kind == "train":
                saved_s = worked_s // self._checkpoint_s * self._checkpoint_s
            ran.failures += 1
            ran.redone_s += worked_s - saved_s
            ran.lost_s -= max(0.0, run.works_from_s - now)
            self._left[number] -= saved_s
            self.meter.add(run.works_from_s, run.works_from_s + saved_s, job.gpu / 1000)
            if ran.failures > FAILURES_MAX:
                raise InvalidError(
                    f"cannot go on: job {number + 1} has lost its nodes {FAILURES_MAX} times; let "
                    "them fail less often, or checkpoint more often"
                )

    def _put(self, at: float, event: ev.Event) -> None:
        heapq.heappush(self._coming, (at, next(self._order), event))


def _exited(task: str, generation: int, code: int) -> ev.WorkerExited:
    return ev.WorkerExited(task=task, generation=generation, outcome=Outcome(exit_code=code))
