"""The kernel, with its indexes, decides what the policy in its simplest form decides.

Whatever happens: each step is taken by both, and all that they decide is the same. What is decided
because time has passed is decided when the kernel has asked to be called, not later.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from tests.kernel.reference import reference
from tests.kernel.test_machine import KernelMachine
from zenos.core import events as ev
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.core.node import Measured, Node
from zenos.core.quotas import Quota
from zenos.core.specs import CallSpec, ProgramSpec, TrainSpec
from zenos.core.task import Principal, State
from zenos.kernel.step import Kernel, Step

CONFIG = Config(
    slice_s=300.0,
    slice_residence_s=60.0,
    overdue_wait_s=900.0,
    preemptions_per_hour=3,
    grow_s=60.0,
)
NODES = (node(cpu=3, gpu=2), node(cpu=1, gpu=0, name="second"), node(cpu=4, gpu=3, name="third"))
QUOTAS: list[dict[str, dict[str, Quota]]] = [
    {},
    {"user_quotas": {"ann": Quota(gpu=2, cpu=3), "bob": Quota(tasks=6)}},
    {"project_quotas": {"lab": Quota(cpu=2, memory="4GB")}, "user_quotas": {"bob": Quota(gpu=1)}},
    {"user_quotas": {"ann": Quota(gpu_hours=0.25)}, "project_quotas": {"lab": Quota(gpu=3)}},
    {"user_quotas": {"ann": Quota(cpu=2), "bob": Quota(cpu=2)}},
    {"user_quotas": {"ann": Quota(cpu=3)}, "project_quotas": {"lab": Quota(cpu=4, gpu=2)}},
]


class Twin(Harness):
    """Two kernels, side by side.

    at_once: for how many tasks others give way in one step.
    """

    at_once: int | None = None

    def __init__(
        self, *nodes: Node, config: Config | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.other = reference(config or Config(), snapshot)
        self.wake = -math.inf
        super().__init__(*nodes, config=config, snapshot=snapshot)

    def step(self, *events: ev.Event) -> Step:
        for kernel in (self.kernel, self.other) if self.at_once is not None else ():
            kernel.preemption.at_once = self.at_once
        step = super().step(*events)
        expected = self.other.step(list(events), self.clock.now())
        assert [repr(action) for action in step.actions] == [
            repr(action) for action in expected.actions
        ]
        assert step.changes == expected.changes
        ours, theirs = self.kernel.state.scheduler, self.other.state.scheduler
        assert ours.reservation == theirs.reservation
        assert ours.claims == theirs.claims
        assert ours.queue.overdue == theirs.queue.overdue
        assert sorted(ours.queue.heads()) == sorted(theirs.queue.heads())
        assert self.given_way(self.kernel) == self.given_way(self.other)
        now = self.clock.now()
        assert (step.wake <= now) is (expected.wake <= now)
        if not events and (expected.actions or expected.changes):
            assert self.wake <= self.clock.now()
        self.wake = step.wake
        return step

    def given_way(self, kernel: Kernel) -> dict[str, list[float]]:
        """What counts of it: what is older is forgotten when somebody looks."""
        since = self.clock.now() - 3600.0
        found = {
            t: [at for at in times if at > since]
            for t, times in kernel.preemption.given_way.items()
        }
        return {task: times for task, times in found.items() if times}


class TwinMachine(KernelMachine):
    """All that can happen to one kernel happens to both."""

    def __init__(self) -> None:
        super().__init__()
        self.h = Twin(*NODES, config=CONFIG)
        self.configured(300.0, 900.0, 0.25, QUOTAS[1])

    def nothing_waits_that_could_run(self) -> None:
        """Is held by the other machine."""

    @rule(
        work=st.sampled_from([PROGRAM, TRAIN, TRAIN, YIELDING, CallSpec(key="key")]),
        count=st.integers(1, 6),
        cpu=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        gpu=st.sampled_from([0.0, 0.3, 1.0, 2.0, 3.0]),
        priority=st.sampled_from([25, 50, 50, 75]),
        user=st.sampled_from(["ann", "bob"]),
        project=st.sampled_from(["default", "lab"]),
        expected_s=st.sampled_from([None, 10.0, 50.0, 1000.0]),
        due_s=st.sampled_from([None, None, 30.0, 600.0]),
        where=st.sampled_from(["", "", "second", "third"]),
    )
    def submit_many(
        self,
        work: object,
        count: int,
        cpu: float,
        gpu: float,
        priority: int,
        user: str,
        project: str,
        expected_s: float | None,
        due_s: float | None,
        where: str,
    ) -> None:
        deadline = None if due_s is None else self.h.clock.now() + due_s
        task = replace(
            spec(work, cpu=cpu, gpu=gpu, priority=priority, expected_s=expected_s),  # type: ignore[arg-type]
            deadline=deadline,
            node=where,
        )
        who = Principal(user=user, project=project)
        events = [ev.Submit(request=n, spec=task, principal=who) for n in range(count)]
        self.h.step(*events)

    @rule(
        count=st.integers(1, 2),
        workers=st.sampled_from([(1, 2), (1, 3), (2, 4), (1, 6)]),
        priority=st.sampled_from([25, 50, 50]),
        where=st.sampled_from(["", "third"]),
    )
    def submit_elastic(
        self, count: int, workers: tuple[int, int], priority: int, where: str
    ) -> None:
        least, most = workers
        if least > 1:  # the reference cuts no gang between nodes
            where = "third"
        work = replace(TRAIN, workers=most, workers_min=least)
        task = replace(
            spec(work, cpu=most, memory=f"{300 * most}MB", priority=priority), node=where
        )
        self.h.step(*(ev.Submit(request=n, spec=task) for n in range(count)))

    @rule(share=st.floats(0, 1))
    def go_on(self, share: float) -> None:
        """Workers do what they were told, and some of them finish."""
        go_on(self.h, share)

    @rule(times=st.integers(1, 5))
    def wake(self, times: int) -> None:
        """Until the kernel wants to be called."""
        for _ in range(times):
            at = self.h.steps[-1].wake
            if at < 1e9:
                self.h.wait(max(0.0, at - self.h.clock.now()))

    @rule(seconds=st.sampled_from([1.0, 60.0, 300.0, 900.0]))
    def time_passes(self, seconds: float) -> None:
        self.h.wait(seconds)

    @rule(
        slice_s=st.sampled_from([0.0, 100.0, 300.0]),
        wait_s=st.sampled_from([300.0, 900.0]),
        share=st.sampled_from([0.25, 0.9]),
        quotas=st.sampled_from(QUOTAS),
    )
    def configured(
        self, slice_s: float, wait_s: float, share: float, quotas: dict[str, dict[str, Quota]]
    ) -> None:
        made = Config(
            slice_s=slice_s,
            slice_residence_s=60.0,
            overdue_wait_s=wait_s,
            overdue_share=share,
            preemptions_per_hour=3,
            grow_s=60.0,
            quota_window_s=3600.0,
            fair_half_life_s=1800.0,
            user_shares={"bob": 2.0},
            **quotas,  # type: ignore[arg-type]
        )
        self.h.config = made
        self.h.step(ev.Configured(config=made))

    @rule(
        where=st.sampled_from(["local", "second", "third"]),
        left=st.sampled_from([-1, 1, 2, 9]),
    )
    def measured(self, where: str, left: int) -> None:
        found = Measured(memory=0, memory_left=left * 1_000_000_000)
        self.h.step(ev.Measured(node=where, measured=found))

    @rule(cpu=st.sampled_from([1, 4]), gpu=st.sampled_from([1, 3]))
    def node_changes(self, cpu: int, gpu: int) -> None:
        state = self.h.kernel.state
        there = state.resources.pools["third"]
        changed = node(cpu=cpu, gpu=gpu, name="third")
        if there.used.fits_in(changed.capacity) and not any(there.gpu_used[gpu:]):
            self.h.step(ev.NodeUp(node=changed))


class CutTwin(Twin):
    """Each step decides as little as it may."""

    at_once = 1


class CutTwinMachine(TwinMachine):
    """The same, where the next step has to follow at once all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.h = CutTwin(*NODES, config=CONFIG)
        self.configured(300.0, 900.0, 0.25, QUOTAS[1])


class Wanted(NamedTuple):
    """A task that is submitted, once or several times at once."""

    work: TrainSpec | ProgramSpec
    user: str
    project: str
    priority: int
    cpu: float
    gpu: float
    times: int


FULL: list[dict[str, dict[str, Quota]]] = [
    {"user_quotas": {"*": Quota(cpu=2)}},
    {"user_quotas": {"ann": Quota(cpu=3, gpu=1)}},
    {"user_quotas": {"*": Quota(cpu=4)}, "project_quotas": {"lab": Quota(cpu=3, gpu=1)}},
]
ELASTIC = replace(TRAIN, workers=3, workers_min=1)


@given(
    quotas=st.sampled_from(FULL),
    happens=st.lists(
        st.one_of(
            st.builds(
                Wanted,
                st.sampled_from([TRAIN, TRAIN, TRAIN, ELASTIC, YIELDING, PROGRAM]),
                st.sampled_from(["ann", "ann", "bob"]),
                st.sampled_from(["default", "lab"]),
                st.sampled_from([25, 50, 75]),
                st.sampled_from([0.5, 1.0, 2.0, 3.0]),
                st.sampled_from([0.0, 0.0, 0.3, 1.0]),
                st.integers(1, 3),
            ),
            st.sampled_from([0.0, 0.3, 1.0]),  # a share of those that run ends
        ),
        min_size=4,
        max_size=25,
    ),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_within_quotas_the_same_give_way(
    quotas: dict[str, dict[str, Quota]], happens: list[Wanted | float]
) -> None:
    h = Twin(*NODES, config=replace(CONFIG, residence_s=30.0, quota_window_s=3600.0, **quotas))
    for one in happens:
        if isinstance(one, Wanted):
            memory = "600MB" if one.work is ELASTIC else "200MB"
            cpu = 3 if one.work is ELASTIC else one.cpu
            task = spec(one.work, cpu=cpu, gpu=one.gpu, memory=memory, priority=one.priority)
            who = Principal(user=one.user, project=one.project)
            made = [ev.Submit(request=n, spec=task, principal=who) for n in range(one.times)]
            h.step(*made)
            h.wait(5)
        else:
            go_on(h, one)
            h.wait(max(0.0, min(h.steps[-1].wake - h.clock.now(), 3600.0)))


def go_on(h: Harness, share: float) -> None:
    """Workers do what they were told: start, save, end, or, some of them, finish."""
    happened: list[ev.Event] = []
    holding = sorted(h.kernel.state.holding, key=lambda t: int(t[1:]))
    for number, task_id in enumerate(holding):
        task = h.kernel.state.tasks[task_id]
        if task.state is State.STARTING:
            happened.append(ev.WorkerStarted(task=task_id, generation=task.generation, pid=1))
        elif task.state is State.PAUSING:
            happened.append(ev.WorkerPaused(task=task_id, generation=task.generation))
        elif task.state is State.SUSPENDING or task.stopping:
            happened.append(ended(task_id, task.generation, 75))
        elif number < share * len(holding) / 3:
            happened.append(ended(task_id, task.generation, 0))
    h.step(*happened)


def ended(task: str, generation: int, code: int) -> ev.Event:
    from zenos.core.task import Outcome

    return ev.WorkerExited(task=task, generation=generation, outcome=Outcome(exit_code=code))


# The same examples each time; take it away to look further.
TwinMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, derandomize=True
)
TestTwinMachine = TwinMachine.TestCase
CutTwinMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=50, deadline=None, derandomize=True
)
TestCutTwinMachine = CutTwinMachine.TestCase
