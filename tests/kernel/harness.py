"""A kernel under a virtual clock, driven by hand. After every step the invariants are checked."""

from __future__ import annotations

from zenos.core import events as ev
from zenos.core.actions import PauseWorker, Reply, ResumeWorker, Snapshot, StartWorker, StopWorker
from zenos.core.clock import VirtualClock
from zenos.core.config import Config
from zenos.core.errors import ZenosError
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, ProgramSpec, TrainSpec, Work
from zenos.core.task import Deployment, Node, Outcome, Task, TaskSpec
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
        self.steps: list[Step] = []
        self._requests = 0
        self.step(*(ev.NodeUp(node=n) for n in nodes or (node(),)))

    def step(self, *events: ev.Event) -> Step:
        step = self.kernel.step(list(events), self.clock.now())
        self.kernel.state.check()
        self.steps.append(step)
        for action in step.actions:
            if isinstance(action, StartWorker):
                self.started.append(action.task)
            elif isinstance(action, StopWorker):
                self.stopped.append(action)
            elif isinstance(action, PauseWorker | ResumeWorker):
                self.told.append(action)
        return step

    def ask(self, event: ev.Event) -> Task | Deployment:
        """Send a request and return its answer, or raise it."""
        for action in self.step(event).actions:
            if isinstance(action, Reply):
                if isinstance(action.result, ZenosError):
                    raise action.result
                return action.result
        raise AssertionError("no answer")

    def submit(self, task: TaskSpec, **more: object) -> Task:
        self._requests += 1
        answer = self.ask(ev.Submit(request=self._requests, spec=task, **more))  # type: ignore[arg-type]
        assert isinstance(answer, Task)
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
        """A new kernel from what this one has remembered."""
        state = self.kernel.state
        return Harness(
            *(pool.node for pool in state.resources.pools.values()),
            config=self.config,
            snapshot=Snapshot(
                now=self.clock.now(),
                next_task=state.next_task,
                next_seq=state.next_seq,
                tasks=state.tasks,
                deployments=state.deployments,
                keys=list(state.keys.values()),
            ),
        )
