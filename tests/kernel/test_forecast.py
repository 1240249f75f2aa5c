"""A kernel built from a picture decides as the one it was taken of, and the forecast as it will."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import StartWorker
from zenos.core.config import Config
from zenos.core.errors import ZenosError
from zenos.core.outlook import Picture, Plan
from zenos.core.specs import DeploymentSpec, ProgramSpec
from zenos.core.task import Outcome, State, Task
from zenos.kernel.forecast import Forecast
from zenos.kernel.picture import slim, take
from zenos.kernel.rebuilt import build, order


def picture(h: Harness, task: Task | None = None) -> Picture:
    return slim(take(h.kernel, h.clock.now(), None if task is None else task.id))


def plan(h: Harness) -> Plan:
    forecast = Forecast(picture(h))
    done = forecast.run(limits.FORECAST_S_MAX, lambda: False)
    return forecast.plan(complete=done)


def times(h: Harness, made: Plan, task: Task) -> list[tuple[float, float, str]]:
    now = h.clock.now()
    return [
        (round(s.start - now, 3), round(s.end - now, 3), s.ends)
        for s in made.segments
        if s.task == task.id
    ]


def test_tasks_follow_each_other_as_long_as_they_are_expected_to_run() -> None:
    h = Harness(node(cpu=1))
    running = h.submit(spec(expected_s=100.0))
    h.run(running)
    long, short = h.submit(spec(expected_s=50.0)), h.submit(spec(expected_s=5.0))
    h.wait(30)
    made = plan(h)
    assert times(h, made, running) == [(-30.0, 70.0, "finished")]
    assert times(h, made, short) == [(70.0, 75.0, "finished")]
    assert times(h, made, long) == [(75.0, 125.0, "finished")]
    assert made.complete
    assert made.until == h.clock.now() + 125.0
    # And that is how it comes.
    h.clock.advance(70)
    h.exit(running)
    assert h.now(short).state is State.STARTING
    # Nothing of that was decided for the kernel itself.
    assert h.now(long).state is State.QUEUED


def test_a_task_that_would_run_longer_than_its_time_limit_ends_there() -> None:
    h = Harness(node(cpu=1))
    h.clock.advance(1_764_480_000.123)
    limited = h.submit(spec(time_limit_s=100.1))
    h.run(limited)
    after = h.submit(spec(expected_s=5.0))
    made = plan(h)
    assert made.complete
    assert times(h, made, limited) == [(0.0, 100.1, "stopped")]
    assert times(h, made, after) == [(100.1, 105.1, "finished")]


def test_a_training_gives_way_and_goes_on() -> None:
    h = Harness(node(cpu=1), config=Config(residence_s=5.0))
    training = h.submit(spec(TRAIN, expected_s=100.0))
    h.run(training)
    h.wait(1)
    urgent = h.submit(spec(priority=75, expected_s=10.0))
    assert h.now(training).state is State.RUNNING  # it has its residence still
    made = plan(h)
    assert times(h, made, urgent) == [(4.0, 14.0, "finished")]
    assert times(h, made, training) == [(-1.0, 4.0, "gives way"), (14.0, 109.0, "finished")]


def test_a_task_that_is_pausing_has_paused_and_its_cpu_is_anothers() -> None:
    h = Harness(node(cpu=1))
    pausing = h.submit(spec(expected_s=10.0))
    h.run(pausing)
    h.pause(pausing)
    following = h.submit(spec(expected_s=10.0))
    made = plan(h)
    assert times(h, made, pausing) == [(0.0, 0.0, "paused")]
    assert times(h, made, following) == [(0.0, 10.0, "finished")]


def test_paused_and_held_tasks_and_replicas_stay_where_they_are() -> None:
    h = Harness(node(cpu=4))
    paused = h.submit(spec(expected_s=10.0))
    h.run(paused)
    held = h.submit(spec(TRAIN, cpu=4))
    h.suspend(held)
    h.pause(paused)
    h.paused(paused)
    model = DeploymentSpec(model="m", min_replicas=1, max_replicas=1, memory="100MB")
    h.ask(ev.Deploy(request=1, spec=model))
    made = plan(h)
    assert made.never == [held.id]
    assert [(s.kind, s.ends) for s in made.segments if s.task != paused.id] == [("serve", "open")]
    assert made.complete


def test_of_a_long_queue_the_heads_and_the_longest_waiting_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h = Harness(node(cpu=1))
    tasks = [h.submit(spec(expected_s=10.0)) for _ in range(8)]
    urgent = h.submit(spec(priority=90, expected_s=10.0))
    monkeypatch.setattr(limits, "PICTURED_TASKS_MAX", 4)
    made = picture(h, tasks[7])
    assert {t.id for t in made.tasks} == {t.id for t in (*tasks[:3], urgent, tasks[7])}
    assert (made.waiting, made.left_out) == (8, 4)


def test_all_replicas_that_wait_are_in_the_picture_since_their_deployments_name_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h = Harness(node(cpu=1))
    h.run(h.submit(spec(expected_s=10.0)))
    for more in range(4):  # each the head of a bucket of its own
        h.submit(spec(cpu=1 - more / 10))
    model = DeploymentSpec(model="m", min_replicas=3, max_replicas=3, memory="100MB")
    h.ask(ev.Deploy(request=1, spec=model))
    monkeypatch.setattr(limits, "PICTURED_TASKS_MAX", 2)
    replicas = h.kernel.state.deployments["m"].replicas
    made = picture(h)
    assert {task.id for task in made.tasks if task.state is State.QUEUED} == set(replicas)
    assert made.left_out == 4
    assert Forecast(made).run(limits.FORECAST_S_MAX, lambda: False)


def test_a_picture_has_nothing_of_what_a_program_is_given() -> None:
    h = Harness(node(cpu=1))
    secret = ProgramSpec(argv=["work", "s3cret"], env={"TOKEN": "s3cret"})
    h.submit(spec(secret))
    h.submit(spec(secret))
    assert "s3cret" not in repr(picture(h))


def test_what_is_not_stored_is_in_the_picture_too() -> None:
    """Claims, who has given way, the reservation and who started as overdue."""
    h = Harness(node(cpu=2))
    h.run(h.submit(spec(TRAIN, cpu=2)))
    h.wait(10)
    h.submit(spec(cpu=2, priority=75))
    real = h.kernel
    assert real.state.scheduler.claims
    assert real.preemption.given_way
    copy = build(picture(h))
    assert copy.state.scheduler.claims == real.state.scheduler.claims
    assert copy.preemption.given_way == real.preemption.given_way

    h = Harness(node(cpu=2))
    first, long = h.submit(spec(cpu=1)), h.submit(spec(cpu=1))
    h.run(first)
    h.run(long)
    late = h.submit(spec(cpu=1, expected_s=1.0))
    h.submit(spec(cpu=2))
    h.wait(4000)
    h.exit(first)
    real = h.kernel
    assert real.state.overdue_running == {late.id}
    copy = build(picture(h))
    assert copy.state.scheduler.reservation == real.state.scheduler.reservation
    assert copy.state.overdue_running == real.state.overdue_running


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "run", "exit", "pause", "paused", "suspend", "resume", "wait"]),
        st.integers(0, 7),
        st.integers(0, 2),
        st.sampled_from([0, 25, 50, 75]),
    ),
    min_size=4,
    max_size=40,
)


def acted(h: Harness, steps: list[tuple[str, int, int, int]]) -> list[Task]:
    """A kernel that has been through something."""
    tasks: list[Task] = []
    for verb, which, size, priority in steps:
        if verb == "submit" or not tasks:
            work = (PROGRAM, TRAIN, YIELDING)[which % 3]
            gpu = (0.0, 0.5, 1.0)[which % 3]
            wants = spec(work, cpu=1 + size, gpu=gpu, memory="300MB", priority=priority)
            tasks.append(h.submit(wants))
            continue
        task = tasks[which % len(tasks)]
        if verb == "wait":
            h.wait((1.0, 700.0, 4000.0)[size])
        elif verb == "run":
            h.run(task)
        elif verb == "exit":
            h.exit(task, exit_code=(0, 1, 75)[size])
        elif verb == "paused":
            h.paused(task)
        else:
            with contextlib.suppress(ZenosError):
                getattr(h, verb)(task)
    h.step()
    return tasks


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, code=st.sampled_from([0, 75]), which=st.integers(0, 7))
def test_a_kernel_from_a_picture_decides_the_same(
    steps: list[tuple[str, int, int, int]], code: int, which: int
) -> None:
    h = Harness(node(cpu=3), node(cpu=2, gpu=1, name="second"))
    acted(h, steps)
    copy = build(picture(h))
    copy.state.check()
    live = [t for t in h.kernel.state.tasks.values() if t.allocation is not None]
    events: list[ev.Event] = []
    if live:
        task = live[which % len(live)]
        outcome = Outcome(exit_code=code)
        exited = ev.WorkerExited(task=task.id, generation=task.generation, outcome=outcome)
        events.append(exited)
    now = h.clock.advance(1.0)
    copied, real = copy.step(events, now), h.kernel.step(events, now)

    def started(actions: object) -> list[tuple[str, object]]:
        return [
            (a.task.id, a.task.allocation)
            for a in actions  # type: ignore[attr-defined]
            if isinstance(a, StartWorker)
        ]

    assert started(copied.actions) == started(real.actions)
    assert [type(a) for a in copied.actions if "Worker" in type(a).__name__] == [
        type(a) for a in real.actions if "Worker" in type(a).__name__
    ]
    # The real one may look once more, for a stay that has ended since: it finds nothing to do then.
    assert real.wake <= copied.wake
    while real.wake < copied.wake:
        real = h.kernel.step([], h.clock.advance(real.wake - h.clock.now()))
        assert not real.actions


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_a_forecast_of_anything_keeps_the_invariants_and_capacity(
    steps: list[tuple[str, int, int, int]],
) -> None:
    h = Harness(node(cpu=3), node(cpu=2, gpu=1, name="second"))
    acted(h, steps)
    made = plan(h)
    waits = {t.id for t in h.kernel.state.tasks.values() if t.state is State.QUEUED}
    assert {s.task for s in made.segments} | set(made.never) >= waits
    for at in {segment.start for segment in made.segments}:
        for pool in h.kernel.state.resources.pools.values():
            used = sum(
                s.resources.cpu
                for s in made.segments
                if s.node == pool.node.name and s.start <= at < s.end
            )
            assert used <= pool.node.capacity.cpu
    assert list(order(build(picture(h)), h.clock.now())) or not len(h.kernel.state.scheduler.queue)
