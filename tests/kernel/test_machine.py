"""Any sequence of submits, ends, losses, cancels, deployments and restarts keeps the invariants.

`Harness.step` checks them after every step; the rules here add what concerns several steps.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.errors import ConflictError, RefusedError
from zenos.core.node import Cordon, Measured
from zenos.core.replicas import replica_spec
from zenos.core.specs import DeploymentSpec
from zenos.core.task import ENDED, State, Task

NODES = st.integers(0, 5)
MODELS = st.sampled_from(["alpha", "beta"])


class KernelMachine(RuleBasedStateMachine):
    """The kernel with random events, and a restart from its own records at any time."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.h = Harness(node(cpu=3, gpu=2), node(cpu=1, gpu=0, name="second"))
        self.ended: dict[str, State] = {}
        self.generations: set[tuple[str, int]] = set()

    @rule(
        target=tasks,
        work=st.sampled_from([PROGRAM, TRAIN, YIELDING]),
        cpu=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        gpu=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        priority=st.integers(0, 100),
        retries=st.integers(0, 2),
        limit=st.one_of(st.none(), st.floats(1, 100)),
    )
    def submit(
        self,
        work: object,
        cpu: float,
        gpu: float,
        priority: int,
        retries: int,
        limit: float | None,
    ) -> Task:
        task = spec(
            work,  # type: ignore[arg-type]
            cpu=cpu,
            gpu=gpu,
            memory="300MB",
            priority=priority,
            retries=retries,
            time_limit_s=limit,
        )
        return self.h.submit(task)

    @rule(task=tasks)
    def started(self, task: Task) -> None:
        self.h.run(task)

    @rule(task=tasks, code=st.sampled_from([0, 1, 75]), signal=st.sampled_from([None, 9]))
    def exited(self, task: Task, code: int, signal: int | None) -> None:
        self.h.exit(task, exit_code=None if signal else code, signal=signal)

    @rule(task=tasks)
    def lost(self, task: Task) -> None:
        self.h.lose(task)

    @rule(task=tasks)
    def start_failed(self, task: Task) -> None:
        generation = self.h.now(task).generation
        self.h.step(ev.StartFailed(task=task.id, generation=generation, reason="no process"))

    @rule(task=tasks)
    def cancel(self, task: Task) -> None:
        self.h.cancel(task)

    @rule(task=tasks, verb=st.sampled_from(["pause", "suspend", "resume"]))
    def yields(self, task: Task, verb: str) -> None:
        """Whatever the state: it is done or refused in words."""
        before = self.h.now(task)
        refused = None
        try:
            getattr(self.h, verb)(task)
        except (ConflictError, RefusedError) as error:
            refused = error.message
        if refused is not None:
            assert refused.startswith(f"cannot {verb} {task.id}")
            assert self.h.now(task) == before or before.state is State.QUEUED
        else:
            held = self.h.now(task).held
            assert (held is None) is (verb == "resume")

    @rule(task=tasks)
    def paused(self, task: Task) -> None:
        self.h.paused(task)

    @rule(task=tasks, priority=st.integers(0, 100))
    def nice(self, task: Task, priority: int) -> None:
        try:
            assert self.h.nice(task, priority).spec.priority == priority
        except ConflictError:
            assert self.h.now(task).is_ended

    @rule(seconds=st.one_of(st.floats(0, 5000), st.just(limits.RESIDENCE_S), st.just(20_000.0)))
    def wait(self, seconds: float) -> None:
        self.h.wait(seconds)

    @rule(
        model=MODELS, low=st.integers(0, 2), high=st.integers(2, 3), cpu=st.sampled_from([0.5, 1])
    )
    def deploy(self, model: str, low: int, high: int, cpu: float) -> None:
        deployment = DeploymentSpec(
            model=model, min_replicas=low, max_replicas=high, cpu=cpu, memory="100MB"
        )
        self.h.ask(ev.Deploy(request=1, spec=deployment))

    @rule(model=MODELS)
    def demand(self, model: str) -> None:
        self.h.step(ev.Demand(name=model, spec=DeploymentSpec(model=model, memory="100MB")))

    @rule(model=MODELS, count=st.integers(0, 100))
    def used(self, model: str, count: int) -> None:
        self.h.step(ev.Used(name=model, in_flight=count))

    @rule(model=MODELS)
    def undeploy(self, model: str) -> None:
        if model in self.h.kernel.state.deployments:
            self.h.ask(ev.Undeploy(request=1, name=model))

    @rule(data=st.data())
    def replica(self, data: st.DataObject) -> None:
        live = [t for t in self.h.kernel.state.tasks.values() if t.kind == "serve" and t.allocation]
        if live:
            task = data.draw(st.sampled_from(live))
            ready = ev.WorkerReady(task=task.id, generation=task.generation)
            match data.draw(st.sampled_from(["ready", "exit", "lost"])):
                case "ready":
                    self.h.step(ready)
                case "exit":
                    self.h.exit(task, exit_code=data.draw(st.sampled_from([0, 1])))
                case _:
                    self.h.lose(task)

    def node(self, number: int) -> str:
        names = sorted(self.h.kernel.state.resources.pools)
        return names[number % len(names)]

    @rule(number=NODES, how=st.sampled_from([None, None, "cordon", "drain"]))
    def cordon(self, number: int, how: Cordon | None) -> None:
        assert self.h.cordon(self.node(number), how).cordon == how

    @rule(number=NODES, there=st.booleans())
    def node_goes_or_comes(self, number: int, there: bool) -> None:
        """It comes back without anything of what ran there."""
        name = self.node(number)
        known = self.h.pool(name).node
        if there and known.lost is not None:
            back = replace(known, cordon=None, lost=None)
            self.h.step(ev.NodeUp(node=back, running=()))
        elif not there:
            self.h.step(ev.NodeDown(node=name, reason="it was unplugged"))

    @invariant()
    def where_all_is_sent_away_nothing_stays_that_can_save(self) -> None:
        for task in self.h.kernel.state.tasks.values():
            if task.state in (State.RUNNING, State.PAUSED) and task.allocation is not None:
                drained = self.h.pool(task.allocation.node).node.cordon == "drain"
                assert not (drained and task.can_save and not task.stopping)

    @rule(left=st.sampled_from([-1, 1, 2, 9]))
    def measured(self, left: int) -> None:
        found = Measured(memory=0, memory_left=left * 300_000_000)
        self.h.step(ev.Measured(node="local", measured=found))

    @rule()
    def restart(self) -> None:
        self.h = self.h.restarted()

    @invariant()
    def ended_tasks_stay_ended(self) -> None:
        for task_id, state in self.ended.items():
            assert self.h.kernel.state.tasks[task_id].state is state
        for task in self.h.kernel.state.tasks.values():
            if task.state in ENDED:
                self.ended[task.id] = task.state

    @invariant()
    def no_generation_is_started_twice_nor_where_nothing_may(self) -> None:
        for task in self.h.started:
            assert task.allocation is not None
            assert all(self.h.pool(part.node).node.takes_work for part in task.allocation.parts)
            assert (task.id, task.generation) not in self.generations
            self.generations.add((task.id, task.generation))
        self.h.started.clear()

    @invariant()
    def replicas_are_within_their_bounds(self) -> None:
        for deployment in self.h.kernel.state.deployments.values():
            tasks = [self.h.kernel.state.tasks[r] for r in deployment.replicas]
            live = [t for t in tasks if not t.stopping and not t.is_ended]
            current = [t for t in live if t.spec == replica_spec(deployment)]
            assert len(current) <= deployment.spec.max_replicas
            # Of what it was before, only what answers stays until what replaces it can.
            before = [t for t in live if t not in current]
            assert all(t.ready for t in before)
            assert not before or not any(t.ready for t in current)

    @invariant()
    def nothing_waits_that_could_run(self) -> None:
        state = self.h.kernel.state
        held = state.scheduler.reservation
        for task in state.tasks.values():
            if task.id not in state.scheduler.queue:
                continue
            # For whom something is held back, that is no hindrance; what paused tasks wait for is.
            first = held is not None and held.task == task.id
            reserved = state.scheduler.reserved(task.id, overdue=first)
            could = state.resources.allocate(task.spec.resources, reserved)
            if could is not None:
                state.resources.release(could)
            assert could is None, f"{task.id} waits, and there is room on {could}"

    @invariant()
    def who_is_held_does_not_start(self) -> None:
        for task in self.h.kernel.state.tasks.values():
            if task.held is not None:
                assert task.state in (State.QUEUED, State.PAUSING, State.PAUSED, State.SUSPENDING)
                assert task.id not in self.h.kernel.state.scheduler.queue

    @invariant()
    def who_is_to_go_on_does_when_its_cpu_is_free(self) -> None:
        state = self.h.kernel.state
        waiting = [t for t in state.tasks.values() if t.resuming is not None and not t.stopping]
        for name, pool in state.resources.pools.items():
            here = [t for t in waiting if t.allocation is not None and t.allocation.node == name]
            if here:
                first = min(here, key=lambda t: t.resuming or 0.0)
                assert first.spec.resources.cpu > pool.free.cpu
                assert state.scheduler.resuming[name].cpu == sum(t.spec.resources.cpu for t in here)

    @invariant()
    def only_the_overdue_task_that_stands_first_has_something_held_back(self) -> None:
        state = self.h.kernel.state
        held = state.scheduler.reservation
        if held is not None:
            entries = state.scheduler.queue.overdue
            able = [e for e in entries if state.resources.could_ever_hold(e.key.request)]
            # Quotas may have been filled since by others of its owner's.
            first = [
                e.task for e in able if e.task == held.task or state.scheduler.queue.is_open(e.key)
            ]
            assert held.task == first[0]
            assert [(e.queued, e.order) for e in entries] == sorted(
                (e.queued, e.order) for e in entries
            )

    @invariant()
    def who_gives_way_could_and_something_is_claimed_for_who_waits(self) -> None:
        state = self.h.kernel.state
        for task_id, claim in state.scheduler.claims.items():
            assert task_id in state.scheduler.queue
            for victim, _ in claim.victims:
                assert state.tasks[victim].can_save


KernelMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestKernelMachine = KernelMachine.TestCase
