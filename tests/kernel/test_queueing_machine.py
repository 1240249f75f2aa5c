"""Any order of submissions, ends, waits and restarts keeps what a task waits for.

After each step `Harness.step` checks the kernel's invariants. A restart is a new kernel from what
the last step has committed: a crash between any two steps.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from tests.kernel.harness import YIELDING, Harness, node, spec
from zenos.core import events as ev
from zenos.core.arrays import Array
from zenos.core.config import Config
from zenos.core.errors import ConflictError, NotFoundError, RefusedError
from zenos.core.task import HOLDING, State, Task


class QueueingMachine(RuleBasedStateMachine):
    """Chains, arrays with limits, start times and deadlines."""

    tasks = Bundle("tasks")
    parents = Bundle("parents")  # ids of tasks and of arrays

    def __init__(self) -> None:
        super().__init__()
        # Few ended tasks are remembered, so that parents are forgotten too.
        self.h = Harness(node(cpu=3, gpu=0), config=Config(ended_tasks_kept=6))
        self.ends: dict[str, State] = {}  # of every task that has ended, forgotten ones too
        self.arrays: dict[str, Array] = {}
        self.specs: dict[str, tuple[tuple[str, ...], float]] = {}

    def note(self, task: Task) -> None:
        self.specs[task.id] = (task.after, task.spec.start_at or 0.0)

    after = st.lists(st.tuples(st.booleans(), parents), max_size=3)

    @rule(
        target=parents,
        after=after,
        ahead=st.sampled_from([None, -5.0, 0.0, 30.0, 2000.0]),
        due=st.sampled_from([None, 2100.0, 9000.0]),
        cpu=st.sampled_from([0.5, 1.0, 3.0]),
        retries=st.integers(0, 1),
        size=st.sampled_from([0, 0, 1, 3]),
        limit=st.sampled_from([None, 1, 2]),
    )
    def submit(
        self,
        after: list[tuple[bool, str]],
        ahead: float | None,
        due: float | None,
        cpu: float,
        retries: int,
        size: int,
        limit: int | None,
    ) -> object:
        now = self.h.clock.now()
        wanted = spec(
            YIELDING,
            cpu=cpu,
            memory="5MB",
            retries=retries,
            after=tuple(f"any:{who}" if any_ else who for any_, who in after),
            start_at=None if ahead is None else now + ahead,
            deadline=None if due is None else now + due,
        )
        try:
            if not size:
                task = self.h.submit(wanted)
                self.note(task)
                return task.id
            array = self.h.submit_array(wanted, f"0-{size - 1}" + (f"%{limit}" if limit else ""))
        except NotFoundError:
            state = self.h.kernel.state
            assert any(who not in state.tasks and who not in state.arrays for _, who in after)
            return multiple()
        self.arrays[array.id] = array
        for task_id in array.tasks:
            if task_id in self.h.kernel.state.tasks:
                self.note(self.h.kernel.state.tasks[task_id])
        return array.id

    def some(self, data: st.DataObject, *states: State) -> Task | None:
        found = [t for t in self.h.kernel.state.tasks.values() if t.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        if task := self.some(data, State.STARTING):
            self.h.run(task)

    @rule(data=st.data(), code=st.sampled_from([0, 0, 0, 1, 75]))
    def end(self, data: st.DataObject, code: int) -> None:
        if task := self.some(data, *HOLDING):
            self.h.exit(task, exit_code=code)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if task := self.some(data, *HOLDING):
            self.h.lose(task)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if task := self.some(data, State.QUEUED, *HOLDING):
            self.h.cancel(task)

    @rule(data=st.data())
    def cancel_array(self, data: st.DataObject) -> None:
        if self.h.kernel.state.arrays:
            array = data.draw(st.sampled_from(sorted(self.h.kernel.state.arrays)))
            self.h.ask(ev.CancelArray(request=1, array=array))

    @rule(data=st.data(), verb=st.sampled_from(["suspend", "resume", "nice"]))
    def change(self, data: st.DataObject, verb: str) -> None:
        if task := self.some(data, State.QUEUED, State.RUNNING, State.SUSPENDING):
            with suppress(ConflictError, RefusedError):
                self.h.nice(task, 60) if verb == "nice" else getattr(self.h, verb)(task)

    @rule(seconds=st.sampled_from([0.1, 5.0, 40.0, 700.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        self.h.wait(seconds)

    @rule()
    def restart(self) -> None:
        self.h = self.h.restarted()

    def has_ended_rightly(self, parent: str, *, any_end: bool) -> bool:
        ids = list(self.arrays[parent].tasks) if parent in self.arrays else [parent]
        ends = [self.ends.get(task_id) for task_id in ids]
        return None not in ends if any_end else set(ends) == {State.SUCCEEDED}

    @invariant()
    def ends_are_noted(self) -> None:
        for step in self.h.steps:
            for task in step.changes.tasks.values():
                if task.is_ended:
                    self.ends[task.id] = task.state
                    if task.id not in self.specs:
                        self.note(task)  # forgotten in the step of its submission
        del self.h.steps[:-1]

    @invariant()
    def who_starts_might(self) -> None:
        for task in self.h.started:
            after, start_at = self.specs[task.id]
            assert task.started is not None
            assert task.started >= start_at
            for entry in after:
                any_end, parent = entry.startswith("any:"), entry.removeprefix("any:")
                assert self.has_ended_rightly(parent, any_end=any_end), (task.id, entry)
        self.h.started.clear()

    @invariant()
    def who_waits_for_nothing_but_room_is_in_the_queue(self) -> None:
        state = self.h.kernel.state
        for task in state.tasks.values():
            if task.state is not State.QUEUED or task.held or task.not_before > self.h.clock.now():
                continue
            if task.id in state.crowded:
                assert task.array is not None
                assert len(state.active[task.array.id]) == task.array.limit
            else:
                assert (task.id in state.scheduler.queue) != (task.id in state.blocked)

    @invariant()
    def no_child_of_a_failure_is_left(self) -> None:
        for task in self.h.kernel.state.tasks.values():
            for entry in task.after if task.state is State.QUEUED and not task.generation else ():
                ends = self.arrays[entry].tasks if entry in self.arrays else [entry]
                for parent in ends if not entry.startswith("any:") else ():
                    assert self.ends.get(parent) in (None, State.SUCCEEDED), (task.id, entry)

    @invariant()
    def no_array_has_more_at_work_than_may_be(self) -> None:
        for array in self.h.kernel.state.arrays.values():
            there = (self.h.kernel.state.tasks.get(task_id) for task_id in array.tasks)
            work = [task for task in there if task is not None and task.state in HOLDING]
            assert array.indices.limit is None or len(work) <= array.indices.limit


QueueingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueueingMachine = QueueingMachine.TestCase
