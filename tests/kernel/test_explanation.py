"""Why a task waits: what is told is what the kernel does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from tests.kernel.test_forecast import STEPS, acted, picture
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.outlook import Remedy, Why
from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec
from zenos.core.task import HOLDING, Outcome, Principal, State, Task
from zenos.kernel.explanation import ended, explain
from zenos.kernel.supervision import EXIT_SUSPENDED, saves


def why(h: Harness, task: Task) -> Why:
    return explain(picture(h, task), task.id)


def test_place_score_and_expected_start_of_a_task_that_waits() -> None:
    h = Harness(node(cpu=1))
    running = h.submit(spec(expected_s=100.0, name="first"))
    h.run(running)
    waiting = h.submit(spec(expected_s=60.0))
    short, urgent = h.submit(spec(expected_s=5.0)), h.submit(spec(priority=60, expected_s=9.0))
    h.wait(30)
    made = why(h, waiting)
    assert made.reason == "it waits for 1 CPU more on local"
    assert (made.ahead, made.waiting, made.exact) == (2, 3, True)
    assert why(h, urgent).ahead == 0
    assert why(h, short).ahead == 1
    score = made.score
    assert score is not None
    # All CPUs are in use: it is expected to take twice as long.
    assert (score.waited_s, score.expected_s, score.contention) == (30.0, 120.0, 1.0)
    assert score.total == pytest.approx(50 + 25.0 * 30 / 150)
    assert (made.expected_s, made.expected_by) == (60.0, "user")
    assert made.starts_at == h.clock.now() + 70 + 9 + 5
    assert made.overdue_at == 1000.0 + 3600.0
    (lack,) = made.lacks
    assert (lack.node, lack.lacks) == ("local", Resources(cpu=1000))
    (holder,) = lack.holders
    assert (holder.task, holder.label, holder.until) == (running.id, "first", h.clock.now() + 70)
    # Who stands before it would get what comes free, and a little more of it.
    assert [(r.kind, r.priority) for r in made.remedies] == []
    assert [r.tasks for r in why(h, urgent).remedies if r.kind == "end"] == [[running.id]]


def test_however_many_are_overdue_each_is_told_so_and_its_place() -> None:
    """In the order in which they were queued, and not in that in which they became overdue."""
    h = Harness(node(cpu=1))
    h.run(h.submit(spec()))
    low = [h.submit(spec(priority=25, expected_s=2.0**n)) for n in range(10)]
    h.clock.advance(4000)
    high = [h.submit(spec(priority=75, expected_s=2.0**n)) for n in range(10)]
    h.wait(4000)
    for place, task in [*enumerate([*low, *high])][::3]:
        made = why(h, task)
        assert (made.overdue, made.ahead) == (True, place)


def test_a_higher_priority_that_would_preempt() -> None:
    h = Harness(node(cpu=2))
    training = h.submit(spec(TRAIN, cpu=2, priority=50))
    h.run(training)
    h.wait(6)
    waiting = h.submit(spec(cpu=1, priority=40))
    made = why(h, waiting)
    (remedy,) = [r for r in made.remedies if r.kind == "priority"]
    assert (remedy.priority, remedy.yields) == (51, [training.id])
    assert remedy.text == f"priority 51: {training.id} gives way"
    h.nice(waiting, 51)
    h.exit(training, exit_code=EXIT_SUSPENDED)
    assert h.now(waiting).state is State.STARTING
    # A program that cannot save gives way to nobody.
    h = Harness(node(cpu=2))
    h.run(h.submit(spec(PROGRAM, cpu=2)))
    h.wait(6)
    assert not [r for r in why(h, h.submit(spec())).remedies if r.kind == "priority"]


def test_several_have_to_end_where_one_is_not_enough() -> None:
    h = Harness(node(cpu=3))
    small = [h.submit(spec(cpu=1, priority=p)) for p in (10, 50, 90)]
    for task in small:
        h.run(task)
    made = why(h, h.submit(spec(cpu=2)))
    (remedy,) = [r for r in made.remedies if r.kind == "end"]
    assert remedy.tasks == [small[0].id, small[1].id]


def test_what_is_held_back_for_others_is_told_with_whom_for() -> None:
    h = Harness(node(cpu=2))
    h.run(h.submit(spec(cpu=1)))
    large = h.submit(spec(cpu=2, expected_s=1.0))
    h.wait(4000)
    small = h.submit(spec(cpu=1))
    made = why(h, small)
    assert [(row.kind, row.task) for row in made.held_back] == [("reservation", large.id)]
    assert made.lacks[0].held_back == Resources(cpu=1000, memory=1_000_000_000)
    assert "is held back for others" in made.reason
    (remedy,) = [r for r in made.remedies if r.kind == "cancel"]
    assert remedy.tasks == [large.id]
    first = why(h, large)
    assert (first.overdue, first.ahead) == (True, 0)
    h.cancel(large)
    assert h.now(small).state is State.STARTING


def test_gpus_in_pieces() -> None:
    h = Harness(node(cpu=8, gpu=2))
    for _ in range(2):
        h.run(h.submit(spec(gpu=0.6, cpu=0)))
    made = why(h, h.submit(spec(gpu=0.5, cpu=0)))
    assert made.lacks[0].in_pieces
    assert "given out in pieces" in made.reason
    assert {r.kind for r in made.remedies} == {"end", "node"}


def test_running_tasks_and_what_could_send_them_away() -> None:
    config = Config(residence_s=5.0)
    h = Harness(node(cpu=2), node(cpu=4, name="second"), config=config)
    task = h.submit(spec(TRAIN, expected_s=100.0))
    h.run(task)
    h.wait(2)
    made = why(h, task)
    assert made.reason.startswith("it runs on local")
    stay = made.stay
    assert stay is not None
    assert (stay.node, stay.ran_s, stay.ends_at) == ("local", 2.0, h.clock.now() + 98)
    assert (stay.may_yield, stay.residence_until) == (True, h.clock.now() + 3)
    assert (stay.others, stay.guarded, stay.demoted) == (["second"], False, False)
    h.wait(10)
    after = why(h, task).stay
    assert after is not None
    assert after.residence_until is None


def test_held_paused_delayed_and_ended_tasks() -> None:
    h = Harness(node(cpu=1))
    task = h.submit(spec(YIELDING, retries=3))
    h.run(task)
    h.pause(task)
    assert "gives its CPU back" in why(h, task).reason
    h.paused(task)
    made = why(h, task)
    assert made.reason.startswith("somebody paused it")
    assert [r.text for r in made.remedies] == [f"zenos resume {task.id}"]
    assert made.starts_note == "when somebody resumes it"
    other = h.submit(spec())
    h.resume(task)
    made = why(h, task)
    assert "waits for its CPU" in made.reason
    assert made.lacks[0].holders[0].task == other.id
    assert made.starts_at is not None
    assert [r.tasks for r in made.remedies if r.kind == "end"] == [[other.id]]
    h.run(other)
    h.exit(other)
    h.suspend(task)
    h.exit(task, exit_code=EXIT_SUSPENDED)
    assert "suspended" in why(h, task).reason
    h.resume(task)
    h.run(task)
    h.exit(task, exit_code=1)
    made = why(h, task)
    assert "exit code 1" in made.reason
    assert made.until == h.now(task).not_before
    assert made.starts_at == h.now(task).not_before
    h.wait(2)
    h.run(task)
    h.exit(task)
    over = ended(h.now(task), h.clock.now())
    assert over.reason == "succeeded: its worker ended with exit code 0"
    gone = h.submit(spec(cpu=1))
    h.cancel(gone)
    h.exit(gone, signal=15, exit_code=None)
    assert ended(h.now(gone), 0.0).reason == "cancelled"


def test_a_task_that_no_node_can_hold_any_more() -> None:
    h = Harness(node(cpu=2))
    h.run(h.submit(spec(cpu=1)))
    task = h.submit(spec(cpu=2))
    h.step(ev.NodeUp(node=node(cpu=1)))
    made = why(h, task)
    assert made.reason == "cannot ever fit: wants 2 CPUs, the largest node has 1"
    assert (made.starts_at, made.starts_note, made.remedies) == (None, made.reason, [])


def test_whose_end_makes_room_in_a_quota() -> None:
    ann, bob = Principal(user="ann", project="lab"), Principal(user="bob", project="lab")
    quotas = {"ann": Quota(cpu=2), "bob": Quota(gpu_hours=0.5)}
    h = Harness(node(cpu=8, gpu=1, memory="64GB"), config=Config(user_quotas=quotas))
    other = h.submit(spec(PROGRAM, cpu=1), principal=bob)
    whole = h.submit(spec(PROGRAM, cpu=2, name="whole"), principal=ann)
    for task in (other, whole):
        h.run(task)
    waiting = h.submit(spec(cpu=1), principal=ann)
    made = why(h, waiting)
    assert made.reason == "ann holds 2 CPUs of at most 2 CPUs, and it wants 1 CPU"
    assert made.lacks == []  # the node has room
    (remedy,) = made.remedies
    assert (remedy.kind, remedy.tasks, remedy.node) == ("end", [whole.id], "")
    assert remedy.text.startswith(f"the end of {whole.id} (whole) (holds 2 CPU, ")
    assert remedy.text.endswith(" of what ann may hold)")
    h.exit(whole)
    assert h.now(waiting).state is State.STARTING

    # Several, the least important first; without those that hold none of it.
    h.run(waiting)
    second = h.submit(spec(PROGRAM, cpu=1, priority=10), principal=ann)
    h.run(second)
    h.run(h.submit(spec(PROGRAM, cpu=0, priority=5), principal=ann))
    large = h.submit(spec(cpu=2), principal=ann)
    (remedy,) = why(h, large).remedies
    assert remedy.tasks == [second.id, waiting.id]

    # Hours that are spent come back by nobody's end.
    training = h.submit(spec(PROGRAM, cpu=1, gpu=0.5), principal=bob)
    h.run(training)
    h.wait(3600)
    h.submit(spec(cpu=0, gpu=0.5), principal=bob)
    assert why(h, h.submit(spec(cpu=0, gpu=0.5), principal=bob)).remedies == []


def test_one_whose_end_makes_room_on_its_node_and_in_the_quota_is_named_once() -> None:
    ann = Principal(user="ann", project="lab")
    h = Harness(node(cpu=2), config=Config(user_quotas={"ann": Quota(cpu=2)}))
    holder = h.submit(spec(PROGRAM, cpu=2), principal=ann)
    h.run(holder)
    made = why(h, h.submit(spec(cpu=1), principal=ann))
    assert [lack.node for lack in made.lacks] == ["local"]
    ends = [remedy for remedy in made.remedies if remedy.kind == "end"]
    assert [(end.tasks, end.node) for end in ends] == [([holder.id], "local")]


def test_a_replica_that_waits() -> None:
    h = Harness(node(cpu=1))
    h.run(h.submit(spec()))
    model = DeploymentSpec(model="m", min_replicas=1, max_replicas=1, memory="100MB", cpu=1)
    h.ask(ev.Deploy(request=1, spec=model))
    (replica,) = [t for t in h.kernel.state.tasks.values() if t.kind == "serve"]
    made = why(h, replica)
    assert made.expected_s is None
    assert made.remedies
    assert made.starts_at is not None


def do(h: Harness, task: Task, remedy: Remedy) -> None:
    """What a remedy says, and what follows at once."""
    match remedy.kind:
        case "resume":
            h.resume(task, inexact=h.now(task).held == "numerics")
        case "priority":
            assert remedy.priority is not None
            h.nice(task, remedy.priority)
        case "end":
            exits = [h.kernel.state.tasks[name] for name in remedy.tasks]
            h.step(*(leaves(t, Outcome(exit_code=0)) for t in exits))
        case "cancel":
            for name in remedy.tasks:
                h.cancel(h.kernel.state.tasks[name])
        case "node":
            pool = h.kernel.state.resources.pools[remedy.node]
            gpus = pool.node.gpus + remedy.resources.gpu // 1000
            capacity = pool.node.capacity + remedy.resources
            h.step(ev.NodeUp(node=replace(pool.node, capacity=capacity, gpus=gpus)))
    for _ in range(20):
        live = [h.kernel.state.tasks[name] for name in sorted(h.kernel.state.holding)]
        due: list[ev.Event] = []
        for one in live:
            if one.stopping:
                code = Outcome(exit_code=EXIT_SUSPENDED) if saves(one) else Outcome(signal=15)
                due.append(leaves(one, code))
            elif one.state is State.PAUSING:
                due.append(ev.WorkerPaused(task=one.id, generation=one.generation))
        if not due:
            return
        h.step(*due)


def leaves(task: Task, outcome: Outcome) -> ev.Event:
    return ev.WorkerExited(task=task.id, generation=task.generation, outcome=outcome)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_the_state_it_is_explained_and_what_is_said_to_help_does(
    steps: list[tuple[str, int, int, int]],
) -> None:
    def replayed() -> tuple[Harness, list[Task]]:
        h = Harness(node(cpu=3), node(cpu=2, gpu=1, name="second"))
        return h, acted(h, steps)

    h, tasks = replayed()
    for task in tasks:
        if h.now(task).is_ended:
            assert ended(h.now(task), h.clock.now()).reason
            continue
        made = why(h, task)
        assert made.reason
        assert (made.score is None) == (task.id not in h.kernel.state.scheduler.queue)
        if made.score is not None:
            s = made.score
            assert s.total == pytest.approx(s.priority + s.raised + s.ageing * s.p - s.penalty)
        for remedy in made.remedies:
            other, _ = replayed()
            do(other, task, remedy)
            state = other.now(task).state
            assert state in HOLDING, (made.reason, remedy)
            assert state not in (State.PAUSED, State.PAUSING), (made.reason, remedy)


def test_what_a_quota_has_room_for_and_others_have_been_promised() -> None:
    ann = Principal(user="ann")
    config = Config(residence_s=1.0, user_quotas={"ann": Quota(cpu=4)})
    h = Harness(node(cpu=4), node(cpu=4, name="second"), config=config)
    training = h.submit(spec(TRAIN, cpu=2, priority=25), principal=ann)
    h.run(training)
    h.wait(10)
    first = h.submit(spec(cpu=3, priority=75), principal=ann)
    assert [stop.task for stop in h.stopped] == [training.id]
    waits = h.submit(spec(cpu=2), principal=ann)
    made = why(h, waits)
    assert made.reason == (
        f"ann has room for it, but that is held back for {first.id}, to which others give way"
    )
    h.exit(training, exit_code=75)
    assert h.now(first).state is State.STARTING
    assert "holds 3 CPUs of at most 4" in why(h, waits).reason
