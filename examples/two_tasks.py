"""The worked case: two tasks, one machine, and the kernel that divides it.

Task A (train) wants 1 CPU, 1 GPU and 1 GB; task B (infer) wants 0.5 CPU, 0.5 GPU and 0.5 GB.
On 2 CPUs, 2 GPUs and 4 GB both run at once. On 1 CPU, 1 GPU and 1 GB only one fits: B, the shorter,
runs first, then A. This is the real kernel under a virtual clock; nothing is started.

Run it with `python examples/two_tasks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from zenos.core import events as ev
from zenos.core.actions import StartWorker
from zenos.core.clock import VirtualClock
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.priority import p_of
from zenos.core.resources import Resources
from zenos.core.specs import ProgramSpec
from zenos.core.task import Outcome, TaskSpec
from zenos.kernel.step import Kernel, Step

A_S, B_S = 60.0, 10.0  # how long the tasks run
A_WANTS = Resources.of(cpu=1, gpu=1, memory="1GB")
B_WANTS = Resources.of(cpu=0.5, gpu=0.5, memory="0.5GB")


@dataclass
class Line:
    """One line of the timeline: use as a fraction of capacity."""

    at: float
    event: str
    cpu: float
    gpu: float
    memory: float
    p: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """A run of the case on one machine."""

    machine: Resources
    lines: list[Line] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = VirtualClock()
        self.kernel = Kernel(Config())
        self.ends: dict[str, float] = {}
        self._note(self._step([ev.NodeUp(node=self._node())]), "the machine is there")

    def _node(self) -> Node:
        gpus = self.machine.gpu // 1000
        return Node(name="local", capacity=self.machine, gpus=gpus, virtual_gpus=True)

    def _step(self, events: list[ev.Event]) -> Step:
        step = self.kernel.step(events, self.clock.now())
        self.kernel.state.check()
        return step

    def _note(self, step: Step, what: str) -> None:
        """Write down what the step did; every worker that it starts runs at once."""
        started: list[ev.Event] = []
        names = []
        for action in step.actions:
            if isinstance(action, StartWorker):
                task = action.task
                names.append(task.name)
                self.order.append(task.name)
                self.ends[task.id] = self.clock.now() + (A_S if task.name == "A" else B_S)
                started.append(ev.WorkerStarted(task=task.id, generation=task.generation, pid=1))
        used, total = self.kernel.state.resources.used(), self.machine
        event = ", ".join(filter(None, [what, *(f"{name} starts" for name in names)]))
        self.lines.append(
            Line(
                self.clock.now(),
                event,
                used.cpu / total.cpu,
                used.gpu / total.gpu,
                used.memory / total.memory,
                self.p_now(),
            )
        )
        if started:
            self._step(started)

    def p_now(self) -> dict[str, float]:
        """P(T) of each task that has not ended, as if it were waiting still."""
        now = self.clock.now()
        return {
            task.name: p_of(now - task.submitted, task.spec.expected_s or 1.0)
            for task in self.kernel.state.tasks.values()
            if not task.is_ended
        }

    def submit_both(self) -> None:
        """A and B arrive in the same moment, A first."""
        specs = [
            TaskSpec(work=ProgramSpec(argv=["train"]), name="A", resources=A_WANTS, expected_s=A_S),
            TaskSpec(work=ProgramSpec(argv=["infer"]), name="B", resources=B_WANTS, expected_s=B_S),
        ]
        events: list[ev.Event] = [ev.Submit(request=i, spec=s) for i, s in enumerate(specs)]
        self._note(self._step(events), "A and B are submitted")
        self.clock.advance(1.0)
        self._note(self._step([]), "a second later")

    def to_the_end(self) -> None:
        """Let each task run its time."""
        while self.ends:
            task_id = min(self.ends, key=lambda t: self.ends[t])
            self.clock.advance(self.ends.pop(task_id) - self.clock.now())
            task = self.kernel.state.tasks[task_id]
            end = ev.WorkerExited(
                task=task_id, generation=task.generation, outcome=Outcome(exit_code=0)
            )
            self._note(self._step([end]), f"{task.name} ends")


def run(machine: Resources) -> Run:
    """The whole case on that machine."""
    case = Run(machine)
    case.submit_both()
    case.to_the_end()
    return case


def table(case: Run, title: str) -> Table:
    """The timeline for people."""
    result = Table(title=title, title_justify="left")
    for column in ("time", "what happens", "CPU", "GPU", "memory", "P(A)", "P(B)"):
        result.add_column(column, justify="left" if column == "what happens" else "right")
    for line in case.lines:
        share = [f"{100 * x:.1f} %" for x in (line.cpu, line.gpu, line.memory)]
        p = [f"{line.p[name]:.3f}" if name in line.p else "" for name in "AB"]
        result.add_row(f"{line.at:.0f} s", line.event, *share, *p)
    return result


def main() -> None:
    """Print both timelines."""
    console = Console()
    large = Resources.of(cpu=2, gpu=2, memory="4GB")
    small = Resources.of(cpu=1, gpu=1, memory="1GB")
    console.print(table(run(large), "2 CPUs, 2 GPUs, 4 GB: both fit"))
    console.print(table(run(small), "1 CPU, 1 GPU, 1 GB: one fits at a time"))


if __name__ == "__main__":
    main()
