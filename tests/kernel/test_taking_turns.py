"""Several models and one place: whatever is asked when, waits and loads are bounded.

The workers and the router are virtual ones here, which do what the real ones do, in seconds of a
virtual clock. The bounds are those of docs/scheduling.md.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kernel.harness import Harness, node
from zenos.core import events as ev
from zenos.core.actions import StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import Outcome, State, Task

LOAD_S, END_S = 1.5, 0.5


class Asked(NamedTuple):
    """A request: when it comes, how long its answer takes, how long its client waits."""

    at: float
    model: str
    answer_s: float
    patience_s: float = 1e9


class World:
    """One place, for which models take turns. waits: how long each request waited for a replica."""

    def __init__(self, config: Config, models: list[str], *, deployed: bool = False) -> None:
        self.h = Harness(node(cpu=1), config=config)
        self.start = self.h.clock.now()
        self.waits: list[float] = []
        self.loads: list[float] = []
        self.cut = 0
        self._waiting: dict[str, dict[int, Asked]] = {name: {} for name in models}
        self._flying: dict[str, dict[int, float]] = {name: {} for name in models}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        if deployed:
            for name in models:
                self.step(ev.Deploy(request=1, spec=DeploymentSpec(model=name, memory="500MB")))

    @property
    def now(self) -> float:
        return self.h.clock.now()

    def run(self, asked: list[Asked], until: float) -> None:
        """Until that time; times of requests too are seconds after the start."""
        for request in asked:
            at = self.start + request.at
            self._put(at, lambda request=request: self._ask(request))  # type: ignore[misc]
        while True:
            at = min(self.h.steps[-1].wake, self._due[0][0] if self._due else until + self.start)
            if at >= until + self.start:
                return
            self.h.clock.advance(max(0.0, at - self.now))
            if self.now < at:  # by rounding
                self.h.clock.advance(math.ulp(at))
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
            self.step()

    def step(self, *events: ev.Event) -> None:
        for action in self.h.step(*events).actions:
            if isinstance(action, StartWorker):
                self.loads.append(self.now)
                self._put(self.now + LOAD_S, lambda task=action.task: self._ready(task))  # type: ignore[misc]
            elif isinstance(action, StopWorker):
                task = self.h.kernel.state.tasks[action.task]
                last = max(self._flying[model_of(task)].values(), default=self.now)
                self.cut += last > self.now + action.grace_s
                self._put(last + END_S, lambda task=task: self._end(task))  # type: ignore[misc]

    def _end(self, task: Task) -> None:
        outcome = Outcome(exit_code=0)
        self.step(ev.WorkerExited(task=task.id, generation=task.generation, outcome=outcome))

    def _put(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at, next(self._numbers), what))

    def _ready(self, task: Task) -> None:
        here = self.h.now(task)
        if here.allocation is None or here.stopping:
            return
        self.step(ev.WorkerReady(task=task.id, generation=task.generation))
        waiting = self._waiting[model_of(task)]
        for number in list(waiting):
            self._fly(number, waiting.pop(number))

    def _ask(self, asked: Asked) -> None:
        number = next(self._numbers)
        deployment = self.h.kernel.state.deployments.get(asked.model)
        tasks = [self.h.kernel.state.tasks[t] for t in (deployment.replicas if deployment else [])]
        if any(t.ready and t.state is State.RUNNING and not t.stopping for t in tasks):
            self._fly(number, asked)
            return
        self._waiting[asked.model][number] = asked
        keep_alive_s = self.h.config.keep_alive_s
        spec = DeploymentSpec(model=asked.model, memory="500MB", keep_alive_s=keep_alive_s)
        self.step(ev.Demand(name=asked.model, spec=spec))
        self._tell(asked.model)
        self._put(self.now + asked.patience_s, lambda: self._leave(number, asked))

    def _leave(self, number: int, asked: Asked) -> None:
        if self._waiting[asked.model].pop(number, None) is not None:
            self._tell(asked.model)

    def _fly(self, number: int, asked: Asked) -> None:
        self.waits.append(self.now - self.start - asked.at)
        self._flying[asked.model][number] = self.now + asked.answer_s
        self._tell(asked.model)
        self._put(self.now + asked.answer_s, lambda: self._land(number, asked.model))

    def _land(self, number: int, model: str) -> None:
        del self._flying[model][number]
        self._tell(model)

    def _tell(self, model: str) -> None:
        waiting = len(self._waiting[model])
        in_flight = waiting + len(self._flying[model])
        self.step(ev.Used(name=model, in_flight=in_flight, waiting=waiting))

    @property
    def left(self) -> int:
        """Requests that wait still."""
        return sum(map(len, self._waiting.values()))


def model_of(task: Task) -> str:
    assert isinstance(task.spec.work, ServeSpec)
    return task.spec.work.deployment


def bound_s(config: Config, models: int, answer_s: float) -> float:
    """The longest that any request waits for a replica of its model to be ready."""
    turn_s = config.model_residence_s + answer_s + END_S + LOAD_S
    return config.model_wait_s + models * turn_s


NAMES = ["a", "b", "c", "d"]
ASKED = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 1.0, 4.0, 30.0]),  # after the one before
        st.sampled_from(NAMES),
        st.sampled_from([0.1, 2.0, 8.0]),
        st.sampled_from([1e9, 1e9, 1.0, 10.0]),
    ),
    min_size=1,
    max_size=60,
)
CONFIGS = st.builds(
    Config,
    model_residence_s=st.sampled_from([0.5, 5.0, 20.0]),
    model_wait_s=st.sampled_from([0.0, 3.0, 10.0]),
    keep_alive_s=st.just(600.0),
)


@settings(max_examples=60, deadline=None)
@given(gaps=ASKED, config=CONFIGS, deployed=st.booleans())
@example(gaps=[(0.1, n, 8.0, 1e9) for n in NAMES * 40], config=Config(), deployed=False)
def test_no_request_waits_longer_than_the_bound_and_loads_are_bounded(
    gaps: list[tuple[float, str, float, float]], config: Config, deployed: bool
) -> None:
    world = World(config, NAMES, deployed=deployed)
    times = itertools.accumulate(gap[0] for gap in gaps)
    asked = [Asked(at, *gap[1:]) for at, gap in zip(times, gaps, strict=True)]
    world.run(asked, until=asked[-1].at + 2 * bound_s(config, len(NAMES), 8.0))
    assert not world.left
    assert not world.cut
    longest = max(world.waits, default=0.0)
    assert longest <= bound_s(config, len(NAMES), 8.0) + 1e-6
    # So there are at most 3600 / model_residence_s loads in any hour, and one.
    apart_s = [after - before for before, after in itertools.pairwise(world.loads)]
    assert min(apart_s, default=1e9) >= config.model_residence_s - 1e-6


def flood(seconds: float) -> list[Asked]:
    """Two models, each asked again before it has answered: neither is ever idle."""
    return [
        Asked(number + (name == "b") * 0.1, name, 2.0)
        for number in range(int(seconds))
        for name in ("a", "b")
    ]


def test_models_that_are_never_idle_take_turns() -> None:
    world = World(Config(), ["a", "b"])
    world.run(flood(120), until=200)
    assert not world.left
    assert not world.cut
    assert max(world.waits) <= bound_s(Config(), 2, 2.0)
    # A turn is as long as the others have to wait, and no shorter than that.
    assert 120 / 20 <= len(world.loads) <= 120 / Config().model_wait_s + 1


def test_the_settings_say_how_often_they_do() -> None:
    loads = []
    for residence_s in (5.0, 20.0, 60.0):
        world = World(Config(model_residence_s=residence_s, model_wait_s=1.0), ["a", "b"])
        world.run(flood(150), until=250)
        loads.append(len(world.loads))
        assert loads[-1] <= 250 / residence_s + 1
    assert loads[0] > loads[1] > loads[2]


def test_a_model_that_has_given_way_is_not_loaded_for_nobody() -> None:
    world = World(Config(), ["a", "b"], deployed=True)  # a is loaded, b waits for room
    world.run([Asked(2, "a", 20.0), Asked(4, "b", 1.0)], until=60)
    assert not world.cut
    state = world.h.kernel.state
    assert [len(state.deployments[name].replicas) for name in ("a", "b")] == [0, 1]
    loads = len(world.loads)
    world.run([], until=200)
    assert len(world.loads) == loads


def test_a_daemon_that_ends_waits_no_longer_for_answers_than_it_always_does() -> None:
    world = World(Config(), ["a", "b"])
    world.run([Asked(0, "a", 500.0), Asked(1, "b", 1.0)], until=30)
    giving_way = world.h.stopped[-1]
    assert giving_way.grace_s == Config().model_drain_s
    world.step(ev.Shutdown(suspend=True))
    assert (world.h.stopped[-1].task, world.h.stopped[-1].grace_s) == (giving_way.task, 10.0)


@pytest.mark.parametrize("priority", [50, 75])
def test_what_has_a_lower_priority_sends_no_busy_model_away(priority: int) -> None:
    world = World(Config(), ["a", "b"])
    world.run([Asked(0, "a", 500.0)], until=20)
    low = DeploymentSpec(model="b", memory="500MB", priority=priority)
    world.step(ev.Demand(name="b", spec=low))
    world.run([], until=60)
    assert bool(world.h.stopped) is (priority == 75)
