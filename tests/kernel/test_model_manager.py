"""Replicas follow demand, keep-alive and failures."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.config import Config
from zenos.core.errors import NotFoundError, UnfittableError
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import Deployment, State, Task

SPEC = DeploymentSpec(model="m", keep_alive_s=60.0, memory="500MB")


def deploy(h: Harness, more: DeploymentSpec = SPEC) -> Deployment:
    answer = h.ask(ev.Deploy(request=1, spec=more))
    assert isinstance(answer, Deployment)
    return answer


def use(h: Harness, more: DeploymentSpec = SPEC) -> Deployment:
    """Deploy it, and have it loaded by a request that has ended since."""
    made = deploy(h, more)
    h.step(ev.Demand(name=more.model))
    h.step(ev.Used(name=more.model, in_flight=0))
    return made


def replicas(h: Harness, name: str = "m") -> list[Task]:
    deployment = h.kernel.state.deployments.get(name)
    return [h.kernel.state.tasks[r] for r in deployment.replicas] if deployment else []


def make_ready(h: Harness, task: Task | None = None) -> Task:
    task = task or replicas(h)[-1]
    h.run(task)
    h.step(ev.WorkerReady(task=task.id, generation=h.now(task).generation))
    return h.now(task)


def test_a_deployment_loads_with_its_first_request_and_unloads_when_idle() -> None:
    h = Harness()
    deploy(h)
    h.wait(10)
    assert not replicas(h)
    h.step(ev.Demand(name="m"))
    task = make_ready(h)
    assert isinstance(task.spec.work, ServeSpec)
    assert task.ready
    h.step(ev.Used(name="m", in_flight=2))
    h.wait(1000)
    assert not h.stopped  # in use
    h.step(ev.Used(name="m", in_flight=0))
    assert h.steps[-1].wake == h.clock.now() + 60
    h.wait(60)
    assert h.stopped[-1].task == task.id
    h.exit(task)
    assert h.now(task).state is State.SUCCEEDED
    assert h.kernel.state.deployments["m"].replicas == []
    h.step(ev.Demand(name="m"))
    assert len(replicas(h)) == 1


def test_being_deployed_is_no_use_of_what_is_not_loaded() -> None:
    h = Harness()
    # Not of one that was stopped, though its replica still answers.
    deploy(h, replace(SPEC, min_replicas=1))
    task = make_ready(h)
    h.step(ev.Used(name="m", in_flight=1))
    h.ask(ev.Undeploy(request=1, name="m"))
    deploy(h)
    assert [replica.id for replica in replicas(h)] == [task.id]
    h.step(ev.Used(name="m", in_flight=0))
    h.exit(task)
    h.wait(1)
    assert not replicas(h)
    # Nor of one that is deployed or rolled back again before anybody has asked.
    deploy(h, replace(SPEC, slots=4))
    h.ask(ev.Rollback(request=2, name="m", version="m:1"))
    h.wait(1)
    assert not replicas(h)
    h.step(ev.Demand(name="m"))
    assert len(replicas(h)) == 1


def test_what_is_loaded_stays_for_the_keep_alive_from_when_it_need_not_stay_any_more() -> None:
    h = Harness()
    deploy(h, replace(SPEC, min_replicas=1))
    task = make_ready(h)
    h.wait(1000)
    deploy(h)
    h.wait(59)
    assert not h.stopped
    h.wait(1)
    assert [stop.task for stop in h.stopped] == [task.id]


def test_after_a_restart_only_what_was_loaded_is() -> None:
    h = Harness()
    deploy(h)
    use(h, replace(SPEC, model="n"))
    task = make_ready(h, replicas(h, "n")[0])
    again = h.restarted()
    again.wait(1)
    assert not replicas(again)
    assert [replica.id for replica in replicas(again, "n")] == [task.id]
    assert not again.stopped
    again.wait(60)
    assert [stop.task for stop in again.stopped] == [task.id]


def test_being_rolled_back_is_no_use_of_what_was_never_loaded() -> None:
    h = Harness()
    deploy(h)
    h.ask(ev.Rollback(request=1, name="m", version="m:1"))
    h.wait(1)
    assert not replicas(h)


def test_an_idle_replica_that_ends_after_a_restart_is_not_loaded_again() -> None:
    h = Harness()
    use(h)
    task = make_ready(h)
    h.wait(60)
    assert [stop.task for stop in h.stopped] == [task.id]
    again = h.restarted()
    again.exit(task)
    again.wait(1)
    assert not replicas(again)
    assert not again.started


def test_a_request_for_a_model_that_no_node_can_hold_is_refused_and_leaves_nothing() -> None:
    h = Harness(node(cpu=2, memory="4GB"))
    big = ev.Demand(name="m", spec=DeploymentSpec(model="m"), memory=5_000_000_000)
    with pytest.raises(UnfittableError, match=r"cannot ever fit: wants 4\.7 GiB of memory"):
        h.ask(big)
    state = h.kernel.state
    assert (state.deployments, state.tasks, state.asking.in_flight, state.asking.used_at) == (
        {},
        {},
        {},
        {},
    )
    # One that was deployed when the node was larger.
    use(h, replace(SPEC, memory="3GB"))
    task = make_ready(h)
    h.exit(task, exit_code=None, signal=9)
    h.step(ev.NodeUp(node=node(cpu=2, memory="2GB")))
    with pytest.raises(UnfittableError, match=r"the largest node has 1\.9 GiB"):
        h.ask(ev.Demand(name="m"))


def test_a_request_for_an_undeployed_model_makes_a_deployment_that_goes_when_idle() -> None:
    h = Harness()
    h.step(ev.Demand(name="m", spec=SPEC))
    task = make_ready(h)
    h.step(ev.Used(name="m", in_flight=0))
    h.wait(60)
    h.exit(task)
    assert not h.kernel.state.deployments


def test_load_adds_replicas_up_to_the_most() -> None:
    h = Harness(node(cpu=8))
    deploy(h, DeploymentSpec(model="m", max_replicas=3, slots=4, memory="100MB"))
    h.step(ev.Used(name="m", in_flight=9))
    assert len(replicas(h)) == 3
    h.step(ev.Used(name="m", in_flight=100))
    assert len(replicas(h)) == 3


def test_replicas_stay_for_as_many_requests_as_came_at_once_within_the_keep_alive() -> None:
    h = Harness(node(cpu=8))
    deploy(h, replace(SPEC, max_replicas=4, slots=4, memory="100MB"))
    h.step(ev.Used(name="m", in_flight=9))
    loaded = [make_ready(h, task) for task in replicas(h)]
    assert len(loaded) == 3
    for _ in range(20):
        for in_flight in (5, 9, 0, 2, 12):
            h.step(ev.Used(name="m", in_flight=in_flight))
            h.wait(5)
    assert not h.stopped
    assert len(replicas(h)) == 3

    # Twelve need three, then eight two, then none: each leaves a keep-alive later, newest first.
    h.step(ev.Used(name="m", in_flight=8))
    h.wait(30)
    h.step(ev.Used(name="m", in_flight=0))
    h.wait(29)
    assert not h.stopped
    h.wait(1)
    assert [stop.task for stop in h.stopped] == [loaded[2].id]
    h.exit(loaded[2])
    h.wait(29)
    assert len(h.stopped) == 1
    h.wait(1)
    assert {stop.task for stop in h.stopped} == {task.id for task in loaded}


def test_a_replica_that_has_answered_and_does_not_end_is_ended_by_force() -> None:
    h = Harness(config=Config(cancel_grace_s=10.0, model_drain_s=600.0))
    use(h, replace(SPEC, keep_alive_s=1.0))
    task = make_ready(h)
    h.step(ev.Used(name="m", in_flight=0))
    h.wait(1)
    assert [(stop.task, stop.grace_s) for stop in h.stopped] == [(task.id, 600.0)]
    # A request that was sent to it before it was known to end: it is answered.
    h.wait(5)
    h.step(ev.Used(name="m", in_flight=1))
    h.wait(300)
    assert len(h.stopped) == 1
    h.step(ev.Used(name="m", in_flight=0))
    h.wait(9)
    assert len(h.stopped) == 1
    assert h.steps[-1].wake == h.clock.now() + 1
    h.wait(1)
    assert [(stop.task, stop.grace_s) for stop in h.stopped[1:]] == [(task.id, 0.0)]
    h.wait(60)
    assert len(h.stopped) == 2
    h.exit(task, exit_code=None, signal=9)
    assert h.now(task).state is State.SUCCEEDED


def test_a_replica_that_is_not_loaded_is_not_loaded_for_the_keep_alive() -> None:
    h = Harness(node(cpu=2))
    deploy(h, replace(SPEC, max_replicas=3, memory="100MB"))
    h.step(ev.Used(name="m", in_flight=3 * SPEC.slots))
    assert [task.state for task in replicas(h)].count(State.QUEUED) == 1
    h.step(ev.Used(name="m", in_flight=1))
    assert [task.state for task in replicas(h)] == [State.STARTING, State.STARTING]
    lost = replicas(h)[-1]
    h.exit(lost, exit_code=None, signal=9)
    h.wait(2)
    assert lost.id not in [task.id for task in replicas(h)]
    assert len(replicas(h)) == 1


def test_min_replicas_are_kept_and_replaced_when_they_fail() -> None:
    h = Harness()
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="100MB"))
    first = make_ready(h)
    h.exit(first, exit_code=None, signal=9)
    assert h.now(first).state is State.FAILED
    assert len(replicas(h)) == 1
    h.wait(2)
    second = make_ready(h)
    assert second.id != first.id
    assert h.kernel.state.deployments["m"].failures == 0


def test_a_replica_that_fails_again_and_again_is_given_up_until_the_next_request() -> None:
    h = Harness()
    deploy(h)
    for _ in range(6):
        h.step(ev.Used(name="m", in_flight=1))
        h.exit(replicas(h)[-1], exit_code=None, signal=11)
        h.wait(300)
    assert h.kernel.state.deployments["m"].error
    assert not replicas(h)
    h.step(ev.Demand(name="m"))
    assert len(replicas(h)) == 1


def test_a_model_that_cannot_be_loaded_is_given_up_at_once_with_the_reason() -> None:
    h = Harness()
    use(h)
    h.exit(replicas(h)[-1], exit_code=1, error="cannot serve an encoder")
    assert h.kernel.state.deployments["m"].error == "cannot serve an encoder"


def test_stopping_a_deployment_stops_its_replicas_and_forgets_it() -> None:
    h = Harness()
    use(h)
    task = make_ready(h)
    h.ask(ev.Undeploy(request=1, name="m"))
    assert h.stopped[-1].task == task.id
    h.exit(task, exit_code=None, signal=15)
    assert not h.kernel.state.deployments
    with pytest.raises(NotFoundError):
        h.ask(ev.Undeploy(request=1, name="m"))


def test_a_changed_deployment_replaces_its_replicas() -> None:
    h = Harness()
    use(h)
    old = make_ready(h)
    deploy(h, DeploymentSpec(model="m", slots=4, memory="500MB"))
    make_ready(h)
    assert h.stopped[-1].task == old.id
    assert [t.id for t in replicas(h) if not t.stopping] != [old.id]


def test_a_deployment_larger_than_any_node_is_refused() -> None:
    with pytest.raises(UnfittableError):
        deploy(Harness(), DeploymentSpec(model="m", memory="100GiB"))


def test_replicas_wait_in_the_queue_like_other_tasks() -> None:
    h = Harness(node(cpu=1))
    blocker = h.submit(spec())
    use(h)
    assert replicas(h)[0].state is State.QUEUED
    h.exit(blocker)
    assert replicas(h)[0].state is State.STARTING


def test_all_replicas_hold_the_version_that_was_deployed_until_it_is_deployed_again() -> None:
    h = Harness()
    two = DeploymentSpec(model="m", min_replicas=1, max_replicas=2, slots=1, memory="500MB")
    h.ask(ev.Deploy(request=1, spec=two, version="m:1"))
    first = make_ready(h)
    h.step(ev.Used(name="m", in_flight=2))
    assert [task.spec.work.model for task in replicas(h)] == ["m:1", "m:1"]  # type: ignore[union-attr]
    # The same again changes nothing; another version replaces them.
    h.ask(ev.Deploy(request=2, spec=two, version="m:1"))
    assert not h.stopped
    h.ask(ev.Deploy(request=3, spec=two, version="m:2"))
    assert first.id in {stopped.task for stopped in h.stopped}
    live = [task for task in replicas(h) if not task.stopping]
    assert {task.spec.work.model for task in live} == {"m:2"}  # type: ignore[union-attr]
    assert h.kernel.state.deployments["m"].version == "m:2"


def test_a_replica_gets_the_memory_that_its_model_needs_unless_somebody_says() -> None:
    h = Harness(node(memory="16GB"))
    h.step(ev.Demand(name="big", spec=DeploymentSpec(model="big"), memory=3_000_000_000))
    assert replicas(h, "big")[0].spec.resources.memory == 3_000_000_000
    h.step(ev.Demand(name="said", spec=DeploymentSpec(model="said", memory="2GB"), memory=9))
    assert replicas(h, "said")[0].spec.resources.memory == 2_000_000_000
    with pytest.raises(UnfittableError, match="cannot ever fit"):
        raise h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="m"), memory=10**12))  # type: ignore[misc]


def serve_ready(h: Harness, name: str, keep_alive_s: float = 300.0, **more: object) -> Task:
    """A replica of `name`, loaded for a request that was answered after its minimum time."""
    spec_ = DeploymentSpec(model=name, keep_alive_s=keep_alive_s, memory="500MB", **more)  # type: ignore[arg-type]
    h.step(ev.Demand(name=name, spec=spec_))
    task = replicas(h, name)[-1]
    h.run(task)
    h.step(ev.WorkerReady(task=task.id, generation=1))
    h.wait(h.config.model_residence_s)
    h.step(ev.Used(name=name, in_flight=0))
    return h.now(task)


def test_an_idle_replica_gives_way_at_once_to_a_request_for_another_model() -> None:
    h = Harness(node(cpu=2))
    first, second = serve_ready(h, "first"), serve_ready(h, "second")
    h.step(ev.Demand(name="third", spec=DeploymentSpec(model="third", memory="500MB")))
    assert [stop.task for stop in h.stopped] == [first.id]  # the longest unused, and no more
    h.exit(first)
    assert [t.state for t in replicas(h, "third")] == [State.STARTING]
    assert "first" not in h.kernel.state.deployments
    assert not h.now(second).stopping


def test_an_idle_replica_gives_way_to_lower_priority_after_a_while() -> None:
    h = Harness(node(cpu=2))
    replica = serve_ready(h, "m")
    training = h.submit(spec(cpu=2))
    assert not h.stopped
    assert h.steps[-1].wake <= h.clock.now() + limits.IDLE_YIELDS_S
    h.wait(limits.IDLE_YIELDS_S)
    assert [stop.task for stop in h.stopped] == [replica.id]
    h.exit(replica)
    assert h.now(training).state is State.STARTING


def test_what_is_used_or_has_to_stay_gives_no_way() -> None:
    h = Harness(node(cpu=2))
    busy, kept = serve_ready(h, "busy"), serve_ready(h, "kept", min_replicas=1)
    h.step(ev.Used(name="busy", in_flight=1))
    waiting = h.submit(spec(cpu=1, priority=100))
    h.wait(60)
    assert not h.stopped
    assert h.now(waiting).state is State.QUEUED
    assert not h.now(busy).stopping
    assert not h.now(kept).stopping


def test_no_replica_ends_in_vain() -> None:
    h = Harness(node(cpu=4))
    serve_ready(h, "m")
    running = h.submit(spec(cpu=3))
    h.run(running)
    h.submit(spec(cpu=3))  # too large even for what the replica would give back
    h.wait(60)
    assert not h.stopped
    h.cancel(running)
    h.wait(1)
    assert [stop.task for stop in h.stopped] == [running.id]  # enough is coming back already


def test_a_replica_that_waits_for_room_goes_with_its_clients() -> None:
    h = Harness(node(cpu=1))
    running = h.submit(spec(cpu=1))
    h.run(running)
    h.step(ev.Demand(name="m", spec=SPEC))
    (waiting,) = replicas(h)
    h.step(ev.Used(name="m", in_flight=0))
    assert h.now(waiting).state is State.CANCELLED
    assert not h.kernel.state.deployments


def test_nothing_is_loaded_for_clients_that_have_gone_though_the_model_is_deployed() -> None:
    h = Harness(node(cpu=1))
    use(h)
    task = make_ready(h)
    h.wait(60)
    h.exit(task)
    running = h.submit(spec(cpu=1))
    h.run(running)
    h.step(ev.Demand(name="m"))
    h.step(ev.Used(name="m", in_flight=2, waiting=2))
    waiting = replicas(h)[-1]
    h.step(ev.Used(name="m", in_flight=1, waiting=1))
    assert h.now(waiting).state is State.QUEUED
    h.step(ev.Used(name="m", in_flight=0))
    assert h.now(waiting).state is State.CANCELLED
    h.exit(running)
    assert replicas(h) == []


def test_a_change_is_made_without_a_gap() -> None:
    h = Harness(node(cpu=4))
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="500MB"))
    old = make_ready(h)
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="600MB"))
    new = replicas(h)[-1]
    assert not h.now(old).stopping
    h.run(new)
    assert not h.now(old).stopping  # it is loading
    h.step(ev.WorkerReady(task=new.id, generation=1))
    assert [stop.task for stop in h.stopped] == [old.id]
    h.exit(old)
    assert h.kernel.state.deployments["m"].replicas == [new.id]


def test_a_change_for_which_there_is_no_room_ends_the_old_ones_first() -> None:
    h = Harness(node(cpu=1))
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="500MB"))
    old = make_ready(h)
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="600MB"))
    assert [stop.task for stop in h.stopped] == [old.id]
    h.exit(old)
    assert [t.state for t in replicas(h)] == [State.STARTING]


def test_a_change_that_only_fails_leaves_what_answers() -> None:
    h = Harness(node(cpu=4))
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="500MB"))
    old = make_ready(h)
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="5MB"))
    new = replicas(h)[-1]
    h.run(new)
    h.exit(new, exit_code=1, error="cannot allocate: used 6 MiB of 5 MiB")
    deployment = h.kernel.state.deployments["m"]
    assert deployment.error == "cannot allocate: used 6 MiB of 5 MiB"
    h.wait(60)
    assert deployment.replicas == [old.id]
    assert not h.stopped
    deploy(h, DeploymentSpec(model="m", min_replicas=1, memory="500MB"))
    assert h.kernel.state.deployments["m"].error is None
    assert h.kernel.state.deployments["m"].replicas == [old.id]  # it is what was asked for again


def test_a_replica_that_is_needed_no_more_has_as_long_for_its_answers_as_one_that_gives_way() -> (
    None
):
    h = Harness(node(cpu=4))
    spec = DeploymentSpec(model="m", min_replicas=1, max_replicas=2, slots=1, memory="100MB")
    h.ask(ev.Deploy(request=1, spec=spec))
    h.step(ev.Used(name="m", in_flight=2))
    assert len(h.started) == 2
    h.step(ev.Used(name="m", in_flight=1))
    h.wait(spec.keep_alive_s)
    assert [stop.grace_s for stop in h.stopped] == [Config().model_drain_s]


def test_a_replica_that_is_told_to_end_before_it_has_started_has_not_failed() -> None:
    h = Harness()
    deploy(h, replace(SPEC, min_replicas=1))
    (task,) = replicas(h)
    h.step(ev.Shutdown(suspend=True))
    h.step(ev.StartFailed(task=task.id, generation=1, reason="it was told to end"))
    assert h.now(task).state is State.CANCELLED
    deployment = h.kernel.state.deployments["m"]
    assert (deployment.replicas, deployment.failures, deployment.error) == ([], 0, None)
    assert [t.state for t in replicas(h.restarted())] == [State.STARTING]
