"""A kernel under a virtual clock, driven by hand. After every step the invariants are checked."""

from __future__ import annotations

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core.actions import (
    MakeRoom,
    PauseWorker,
    Reply,
    ResumeWorker,
    Snapshot,
    StartWorker,
    StopWorker,
)
from zenos.core.arrays import Array, ArraySpec, parse_indices
from zenos.core.batches import Batch
from zenos.core.clock import VirtualClock
from zenos.core.config import Config
from zenos.core.errors import ZenosError
from zenos.core.node import Cordon, Node
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, ProgramSpec, TrainSpec, Work
from zenos.core.task import Deployment, Outcome, Task, TaskSpec
from zenos.kernel.pool import Pool
from zenos.kernel.step import Kernel, Step

PROGRAM = ProgramSpec(argv=["true"])
YIELDING = ProgramSpec(argv=["true"], yields="signals")
TRAIN = TrainSpec(model="m", arch="llama-nano", data=DataSpec(paths=["/data"]))


def node(cpu: float = 2, gpu: int = 2, memory: str = "4GB", name: str = "local") -> Node:
    return Node(
        name=name,
        capacity=Resources.of(cpu=cpu, gpu=gpu, memory=memory),
        gpus=gpu,
        virtual_gpus=True,
    )


def spec(
    work: Work = PROGRAM, cpu: float = 1, gpu: float = 0, memory: str = "1GB", **more: object
) -> TaskSpec:
    resources = Resources.of(cpu=cpu, gpu=gpu, memory=memory)
    return TaskSpec(work=work, resources=resources, **more)  # type: ignore[arg-type]


class Harness:
    """One kernel; `started`, `stopped` and `told` note what it had done."""

    def __init__(
        self, *nodes: Node, config: Config | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.clock = VirtualClock(snapshot.now if snapshot else 1000.0)
        self.config = config or Config()
        self.kernel = Kernel(self.config, snapshot)
        self.started: list[Task] = []
        self.stopped: list[StopWorker] = []
        self.told: list[PauseWorker | ResumeWorker] = []
        self.wanted: list[MakeRoom] = []
        self.steps: list[Step] = []
        self.usage = dict(snapshot.usage) if snapshot else {}  # as a store remembers it
        self._requests = 0
        if not nodes and snapshot is None:
            nodes = (node(),)
        self.step(*(ev.NodeUp(node=n) for n in nodes))

    def step(self, *events: ev.Event) -> Step:
        step = self.kernel.step(list(events), self.clock.now())
        self.kernel.state.check()
        self.steps.append(step)
        self.usage.update(step.changes.usage)
        for account in step.changes.deleted_usage:
            self.usage.pop(account, None)
        for action in step.actions:
            if isinstance(action, StartWorker):
                self.started.append(action.task)
            elif isinstance(action, StopWorker):
                self.stopped.append(action)
            elif isinstance(action, PauseWorker | ResumeWorker):
                self.told.append(action)
            elif isinstance(action, MakeRoom):
                self.wanted.append(action)
        return step

    def ask(self, event: ev.Event) -> Task | Array | Batch | Deployment:
        """Send a request and return its answer, or raise it."""
        for action in self.step(event).actions:
            if isinstance(action, Reply):
                if isinstance(action.result, ZenosError):
                    raise action.result
                assert isinstance(action.result, Task | Array | Batch | Deployment)
                return action.result
        raise AssertionError("no answer")

    def submit(self, task: TaskSpec, **more: object) -> Task:
        self._requests += 1
        answer = self.ask(ev.Submit(request=self._requests, spec=task, **more))  # type: ignore[arg-type]
        assert isinstance(answer, Task)
        return answer

    def submit_array(self, task: TaskSpec, indices: str, **more: object) -> Array:
        self._requests += 1
        wanted = ArraySpec(task=task, indices=parse_indices(indices))
        answer = self.ask(ev.SubmitArray(request=self._requests, spec=wanted, **more))  # type: ignore[arg-type]
        assert isinstance(answer, Array)
        return answer

    def cancel(self, task: Task) -> Task:
        answer = self.ask(ev.Cancel(request=0, task=task.id))
        assert isinstance(answer, Task)
        return answer

    def pause(self, task: Task) -> Task:
        return self._asked(ev.Pause(request=0, task=task.id))

    def suspend(self, task: Task) -> Task:
        return self._asked(ev.Suspend(request=0, task=task.id))

    def resume(self, task: Task, *, inexact: bool = False) -> Task:
        return self._asked(ev.Resume(request=0, task=task.id, inexact=inexact))

    def nice(self, task: Task, priority: int) -> Task:
        return self._asked(ev.Nice(request=0, task=task.id, priority=priority))

    def cordon(self, name: str, how: Cordon | None) -> Node:
        """Cordon, drain or (None) uncordon a node."""
        for action in self.step(ev.SetCordon(request=0, node=name, cordon=how)).actions:
            if isinstance(action, Reply):
                if isinstance(action.result, ZenosError):
                    raise action.result
                assert isinstance(action.result, Node)
                return action.result
        raise AssertionError("no answer")

    def pool(self, name: str) -> Pool:
        return self.kernel.state.resources.pools[name]

    def _asked(self, event: ev.Event) -> Task:
        answer = self.ask(event)
        assert isinstance(answer, Task)
        return answer

    def paused(self, task: Task) -> None:
        """The worker says that it has paused."""
        generation = self.now(task).generation
        self.step(ev.WorkerPaused(task=task.id, generation=generation))

    def now(self, task: Task) -> Task:
        return self.kernel.state.tasks[task.id]

    def run(self, task: Task) -> None:
        self.step(ev.WorkerStarted(task=task.id, generation=self.now(task).generation, pid=7))

    def exit(self, task: Task, **outcome: object) -> None:
        result = Outcome(**{"exit_code": 0, **outcome})  # type: ignore[arg-type]
        generation = self.now(task).generation
        self.step(ev.WorkerExited(task=task.id, generation=generation, outcome=result))

    def lose(self, task: Task) -> None:
        generation = self.now(task).generation
        self.step(ev.WorkerLost(task=task.id, generation=generation, reason="its shim was killed"))

    def wait(self, seconds: float) -> Step:
        self.clock.advance(seconds)
        return self.step()

    def restarted(self) -> Harness:
        """A new kernel from what this one has remembered; who was there says so."""
        there = (pool.node for pool in self.kernel.state.resources.pools.values())
        return type(self)(
            # As they are seen by who finds them: what people have said of them is remembered.
            *(replace(node, cordon=None) for node in there if node.lost is None),
            config=self.config,
            snapshot=self.snapshot(),
        )

    def snapshot(self) -> Snapshot:
        """What this kernel has remembered."""
        state = self.kernel.state
        return Snapshot(
            now=self.clock.now(),
            next_task=state.next_task,
            next_seq=state.next_seq,
            tasks=state.tasks,
            deployments=state.deployments,
            nodes=state.nodes,
            keys=list(state.keys.values()),
            estimates=dict(state.estimates.known),
            arrays=state.arrays,
            usage=self.usage,
        )
