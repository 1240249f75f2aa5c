"""Seeded scenarios: everything that can happen to a cluster and its daemon, in random order.

A `World` has workers on three nodes that live or die without the daemon, a store that remembers
what is committed, and a kernel. The daemon may die between any two lines of its loop, and between
any two actions; then another begins from the store. Nodes crash, or can't be reached for a while
and end their own workers before they are given up. All of it hangs on one seed.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, NoReturn

import msgspec
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, node, spec
from zenos.core import events as ev
from zenos.core.actions import Action, PauseWorker, Reply, ResumeWorker, StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.errors import ZenosError
from zenos.core.node import Node
from zenos.core.quotas import Quota
from zenos.core.specs import DeploymentSpec
from zenos.core.task import HOLDING, Kind, Outcome, Principal, State, Task, TaskSpec
from zenos.kernel import supervision
from zenos.kernel.step import Kernel, Step
from zenos.store.memory import MemoryStore

LEASE_S: Final = 1000.0
FENCED_S: Final = 800.0  # a node that can't reach the daemon ends its workers by then
BEAT_S: Final = 300.0
ACTIONS: Final = 45
ROUNDS_MAX: Final = 300
AT_ONCE_MAX: Final = 200  # steps that follow one at once
POINTS: Final = ("decided", "committed", "performing", "performed")
CONFIG: Final = Config(
    slice_s=300.0,
    slice_residence_s=60.0,
    overdue_wait_s=900.0,
    preemptions_per_hour=6,
    ended_tasks_kept=10_000,
)
# In half of the scenarios two users share the cluster, and have less of it each than there is.
QUOTAS: Final = replace(CONFIG, user_quotas={"*": Quota(cpu=6, gpu=4)}, residence_s=20.0)
USERS: Final = (Principal(user="ann"), Principal(user="bob"))
GANG: Final = replace(TRAIN, workers=4, batch_size=64)


class Died(Exception):  # noqa: N818 - nothing is wrong
    """The daemon has died."""


class Worker(msgspec.Struct):
    """One generation of a task. outcome: how it ended; reported: the daemon has heard that.

    vanished: not even its node knows of it any more.
    """

    task: Task
    nodes: tuple[str, ...]
    told: bool = False  # the daemon knows that it runs
    paused: bool = False
    pause_told: bool = False
    stop: StopWorker | None = None
    outcome: Outcome | None = None
    reported: bool = False
    vanished: bool = False

    @property
    def lives(self) -> bool:
        return self.outcome is None


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing, as the store in memory's don't."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class World:
    """A cluster with a daemon; `run` lets things happen to it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - to be repeated
        self.config = QUOTAS if seed % 2 else CONFIG
        self.decides_little = seed % 3 == 0  # a step: then the next one follows at once
        self.now = 1000.0
        self.store = MemoryStore()
        self.nodes: dict[str, Node] = {
            "local": node(cpu=3, gpu=2),
            "far": replace(node(cpu=4, gpu=2, name="far"), lease_s=LEASE_S),
            "third": replace(node(cpu=2, gpu=1, name="third"), lease_s=LEASE_S),
        }
        self.away: dict[str, float] = {}  # nodes that can't be reached, since when
        self.workers: dict[tuple[str, int], Worker] = {}
        self.begun: Counter[str] = Counter()  # how often work of a task has begun
        self.to_save: set[tuple[str, int]] = set()  # generations that were told to save and end
        self.asked: dict[int, ev.Submit] = {}  # requests without an answer yet
        self.known: dict[str, str] = {}  # ids of accepted tasks, by key
        self.ended: dict[str, State] = {}
        self.number = 0
        self.die_at: str | None = None
        self.trace = hashlib.sha256()
        self.deaths = 0
        self.losses = 0
        self.boot()

    # -- the daemon

    def boot(self) -> None:
        """A daemon begins from what is remembered; its machine's workers are looked up."""
        self.kernel = Kernel(self.config, done(self.store.load()))
        self.die_at = None
        if self.decides_little:
            self.kernel.preemption.at_once = 1
        recovering = self.kernel.recovering()
        for task in recovering:  # what was said and not committed is said again
            worker = self.workers.get((task.id, task.generation))
            if worker is not None:
                worker.told = worker.pause_told = worker.reported = False
        self.turn(ev.NodeUp(node=self.nodes["local"]))
        self.turn(*(event for task in recovering for event in self.recovered(task)))
        for name in ("far", "third"):
            if name not in self.away:
                self.register(name)

    def recovered(self, task: Task) -> list[ev.Event]:
        """What this machine's executor says of a task that held something here."""
        assert task.allocation is not None
        if {part.node for part in task.allocation.parts} != {"local"}:
            return []
        worker = self.workers.get((task.id, task.generation))
        if worker is None:
            self.start(task)
            return []
        return self.said(worker)

    def register(self, name: str) -> None:
        """A node says what it has; then what has ended there meanwhile."""
        here = [w for w in self.workers.values() if name in w.nodes]
        here = [w for w in here if not w.reported and not w.vanished]
        running = tuple(sorted((w.task.id, w.task.generation) for w in here))
        self.turn(ev.NodeUp(node=self.nodes[name], running=running))
        for worker in here:
            worker.told = worker.pause_told = False
            self.turn(*self.said(worker))

    def turn(self, *events: ev.Event) -> None:
        """One turn of the loop; the daemon may die in it, and another is there then."""
        try:
            wake = self._turn(list(events))
            for _ in range(AT_ONCE_MAX):
                if wake > self.now:
                    break
                wake = self._turn([])
            else:
                raise AssertionError("steps follow at once for ever")
        except Died:
            self.deaths += 1
            self.now += self.rng.choice([0.0, 1.0, 30.0])
            self.boot()

    def _turn(self, events: list[ev.Event]) -> float:
        """When the kernel is to be called again."""
        step = self.kernel.step(events, self.now)
        self.kernel.state.check()
        self.note(step)
        self.passing("decided")
        done(self.store.commit(step.changes))
        self.remember(step)
        self.passing("committed")
        few = self.rng.randrange(len(step.actions) + 1) if self.die_at == "performing" else None
        for count, action in enumerate(step.actions):
            if count == few:
                self.die()
            self.perform(action)
        self.passing("performing")
        self.passing("performed")
        return step.wake

    def passing(self, point: str) -> None:
        if self.die_at == point:
            self.die()

    def die(self) -> NoReturn:
        self.die_at = None
        raise Died

    def note(self, step: Step) -> None:
        self.trace.update(repr((self.now, step.actions, step.wake)).encode())

    def remember(self, step: Step) -> None:
        """What is committed never changes back."""
        for task in step.changes.tasks.values():
            before = self.ended.get(task.id)
            assert before in (None, task.state), f"{task.id} was {before} and is {task.state}"
            if task.is_ended:
                self.ended[task.id] = task.state

    # -- what it has done

    def perform(self, action: Action) -> None:
        match action:
            case Reply(request=number, result=Task() as task) if number in self.asked:
                key = self.asked.pop(number).key or ""
                assert self.known.setdefault(key, task.id) == task.id, f"two tasks of {key}"
            case Reply(request=number, result=ZenosError() as error) if number in self.asked:
                raise AssertionError(f"what could be done is refused: {error}")
            case StartWorker(task=task):
                self.start(task)
            case StopWorker(task=name, generation=generation):
                self.stop(name, generation, action)
            case PauseWorker(task=name, generation=generation):
                self.pause(name, generation, on=True)
            case ResumeWorker(task=name, generation=generation):
                self.pause(name, generation, on=False)
            case _:
                pass

    def start(self, task: Task) -> None:
        assert task.allocation is not None
        where = tuple(part.node for part in task.allocation.parts)
        if (task.id, task.generation) in self.workers or self.away.keys() & set(where):
            return  # it is there already; or nobody there hears it
        others = [w for w in self.workers.values() if w.task.id == task.id and w.lives]
        assert not others, f"{task.id} is started as {task.generation}, and {others[0]} lives"
        assert all(self.kernel.state.nodes[name].lost is None for name in where)
        self.workers[task.id, task.generation] = Worker(task, where)
        self.begun[task.id] += 1
        if task.kind is Kind.RUN:
            assert self.begun[task.id] <= self.may_begin(task), f"{task.id} runs too often"

    def may_begin(self, task: Task) -> float:
        """How often a program's work may begin: once, as its retries say, and after each time that
        it was told to save, as it said it can: whether or not it lived to hear it.
        """
        return 1 + task.spec.retries + sum(name == task.id for name, _ in self.to_save)

    def stop(self, name: str, generation: int, told: StopWorker) -> None:
        worker = self.workers.get((name, generation))
        if told.save:
            self.to_save.add((name, generation))
        if worker is None or not worker.lives or self.is_away(worker):
            return
        if told.grace_s == 0.0 and not told.save:
            self.end(worker, Outcome(signal=9))
            # Of most that are killed nobody wants to know; of a replica that didn't end, one does.
            worker.reported = supervision.current(self.kernel, name, generation) is None
        else:
            worker.stop = told

    def pause(self, name: str, generation: int, *, on: bool) -> None:
        worker = self.workers.get((name, generation))
        if worker is not None and worker.lives and not self.is_away(worker):
            worker.paused, worker.pause_told = on, False

    def is_away(self, worker: Worker) -> bool:
        return bool(self.away.keys() & set(worker.nodes))

    def end(self, worker: Worker, outcome: Outcome) -> None:
        worker.outcome = outcome

    # -- what workers do

    def said(self, worker: Worker) -> list[ev.Event]:
        """What the daemon has to hear of a worker."""
        name, generation = worker.task.id, worker.task.generation
        found: list[ev.Event] = []
        if worker.lives and not worker.told:
            found.append(ev.WorkerStarted(task=name, generation=generation, pid=7))
            worker.told = True
        if worker.lives and worker.paused and not worker.pause_told:
            found.append(ev.WorkerPaused(task=name, generation=generation))
            worker.pause_told = True
        if worker.outcome is not None and not worker.reported and not worker.vanished:
            if worker.outcome.exit_code is None and worker.outcome.signal is None:
                lost = ev.WorkerLost(task=name, generation=generation, reason="its shim was killed")
                found.append(lost)
            else:
                found.append(
                    ev.WorkerExited(task=name, generation=generation, outcome=worker.outcome)
                )
            worker.reported = True
        return found

    def works(self, worker: Worker, *, well: bool) -> None:
        """A worker does something; `well`: nothing goes wrong with it."""
        if not worker.lives or self.is_away(worker):
            return
        if worker.stop is not None:
            saves = worker.stop.save and (well or self.rng.random() < 0.8)
            killed = Outcome(exit_code=0) if self.rng.random() < 0.1 else Outcome(signal=15)
            self.end(worker, Outcome(exit_code=75) if saves else killed)
        elif worker.told and not worker.paused:
            ends = [Outcome(exit_code=0)] * 6
            ends += [Outcome(exit_code=1), Outcome(signal=9), Outcome()]
            self.end(worker, ends[0] if well else self.rng.choice(ends))
        self.turn(*self.said(worker))

    # -- what happens

    def run(self) -> World:
        """Let things happen, then let all of it come to its end."""
        for _ in range(ACTIONS):
            if self.rng.random() < 0.12:
                self.die_at = self.rng.choice(POINTS)
            self.rng.choice(HAPPENS)(self)
            self.settle()
        self.come_to_rest()
        return self

    def settle(self) -> None:
        """Of one task one generation lives at most."""
        alive = Counter(w.task.id for w in self.workers.values() if w.lives)
        assert all(count == 1 for count in alive.values()), alive

    def submit(self) -> None:
        self.number += 1
        rng, work = self.rng, self.rng.choice([PROGRAM, PROGRAM, YIELDING, TRAIN, GANG])
        cpu, gpu = rng.choice([0.0, 0.5, 1.0, 3.0]), rng.choice([0.0, 0.0, 0.3, 1.0])
        if work is GANG:
            cpu, gpu = rng.choice([(4.0, 0.0), (4.0, 4.0), (6.0, 0.0)])
        wanted: TaskSpec = spec(
            work,
            cpu=cpu,
            gpu=gpu,
            memory="300MB",
            priority=rng.choice([25, 50, 50, 75]),
            retries=rng.choice([0, 0, 2]),
            time_limit_s=rng.choice([None, None, None, 400.0]),
            expected_s=rng.choice([None, 10.0, 1000.0]),
        )
        who = self.rng.choice(USERS) if self.config is QUOTAS else Principal()
        key = f"k{self.number}"
        event = ev.Submit(request=self.number, spec=wanted, key=key, principal=who)
        self.asked[self.number] = event
        self.turn(event)

    def ask_again(self) -> None:
        """Whoever got no answer asks again, under the same key."""
        for event in list(self.asked.values()):
            self.turn(event)

    def some(self, *states: State) -> Task | None:
        found = [t for t in self.kernel.state.tasks.values() if t.state in states]
        return self.rng.choice(found) if found else None

    def somebody_says(self) -> None:
        task = self.some(State.QUEUED, *HOLDING)
        if task is None:
            return
        events: list[ev.Event] = [
            ev.Cancel(request=0, task=task.id),
            ev.Pause(request=0, task=task.id),
            ev.Suspend(request=0, task=task.id),
            ev.Resume(request=0, task=task.id),
            ev.Nice(request=0, task=task.id, priority=self.rng.choice([25, 50, 75])),
        ]
        self.turn(self.rng.choice(events))

    def a_worker_works(self) -> None:
        live = [w for w in self.workers.values() if w.lives]
        if live:
            worker = self.rng.choice(live)
            if worker.told:
                self.works(worker, well=False)
            elif not self.is_away(worker):
                self.turn(*self.said(worker))

    def all_are_heard(self) -> None:
        for worker in list(self.workers.values()):
            if not self.is_away(worker):
                self.turn(*self.said(worker))

    def requests_come(self) -> None:
        model = self.rng.choice(["alpha", "beta"])
        wanted = DeploymentSpec(model=model, memory="100MB", cpu=0.5)
        self.turn(ev.Demand(name=model, spec=wanted))
        self.turn(ev.Used(name=model, in_flight=self.rng.choice([0, 0, 3])))

    def cordon(self) -> None:
        name = self.rng.choice(sorted(self.nodes))
        how = self.rng.choice([None, None, "cordon", "drain"])
        self.turn(ev.SetCordon(request=0, node=name, cordon=how))

    def a_node_crashes(self) -> None:
        """All that ran there is gone. It may be back before anybody misses it."""
        name = self.rng.choice(["far", "third"])
        if name in self.away:
            return
        self.losses += 1
        self.away[name] = self.now
        for worker in self.workers.values():
            if name in worker.nodes and worker.lives:
                self.end(worker, Outcome())
                worker.vanished = worker.told and len(worker.nodes) == 1
        match self.rng.randrange(3):
            case 0:
                self.turn(ev.NodeDown(node=name, reason="it was unplugged"))
            case 1:
                del self.away[name]
                self.register(name)

    def a_node_is_cut_off(self) -> None:
        """Its workers go on for a while, unheard; a gang over several nodes ends at once."""
        name = self.rng.choice(["far", "third"])
        if name not in self.away:
            self.losses += 1
            self.away[name] = self.now
            for worker in self.workers.values():
                if name in worker.nodes and len(worker.nodes) > 1 and worker.lives:
                    self.end(worker, Outcome(exit_code=1, code="rank"))

    def a_node_is_back(self) -> None:
        if self.away:
            name = self.rng.choice(sorted(self.away))
            del self.away[name]
            self.register(name)

    def time_passes(self) -> None:
        self.wait(self.rng.choice([0.1, 5.0, 60.0, 300.0, 1100.0]))

    def wait(self, seconds: float) -> None:
        """In pieces, in which nodes say that they are there."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + BEAT_S)
            for name, since in self.away.items():
                fenced = self.now - since >= FENCED_S
                for worker in self.workers.values() if fenced else ():
                    if name in worker.nodes and worker.lives:
                        self.end(worker, Outcome(signal=9))
            beats = [n for n in ("far", "third") if n not in self.away]
            self.turn(*(ev.NodeBeat(node=name) for name in beats))

    # -- the end

    def come_to_rest(self) -> None:
        """Nothing goes wrong any more: then everything that was accepted ends, in bounded time."""
        self.die_at = None
        for name in sorted(self.away):
            del self.away[name]
            self.register(name)
        for name in sorted(self.nodes):
            self.turn(ev.SetCordon(request=0, node=name, cordon=None))
        self.ask_again()
        assert not self.asked, "somebody never gets an answer"
        for name in sorted(self.kernel.state.deployments):
            self.turn(ev.Undeploy(request=0, name=name))
        for _ in range(ROUNDS_MAX):
            if all(task.is_ended for task in self.kernel.state.tasks.values()):
                break
            for task in list(self.kernel.state.tasks.values()):
                if task.held is not None:
                    self.turn(ev.Resume(request=0, task=task.id))
            for worker in list(self.workers.values()):
                if worker.told or not worker.lives:
                    self.works(worker, well=True)
                self.turn(*self.said(worker))
            self.wait(60.0)
        else:
            waiting = [t for t in self.kernel.state.tasks.values() if not t.is_ended]
            raise AssertionError(f"they wait for ever: {waiting}")
        state = self.kernel.state
        assert set(self.known.values()) <= state.tasks.keys(), "what was accepted is gone"
        assert len(self.known) == self.number
        submitted = [task for task in state.tasks.values() if task.kind is not Kind.SERVE]
        assert len(submitted) == self.number, "something was made twice"
        assert not state.holding
        assert not any(worker.lives for worker in self.workers.values()), "a worker is left"


HAPPENS: Final = [
    *[World.submit] * 6,
    World.ask_again,
    *[World.somebody_says] * 4,
    *[World.a_worker_works] * 7,
    *[World.all_are_heard] * 3,
    *[World.time_passes] * 4,
    World.requests_come,
    *[World.cordon] * 2,
    World.a_node_crashes,
    World.a_node_is_cut_off,
    *[World.a_node_is_back] * 2,
]
