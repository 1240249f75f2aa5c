"""What waits is not forgotten: over restarts, shrunken nodes and cancelled replicas."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.clock import SystemClock
from zenos.core.config import Config
from zenos.core.errors import StorageError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Outcome, State
from zenos.kernel import loop
from zenos.kernel.control import Inbox
from zenos.kernel.estimates import Estimates
from zenos.kernel.step import Kernel


def test_an_overdue_task_that_no_node_can_hold_any_more_keeps_no_other_waiting() -> None:
    h = Harness(node(cpu=4))
    blocker = h.submit(spec(cpu=4))
    h.run(blocker)
    large = h.submit(spec(cpu=3))
    small = [h.submit(spec(cpu=1)) for _ in range(3)]
    h.wait(7 * 86_400)  # all are overdue
    ended = ev.WorkerExited(task=blocker.id, generation=1, outcome=Outcome(exit_code=0))
    h.step(ended, ev.NodeUp(node=node(cpu=2)))
    for _ in small:
        for task in small:
            if h.now(task).state is State.STARTING:
                h.run(task)
                h.exit(task)
    assert [h.now(task).state for task in small] == [State.SUCCEEDED] * 3
    assert h.now(large).state is State.QUEUED
    h.step(ev.NodeUp(node=node(cpu=4)))
    assert h.now(large).state is State.STARTING


def test_who_has_waited_longest_stands_first_after_a_restart_too() -> None:
    h = Harness(node(cpu=1))
    running = h.submit(spec(cpu=1))
    h.run(running)
    retried = h.submit(spec(cpu=1, retries=1))
    patient = h.submit(spec(cpu=1))
    # The first in the table has come back into the queue last.
    state = h.kernel.state
    state.tasks[retried.id] = replace(h.now(retried), queued=h.clock.now() + 500)
    h.clock.advance(500)
    again = h.restarted()
    (first, *_) = again.kernel.state.scheduler.queue.heads()
    assert first.task == patient.id


def test_a_cancelled_replica_that_waited_is_gone_from_its_deployment() -> None:
    h = Harness(node(cpu=1))
    h.run(h.submit(spec(cpu=1)))
    h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="m", min_replicas=1, memory="500MB")))
    (waiting,) = h.kernel.state.deployments["m"].replicas
    h.cancel(h.kernel.state.tasks[waiting])
    deployment = h.kernel.state.deployments["m"]
    assert waiting not in deployment.replicas
    assert deployment.failures == 0
    assert len(deployment.replicas) == 1  # there must be one: it is asked for again
    h.ask(ev.Undeploy(request=2, name="m"))
    h.wait(1)
    assert "m" not in h.kernel.state.deployments


def test_a_repeated_request_is_known_though_its_model_has_a_new_version_since() -> None:
    h = Harness()
    asked = spec(work=replace(TRAIN, arch=None, base="m"))
    first = spec(work=replace(TRAIN, arch=None, base="m:1"))
    second = spec(work=replace(TRAIN, arch=None, base="m:2"))
    made = h.submit(first, asked=asked, key="k")
    assert h.submit(second, asked=asked, key="k").id == made.id


async def test_a_store_that_fails_for_good_does_not_keep_the_loop_from_ending() -> None:
    class Full:
        async def commit(self, changes: object) -> None:
            inbox.close()
            raise StorageError("cannot use the database: disk full")

    inbox = Inbox()
    inbox.put(ev.NodeUp(node=node()))
    done: list[object] = []
    await loop.run(Kernel(Config()), Full(), inbox, SystemClock(), done.append, done.append)
    assert not done  # nothing was acted on


def test_run_times_are_remembered_of_so_many_kinds_of_work() -> None:
    h = Harness()
    task = h.submit(spec())
    estimates = Estimates(60.0)
    for number in range(limits.SIGNATURES_MAX + 10):
        estimates.learn(replace(task, spec=spec(name=f"n{number}")), 5.0)
    known = [
        estimates.expected_s(replace(task, spec=spec(name=f"n{number}")))
        for number in (0, 9, 10, limits.SIGNATURES_MAX + 9)
    ]
    assert known == pytest.approx([60.0, 60.0, 5.0, 5.0])
