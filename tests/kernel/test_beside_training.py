"""A training beside requests: whatever comes when, it gives way, goes on and ends."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.harness import TRAIN, spec
from tests.kernel.test_taking_turns import END_S, LOAD_S, Asked, World
from zenos.core import events as ev
from zenos.core.actions import StartWorker, StopWorker
from zenos.core.config import Config
from zenos.core.task import Kind, Outcome, State, Task
from zenos.kernel.supervision import EXIT_SUSPENDED

WORK_S, SAVE_S, BEGIN_S = 30.0, 0.7, 0.3
KEEP_ALIVE_S = 0.2


class Beside(World):
    """A place for one thing at a time, for which a training waits as well."""

    def __init__(self, config: Config, models: list[str]) -> None:
        self.left_s = WORK_S
        self._stay = 0  # which of the training's stays this is
        self._began: float | None = None
        super().__init__(config, models)
        self.step(ev.Submit(request=1, spec=spec(TRAIN, cpu=1, memory="500MB")))
        (self.task,) = self.h.kernel.state.tasks.values()

    def step(self, *events: ev.Event) -> None:
        """As the others', with the training's worker."""
        actions = self.h.step(*events).actions
        for action in actions:
            if isinstance(action, StartWorker):
                if action.task.kind is Kind.TRAIN:
                    self._put(self.now + BEGIN_S, lambda task=action.task: self._begin(task))  # type: ignore[misc]
                else:
                    self.loads.append(self.now)
                    self._put(self.now + LOAD_S, lambda task=action.task: self._ready(task))  # type: ignore[misc]
            elif isinstance(action, StopWorker):
                self._stop(self.h.kernel.state.tasks[action.task], action)

    def _begin(self, task: Task) -> None:
        self._stay, self._began = self._stay + 1, self.now
        stay = self._stay
        self._put(self.now + self.left_s, lambda: self._finish(task, stay))
        self.step(ev.WorkerStarted(task=task.id, generation=task.generation, pid=1))

    def _stop(self, task: Task, action: StopWorker) -> None:
        if task.kind is not Kind.TRAIN:
            last = max(self._flying[self._model(task)].values(), default=self.now)
            self.cut += last > self.now + action.grace_s
            self._put(last + END_S, lambda: self._end(task))
            return
        assert action.save
        assert self._began is not None
        self.left_s -= self.now - self._began
        self._stay, self._began = self._stay + 1, None
        self._put(self.now + SAVE_S, lambda: self._exit(task, EXIT_SUSPENDED))

    def _finish(self, task: Task, stay: int) -> None:
        if self._stay == stay:  # it was not told to save meanwhile
            self._exit(task, 0)

    def _exit(self, task: Task, code: int) -> None:
        outcome = Outcome(exit_code=code)
        self.step(ev.WorkerExited(task=task.id, generation=task.generation, outcome=outcome))

    def _model(self, task: Task) -> str:
        return task.spec.work.deployment  # type: ignore[union-attr]


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(
        st.tuples(
            st.floats(0.0, 8.0),
            st.sampled_from(["a", "a", "a", "b"]),
            st.floats(0.0, 2.0),
            st.sampled_from([1e9, 1e9, 0.1, 1.0, 3.0]),
        ),
        max_size=25,
    ),
    keep_alive_s=st.sampled_from([0.0, KEEP_ALIVE_S, 1.0]),
)
def test_a_training_ends_however_requests_come(
    gaps: list[tuple[float, str, float, float]], keep_alive_s: float
) -> None:
    config = Config(keep_alive_s=keep_alive_s, residence_s=0.0, preemptions_per_hour=1000)
    world = Beside(config, ["a", "b"])
    times = itertools.accumulate(gap[0] for gap in gaps)
    asked = [Asked(at, *gap[1:]) for at, gap in zip(times, gaps, strict=True)]
    # Each request costs at most a save, a load, its answer, the keep-alive, an end and a start.
    each_s = SAVE_S + LOAD_S + 2.0 + keep_alive_s + END_S + BEGIN_S + config.model_residence_s
    last = asked[-1].at if asked else 0.0
    world.run(asked, until=last + WORK_S + BEGIN_S + len(asked) * each_s + config.model_wait_s + 1)
    assert not world.left
    assert not world.cut
    assert world.h.now(world.task).state is State.SUCCEEDED
    assert not world.h.kernel.state.deployments
