"""One decision of the kernel, with many tasks queued on many nodes, all of them busy.

No daemon and no store: `Kernel.step` with one event, under a virtual clock. A decision is a
submission, or the end of one running task, in whose place another starts. The kernel may leave a
part of it for steps that follow at once. The longest of its steps is what an event would wait for,
and what has a target; how long all of them take together is measured beside it.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from typing import Final

from benchmarks.report import Row, compare, say, target
from zenos.core import events as ev
from zenos.core.actions import Action, StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, TrainSpec
from zenos.core.task import Outcome, Principal, TaskSpec
from zenos.kernel.step import Kernel
from zenos.kernel.supervision import EXIT_SUSPENDED

DECISION_MS_MAX: Final = 1.0
TASK_BYTES_MAX: Final = 2000
GIB: Final = 1024**3
GPUS: Final = 8
USERS: Final = 20
MEASURED: Final = 20_000  # tasks whose memory is counted, at most
PRIORITIES: Final = (25, 50, 50, 50, 75)
# What tasks of the Philly trace ask for, and how often.
WANTS: Final = ((1, 80), (2, 8), (4, 8), (8, 4))
# From a minute to two weeks: what users say of their run times.
EXPECTED_S: Final = tuple(60.0 * 2**n for n in range(15))
SIZES: Final = ((1_000, 100), (10_000, 1_000), (100_000, 10_000), (1_000_000, 10_000))


class Cluster:
    """A kernel with `nodes` full nodes and `queued` waiting tasks."""

    def __init__(self, queued: int, nodes: int, seed: int = 1) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same world each time
        self.kernel = Kernel(Config(ended_tasks_kept=1000))
        self.now, self.wake = 0.0, math.inf
        self.running: list[tuple[str, int]] = []
        self.starting: list[tuple[str, int]] = []
        capacity = Resources(cpu=64_000, gpu=GPUS * 1000, memory=512 * GIB)
        made = (Node(name=f"n{n}", capacity=capacity, gpus=GPUS) for n in range(nodes))
        self.step([ev.NodeUp(node=node) for node in made])
        batch = max(200, nodes)
        while len(self.kernel.state.scheduler.queue) < 100:
            self.advance([self.submission() for _ in range(batch)])
        gc.collect()
        tracemalloc.start()  # it makes all slower, so for the first ones only
        before, held = len(self.kernel.state.scheduler.queue), tracemalloc.get_traced_memory()[0]
        self.advance([self.submission() for _ in range(min(queued, MEASURED))])
        # What the last step has changed, and what nobody has any more, is no part of it.
        self.kernel.state.begin(self.now)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - held
        self.bytes_each = grown / (len(self.kernel.state.scheduler.queue) - before)
        tracemalloc.stop()
        while (left := queued - len(self.kernel.state.scheduler.queue)) > 0:
            self.advance([self.submission() for _ in range(min(left, 5_000))])

    def submission(self) -> ev.Event:
        """A training as somebody would submit it: what it asks for is its own, as on the wire."""
        draw = self.random
        gpus = draw.choices([gpus for gpus, _ in WANTS], [often for _, often in WANTS])[0]
        spec = TaskSpec(
            work=TrainSpec(model="m", arch="llama-nano", data=DataSpec(paths=["/data"])),
            resources=Resources(cpu=4000 * gpus, gpu=1000 * gpus, memory=32 * GIB * gpus),
            priority=draw.choice(PRIORITIES),
            expected_s=draw.choice(EXPECTED_S),
        )
        return ev.Submit(
            request=1, spec=spec, principal=Principal(user=f"u{draw.randrange(USERS)}")
        )

    def advance(self, events: list[ev.Event]) -> None:
        """One step a second later, and those that follow at once: workers start, save and end."""
        self.now += 1.0
        self.follow(self.step(events))

    def follow(self, actions: list[Action]) -> None:
        """What workers do that were told to start, or to save and end."""
        while actions or self.wake <= self.now:
            events: list[ev.Event] = []
            for action in actions:
                if isinstance(action, StartWorker):
                    task, generation = action.task.id, action.task.generation
                    self.running.append((task, generation))
                    events.append(ev.WorkerStarted(task=task, generation=generation, pid=1))
                elif isinstance(action, StopWorker):
                    events.append(_exited(action.task, action.generation, EXIT_SUSPENDED))
            actions = self.step(events) if events or self.wake <= self.now else []

    def step(self, events: list[ev.Event]) -> list[Action]:
        """The actions of one step."""
        _, actions, self.wake = self.kernel.step(events, self.now)
        return actions

    def timed_ms(self, events: list[ev.Event]) -> list[float]:
        """One decision, a second later: its first step, and those that follow at once.

        What workers do then is done, and not counted.
        """
        self.now += 1.0
        actions: list[Action] = []
        took: list[float] = []
        while not took or self.wake <= self.now:
            begun = time.perf_counter()
            actions += self.step(events if not took else [])
            took.append(1000 * (time.perf_counter() - begun))
        self.follow(actions)
        return took

    def decision_ms(self) -> list[float]:
        """A submission, or the end of a running task: its steps."""
        if self.random.random() < 0.5:
            return self.timed_ms([self.submission()])
        while True:
            place = self.random.randrange(len(self.running))
            self.running[place], self.running[-1] = self.running[-1], self.running[place]
            task_id, generation = self.running.pop()
            task = self.kernel.state.tasks.get(task_id)
            if task is not None and task.allocation and task.generation == generation:
                return self.timed_ms([_exited(task_id, generation, 0)])


def _exited(task: str, generation: int, code: int) -> ev.Event:
    return ev.WorkerExited(task=task, generation=generation, outcome=Outcome(exit_code=code))


def decision_rows(decisions: Sequence[Sequence[float]], where: str) -> list[Row]:
    """Of decisions, each with the milliseconds of its steps: the longest step, and all of them."""
    longest, whole = [max(steps) for steps in decisions], [sum(steps) for steps in decisions]
    p99, whole_p99 = (statistics.quantiles(times, n=100)[98] for times in (longest, whole))
    reach = f"≤ {DECISION_MS_MAX:g} ms"
    row = compare(f"one decision, {where}", "ms", longest)
    slow = compare(f"one decision, 99 of 100, {where}", "ms", [p99])
    return [
        target(row, reach, row.ours.median <= DECISION_MS_MAX),
        target(slow, reach, p99 <= DECISION_MS_MAX),
        compare(f"one decision in all its steps, {where}", "ms", whole),
        compare(f"one decision in all its steps, 99 of 100, {where}", "ms", [whole_p99]),
    ]


def rows(*, quick: bool) -> list[Row]:
    """Milliseconds of a decision, median and 99 % quantile; bytes of a queued task."""
    made: list[Row] = []
    for queued, nodes in SIZES[:2] if quick else SIZES:
        begun = time.perf_counter()
        cluster = Cluster(queued, nodes)
        say(f"   {queued:,} queued on {nodes:,} nodes: {time.perf_counter() - begun:.0f} s to make")
        for _ in range(20 if quick else 500):
            cluster.decision_ms()
        decisions = [cluster.decision_ms() for _ in range(100 if quick else 2000)]
        where = f"{queued:,} queued, {nodes:,} nodes of {GPUS} GPUs"
        made += decision_rows(decisions, where)
        row = compare(f"memory of a queued task, {where}", "bytes", [cluster.bytes_each])
        made.append(target(row, f"≤ {TASK_BYTES_MAX} bytes", cluster.bytes_each <= TASK_BYTES_MAX))
    return made
