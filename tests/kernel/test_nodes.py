"""Nodes are lost and come back, are cordoned and drained: what becomes of what ran there."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from tests.kernel.test_audit import rows
from tests.kernel.test_explanation import why
from tests.kernel.test_gangs import gang, nodes
from zenos.core import events as ev
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.core.errors import NotFoundError, UnfittableError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import State, Task
from zenos.kernel.control import View


def two(**more: object) -> Harness:
    """Two nodes of which each holds two tasks of the usual size."""
    return Harness(node(name="a"), node(name="b"), config=Config(**more))  # type: ignore[arg-type]


def place(h: Harness, task: Task) -> str | None:
    allocation = h.now(task).allocation
    return allocation.node if allocation is not None else None


def down(h: Harness, name: str) -> None:
    h.step(ev.NodeDown(node=name, reason="it was unplugged"))


def back(h: Harness, name: str, *running: tuple[str, int]) -> None:
    known = h.pool(name).node
    h.step(ev.NodeUp(node=replace(known, cordon=None, lost=None), running=running))


# -- lost


def test_what_becomes_of_each_kind_when_its_node_is_lost() -> None:
    h = Harness(node(cpu=8, memory="9GB", name="a"))
    program, again, saves = h.submit(spec()), h.submit(spec(retries=1)), h.submit(spec(YIELDING))
    training, ended = h.submit(spec(TRAIN)), h.submit(spec())
    h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="m", memory="1GB", min_replicas=1)))
    for task_id in list(h.kernel.state.holding):
        h.run(h.kernel.state.tasks[task_id])
    h.cancel(ended)
    h.suspend(saves)
    killed = {(stop.task, stop.generation) for stop in h.stopped}
    down(h, "a")
    assert [h.now(t).state for t in (program, saves)] == [State.LOST, State.LOST]
    assert h.now(ended).state is State.CANCELLED
    assert h.now(again).state is State.QUEUED
    assert h.now(again).attempts == 1
    # A training goes on from its checkpoint, and that it was here counts for nothing.
    assert (h.now(training).state, h.now(training).attempts) == (State.QUEUED, 0)
    assert h.now(training).not_before <= h.clock.now()
    outcome = h.now(program).outcome
    assert outcome is not None
    assert outcome.error == ("cannot say how it ended: the node a was lost: it was unplugged")
    # Another replica waits for the first node that has room.
    (replica,) = h.kernel.state.deployments["m"].replicas
    assert h.kernel.state.tasks[replica].state is State.QUEUED
    # Whatever is left there is told to end, should it be heard.
    told = {(stop.task, stop.generation) for stop in h.stopped} - killed
    assert (training.id, 1) in told
    assert not h.kernel.state.holding
    h.wait(100)
    assert not h.started[6:], "nothing starts on a node that is lost"


def test_readers_count_shares_of_what_is_there_as_the_kernel_does() -> None:
    h = two()
    view = View(Snapshot())
    view.apply(h.steps[-1].changes)
    h.submit(spec(cpu=1))
    view.apply(h.steps[-1].changes)
    h.step(ev.NodeDown(node="b"))
    view.apply(h.steps[-1].changes)
    shares = {name: account.dominant for name, account in h.kernel.state.accounts.known.items()}
    assert shares == {name: account.dominant for name, account in view.accounts.known.items()}
    assert shares == {"user/local": 0.5, "project/default": 0.5}


def test_what_fits_on_no_other_node_waits_for_one_that_is_lost() -> None:
    h = Harness(node(cpu=1, name="a"), node(cpu=4, name="b"))
    down(h, "b")
    task = h.submit(spec(cpu=3))
    assert why(h, task).reason == "it waits until a node takes it: node b is lost"
    with pytest.raises(UnfittableError):
        h.submit(spec(cpu=5))
    assert h.kernel.state.resources.capacity().cpu == 1000
    h = h.restarted()
    assert h.now(task).state is State.QUEUED
    h.step(ev.NodeUp(node=node(cpu=4, name="b"), running=()))
    assert place(h, task) == "b"


def test_a_gang_that_loses_a_node_ends_on_the_others_and_begins_anew() -> None:
    h = nodes(3)
    task = h.submit(gang(8))
    h.run(task)
    first = [part.node for part in h.now(task).allocation.parts]  # type: ignore[union-attr]
    down(h, first[1])
    assert [(stop.task, stop.generation, stop.grace_s) for stop in h.stopped] == [(task.id, 1, 0.0)]
    now = h.now(task)
    assert (now.state, now.generation) == (State.STARTING, 2)
    assert now.allocation is not None
    assert first[1] not in {part.node for part in now.allocation.parts}


def test_a_node_that_is_silent_for_its_lease_is_lost_and_its_beats_keep_it() -> None:
    h = Harness(node(name="here"), replace(node(name="far", cpu=4), lease_s=30.0))
    task = h.submit(spec(TRAIN, cpu=3))
    h.run(task)
    for _ in range(3):
        h.wait(29)
        h.step(ev.NodeBeat(node="far"))
    assert h.steps[-1].wake == pytest.approx(h.clock.now() + 30)
    h.wait(29.9)
    assert h.now(task).state is State.RUNNING
    h.wait(0.2)
    assert h.now(task).state is State.QUEUED
    assert h.steps[-1].changes.nodes["far"].lost == h.clock.now()
    # It has to say what it has before it counts again.
    h.step(ev.NodeBeat(node="far"))
    assert h.now(task).state is State.QUEUED
    back(h, "far", (task.id, 1))
    assert h.stopped[-1].task == task.id
    assert h.stopped[-1].generation == 1
    assert h.now(task).generation == 2


def test_after_a_restart_a_node_has_its_whole_lease_to_be_heard_again() -> None:
    h = Harness(node(name="here"), replace(node(name="far", cpu=4), lease_s=30.0))
    task = h.submit(spec(TRAIN, cpu=3))
    h.run(task)
    h.wait(29)
    silent = [pool.node for pool in h.kernel.state.resources.pools.values()]
    h = Harness(node(name="here"), snapshot=h.snapshot())
    assert h.pool("far").node == silent[1]
    h.wait(29)
    assert h.now(task).state is State.RUNNING
    h.wait(2)
    assert h.now(task).state is State.QUEUED


def test_a_node_that_was_started_anew_before_anybody_missed_it() -> None:
    h = two()
    stays, goes = h.submit(spec(TRAIN)), h.submit(spec(TRAIN))
    h.run(stays)
    h.run(goes)
    back(h, "a", (stays.id, 1), ("t99", 4))
    assert h.now(stays).state is State.RUNNING
    assert h.now(goes).generation == 2
    assert {(stop.task, stop.generation) for stop in h.stopped} == {(goes.id, 1), ("t99", 4)}


def test_who_could_not_hear_what_was_asked_of_it_is_told_again_when_its_node_is_back() -> None:
    h = Harness(node(name="here"), replace(node(name="far", cpu=9), lease_s=30.0))
    ends, starts = h.submit(spec(TRAIN, cpu=3)), h.submit(spec(cpu=4))
    h.run(ends)
    h.cancel(ends)
    told = h.stopped[-1]
    back(h, "far", (ends.id, 1))
    assert h.stopped[-2:] == [told, told]
    # Of what was to be started it knows nothing: it is started, as the same generation.
    assert [(task.id, task.generation) for task in h.started].count((starts.id, 1)) == 2
    assert h.now(starts).state is State.STARTING


def test_a_reservation_and_a_claim_leave_a_node_that_is_lost() -> None:
    h = two(overdue_wait_s=1000.0, residence_s=5.0)
    for _ in range(2):
        h.run(h.submit(spec(PROGRAM, cpu=2)))
    wide = h.submit(spec(PROGRAM, cpu=2))
    h.wait(1001)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert held.task == wide.id
    down(h, held.node)
    after = h.kernel.state.scheduler.reservation
    assert after is not None
    assert {held.node, after.node} == {"a", "b"}

    h = two(residence_s=5.0)
    for _ in range(2):
        h.run(h.submit(spec(YIELDING, cpu=2)))
    h.wait(60)
    high = h.submit(spec(PROGRAM, cpu=2, priority=75))
    claim = h.kernel.state.scheduler.claims[high.id]
    down(h, claim.node)
    other = h.kernel.state.scheduler.claims[high.id]
    assert {claim.node, other.node} == {"a", "b"}
    assert {task for task, _ in claim.victims}.isdisjoint(task for task, _ in other.victims)


# -- cordoned


def test_on_a_cordoned_node_nothing_new_starts_and_what_runs_goes_on() -> None:
    h = Harness(node(cpu=2))
    runs = h.submit(spec(TRAIN))
    h.run(runs)
    assert h.cordon("local", "cordon").cordon == "cordon"
    waits = h.submit(spec())
    assert (h.now(runs).state, h.now(waits).state) == (State.RUNNING, State.QUEUED)
    made = why(h, waits)
    assert made.reason == "it waits until a node takes it: node local is cordoned"
    assert [(r.kind, r.text) for r in made.remedies] == [("uncordon", "zenos node uncordon local")]
    h.pause(runs)
    h.paused(runs)
    h.resume(runs)
    assert h.now(runs).state is State.RUNNING, "to go on is nothing new"
    h = h.restarted()
    assert h.now(waits).state is State.QUEUED, "the word is remembered"
    h.exit(runs)
    h.wait(10)
    assert h.now(waits).state is State.QUEUED
    h.cordon("local", None)
    assert h.now(waits).state is State.STARTING


def test_nobody_gives_way_on_a_cordoned_node() -> None:
    h = two(residence_s=5.0)
    first, second = h.submit(spec(YIELDING, cpu=2)), h.submit(spec(YIELDING, cpu=2))
    h.run(first)
    h.run(second)
    h.cordon("a", "cordon")
    h.wait(60)
    high = h.submit(spec(PROGRAM, cpu=2, priority=75))
    assert h.kernel.state.scheduler.claims[high.id].node == "b"
    again = h.submit(spec(PROGRAM, cpu=2, priority=75))
    assert again.id not in h.kernel.state.scheduler.claims
    assert h.now(first).state is State.RUNNING


def test_an_overdue_task_reserves_nothing_where_nothing_starts() -> None:
    h = two(overdue_wait_s=1000.0)
    for _ in range(2):
        h.run(h.submit(spec(PROGRAM, cpu=2)))
    wide = h.submit(spec(PROGRAM, cpu=2))
    h.cordon("a", "cordon")
    h.wait(1001)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert (held.task, held.node) == (wide.id, "b")
    h.cordon("b", "cordon")
    assert h.kernel.state.scheduler.reservation is None
    h.cordon("b", None)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert held.node == "b"


# -- drained


def test_a_drained_node_sends_away_what_can_be_saved_and_lets_the_rest_end() -> None:
    h = Harness(node(cpu=8, memory="9GB", name="a"), node(cpu=8, memory="9GB", name="b"))
    h.cordon("b", "cordon")
    training, paused, program = h.submit(spec(TRAIN)), h.submit(spec(YIELDING)), h.submit(spec())
    starts = h.submit(spec(TRAIN))
    h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="m", memory="1GB", min_replicas=1)))
    (replica,) = (t for t in h.kernel.state.tasks.values() if t.kind == "serve")
    for task in (training, paused, program, replica):
        h.run(task)
    h.step(ev.WorkerReady(task=replica.id, generation=1))
    h.pause(paused)
    h.paused(paused)
    h.cordon("b", None)
    h.cordon("a", "drain")
    assert {s.task for s in h.stopped} == {training.id, paused.id, replica.id}
    assert {s.task for s in h.stopped if s.save} == {training.id, paused.id}
    assert [h.now(t).state for t in (program, starts)] == [State.RUNNING, State.STARTING]
    # Its successor is made at once, elsewhere.
    other = [t for t in h.kernel.state.tasks.values() if t.kind == "serve" and t != h.now(replica)]
    assert [place(h, t) for t in other] == ["b"]
    h.run(starts)  # it can be saved from now on
    assert h.now(starts).state is State.SUSPENDING
    for task in (training, starts):
        h.exit(task, exit_code=75)
        assert place(h, task) == "b"
    h.exit(paused, exit_code=75)
    assert h.now(paused).held == "pause", "who paused it decides when it goes on"
    h.exit(replica)
    h.exit(program)
    assert h.now(program).state is State.SUCCEEDED
    assert not h.kernel.state.on_node.get("a")
    events = [e for step in h.steps for e in step.changes.events if e.task == training.id]
    assert "the node a is drained" in [event.detail for event in events]


def test_a_drain_is_remembered_and_a_drained_node_may_be_lost() -> None:
    h = two()
    training = h.submit(spec(TRAIN))
    h.cordon("a", "drain")
    h = h.restarted()
    h.run(training)
    assert h.now(training).state is State.SUSPENDING
    down(h, "a")
    assert place(h, training) == "b"
    back(h, "a")
    assert h.pool("a").node.cordon == "drain", "what people said of it holds on"
    assert math.isinf(h.steps[-1].wake) or h.steps[-1].wake > h.clock.now()


# -- who said it


def test_who_cordons_is_written_down_once_and_an_unknown_node_is_refused() -> None:
    h = two()
    assert h.cordon("a", "cordon").standing == "cordoned"
    h.cordon("a", "cordon")
    assert h.cordon("a", "drain").standing == "drained"
    h.cordon("a", None)
    with pytest.raises(NotFoundError, match="cannot find the node 'c'"):
        h.cordon("c", "drain")
    said = rows(h)
    assert said[:3] == [("cordon", "a", ""), ("drain", "a", ""), ("uncordon", "a", "")]
    assert said[3][:2] == ("drain", "c")


def test_who_asks_before_the_first_step_is_told_of_this_machine() -> None:
    here = node(cpu=2)
    view = View(Snapshot(nodes={"local": replace(node(cpu=1), cordon="cordon")}))
    assert view.boots_on(here) == ev.NodeUp(node=here)
    assert view.nodes == {"local": replace(here, cordon="cordon")}
    fresh = View(Snapshot())
    fresh.boots_on(here)
    assert fresh.nodes == {"local": here}
