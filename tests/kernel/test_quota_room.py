"""Within a quota the owner's own tasks give way to each other, as they would on a full node."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import PROGRAM, TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.quotas import Quota
from zenos.core.specs import CallSpec, DeploymentSpec
from zenos.core.task import Principal, State, Task

ANN, BOB = Principal(user="ann", project="lab"), Principal(user="bob", project="lab")
CONFIG = Config(residence_s=10.0, quota_window_s=86400.0, overdue_wait_s=3 * 86400.0)


def harness(quota: Quota, *nodes: object, **more: object) -> Harness:
    config = replace(CONFIG, user_quotas={"*": quota}, **more)
    return Harness(*(nodes or (node(cpu=8, gpu=4),)), config=config)  # type: ignore[arg-type]


def running(h: Harness, who: Principal = ANN, **more: object) -> Task:
    task = h.submit(spec(TRAIN, **more), principal=who)  # type: ignore[arg-type]
    h.run(task)
    return h.now(task)


def told(h: Harness) -> list[str]:
    return [action.task for action in h.stopped]


def test_ones_own_training_gives_way_to_what_one_wants_more() -> None:
    h = harness(Quota(cpu=2))
    training, other = running(h, cpu=2, priority=25), running(h, BOB, cpu=2, priority=25)
    h.wait(60)
    urgent = h.submit(spec(cpu=2, priority=75), principal=ANN)
    assert told(h) == [training.id]
    assert h.now(urgent).state is State.QUEUED
    h.exit(training, exit_code=75)
    assert h.now(urgent).state is State.STARTING
    assert h.now(training).state is State.QUEUED
    assert h.now(other).state is State.RUNNING
    h.run(urgent)
    h.exit(urgent)
    assert h.now(training).state is State.STARTING


def test_an_equal_a_short_stay_and_what_can_not_save_don_t_give_way() -> None:
    h = harness(Quota(cpu=2))
    running(h, cpu=1, priority=75)
    h.run(h.submit(spec(PROGRAM, cpu=1, priority=25), principal=ANN))
    h.wait(60)
    h.submit(spec(cpu=1, priority=75), principal=ANN)
    assert told(h) == []
    h = harness(Quota(cpu=2))
    training = running(h, cpu=2, priority=25)
    h.submit(spec(cpu=1, priority=75), principal=ANN)
    assert told(h) == []
    h.wait(h.steps[-1].wake - h.clock.now())  # the kernel asks to be called when it has stayed
    assert told(h) == [training.id]


def test_as_many_as_it_takes_and_the_least_wanted_first() -> None:
    h = harness(Quota(cpu=4))
    low, high, lower = (running(h, cpu=1, priority=p) for p in (30, 40, 20))
    h.run(h.submit(spec(cpu=1, priority=10), principal=ANN))
    h.wait(60)
    h.submit(spec(cpu=2, priority=75), principal=ANN)
    assert told(h) == [lower.id, low.id]
    assert h.now(high).state is State.RUNNING


def test_who_turns_out_not_to_be_needed_goes_on() -> None:
    h = harness(Quota(cpu=3))
    small, large = running(h, cpu=1, priority=10), running(h, cpu=2, priority=20)
    h.wait(60)
    h.submit(spec(cpu=2, priority=75), principal=ANN)
    assert told(h) == [large.id]
    assert h.now(small).state is State.RUNNING


def test_for_each_that_waits_somebody_gives_way_and_for_no_more_than_wait() -> None:
    h = harness(Quota(cpu=3))
    trainings = [running(h, cpu=1, priority=25) for _ in range(3)]
    h.wait(60)
    h.submit(spec(cpu=1, priority=75), principal=ANN)
    h.submit(spec(cpu=1, priority=80), principal=ANN)
    h.step()
    assert told(h) == [trainings[0].id, trainings[1].id]


def test_a_projects_quota_is_made_room_in_by_all_of_the_project() -> None:
    h = harness(Quota(), project_quotas={"lab": Quota(gpu=2)})
    outside = running(h, Principal(user="ann"), gpu=1, priority=1)
    mates = running(h, BOB, gpu=2, priority=25)
    h.wait(60)
    h.submit(spec(gpu=1, priority=75), principal=ANN)
    assert told(h) == [mates.id]
    assert h.now(outside).state is State.RUNNING


def test_nobody_gives_way_where_it_would_not_help() -> None:
    h = harness(Quota(cpu=3), node(cpu=4, gpu=1))
    running(h, cpu=1, priority=25)
    h.run(h.submit(spec(cpu=2), principal=ANN))
    h.wait(60)
    h.submit(spec(cpu=2, priority=75), principal=ANN)  # one of its quota's three would be free
    assert told(h) == []
    h = harness(Quota(cpu=1), node(cpu=4, gpu=1))
    running(h, cpu=1, priority=25)
    h.run(h.submit(spec(cpu=1, gpu=1), principal=BOB))
    h.wait(60)
    h.submit(spec(cpu=1, gpu=1, priority=75), principal=ANN)  # the GPU is another's
    assert told(h) == []
    h = harness(Quota(gpu_hours=1), node(cpu=4, gpu=2))
    running(h, gpu=1, priority=25)
    h.wait(7200)
    h.submit(spec(gpu=1, priority=75), principal=ANN)  # what was had doesn't come back
    assert told(h) == []


def test_others_give_way_too_where_there_is_no_node_for_it() -> None:
    h = harness(Quota(cpu=2), node(cpu=2), node(cpu=2, name="second"))
    own = running(h, cpu=1, priority=25)
    running(h, BOB, cpu=1, priority=25)
    h.run(h.submit(spec(cpu=2, node="second"), principal=Principal(user="cat")))
    assert h.now(own).allocation is not None
    h.wait(60)
    wide = h.submit(spec(cpu=2, priority=75), principal=ANN)
    assert sorted(told(h)) == ["t1", "t2"]
    for task in told(h):
        h.exit(h.kernel.state.tasks[task], exit_code=75)
    assert h.now(wide).state is State.STARTING


def test_what_was_made_room_for_gets_it_whoever_of_ones_tasks_is_first() -> None:
    """On another node, so that no claim on a node keeps the others from it."""
    h = harness(Quota(cpu=2), node(cpu=2), node(cpu=4, name="second"))
    training = running(h, cpu=2, priority=25)
    h.wait(60)
    wants = h.submit(spec(cpu=2, priority=50), principal=ANN)
    assert told(h) == [training.id]
    h.wait(5)
    more = h.submit(spec(cpu=1, priority=90), principal=ANN)
    h.exit(training, exit_code=75)
    assert h.now(wants).state is State.STARTING
    assert h.now(more).state is State.QUEUED


def test_others_of_the_project_start_meanwhile_where_there_is_room_for_both_in_the_end() -> None:
    h = harness(Quota(), node(cpu=16), project_quotas={"lab": Quota(cpu=10)})
    training = running(h, BOB, cpu=6, priority=25)
    h.wait(60)
    wants = h.submit(spec(cpu=8, priority=75), principal=ANN)
    assert told(h) == [training.id]
    small, more = (h.submit(spec(cpu=2), principal=BOB) for _ in range(2))
    assert h.now(small).state is State.STARTING
    assert h.now(more).state is State.QUEUED, "ten would be held now, but twelve then"
    h.exit(training, exit_code=75)
    assert h.now(wants).state is State.STARTING
    assert h.now(more).state is State.QUEUED


def test_ones_idle_model_gives_way_to_ones_next_model_and_to_ones_training() -> None:
    h = harness(Quota(gpu=1), model_residence_s=2.0)

    def deploy(name: str) -> None:
        more = DeploymentSpec(model=name, gpu=1, keep_alive_s=3600.0)
        h.ask(ev.Deploy(request=1, spec=more, principal=ANN))

    def replica(name: str) -> Task:
        return h.kernel.state.tasks[h.kernel.state.deployments[name].replicas[-1]]

    deploy("one")
    deploy("two")
    h.step(ev.Demand(name="one"), ev.Used(name="one", in_flight=1, waiting=1))
    first = replica("one")
    h.run(first)
    h.step(ev.WorkerReady(task=first.id, generation=1))
    h.step(ev.Used(name="one", in_flight=0))
    h.wait(60)
    h.step(ev.Demand(name="two"), ev.Used(name="two", in_flight=1, waiting=1))
    assert told(h) == [first.id]
    h.exit(first)
    second = replica("two")
    assert h.now(second).state is State.STARTING
    h.run(second)
    h.step(ev.WorkerReady(task=second.id, generation=1), ev.Used(name="two", in_flight=0))
    h.wait(60)
    h.submit(spec(TRAIN, gpu=1, priority=75), principal=ANN)
    assert told(h) == [first.id, second.id]


def test_ones_idle_host_of_calls_hears_that_one_wants_its_share() -> None:
    h = harness(Quota(cpu=2))
    here = h.submit(spec(CallSpec(python="/usr/bin/python3", key="key"), cpu=2), principal=ANN)
    other = h.submit(spec(CallSpec(python="/usr/bin/python3", key="k"), cpu=2), principal=BOB)
    h.run(here)
    h.run(other)
    h.submit(spec(cpu=1), principal=ANN)
    assert [(action.task, action.on) for action in h.wanted] == [(here.id, True)]


def test_what_a_training_was_lent_comes_back_for_an_equal() -> None:
    h = harness(Quota(cpu=4))
    elastic = replace(TRAIN, workers=4, workers_min=1)
    task = h.submit(spec(elastic, cpu=4, memory="4GB"), principal=ANN)
    h.run(task)
    assert h.now(task).workers == 4
    h.wait(60)
    equal = h.submit(spec(cpu=2), principal=ANN)
    assert told(h) == [task.id]
    h.exit(task, exit_code=75)
    assert h.now(equal).state is State.STARTING
    assert h.now(task).workers == 2


def test_it_is_bounded_how_often_one_gives_way() -> None:
    h = harness(Quota(cpu=1), preemptions_per_hour=2)
    training = running(h, cpu=1, priority=25)
    for count in range(4):
        h.wait(20)
        urgent = h.submit(spec(cpu=1, priority=75), principal=ANN)
        assert len(told(h)) == min(count + 1, 2)
        if h.now(training).state is not State.SUSPENDING:
            break
        h.exit(training, exit_code=75)
        h.run(urgent)
        h.exit(urgent)
        h.run(training)


ELASTIC = replace(TRAIN, workers=4, workers_min=1)


def test_no_training_grows_into_the_quota_of_what_others_give_way_for() -> None:
    """On another node, so that no claim on a node keeps it from that."""
    h = harness(Quota(cpu=4), node(cpu=4), node(cpu=4, name="second"), grow_s=5.0)
    theirs = running(h, BOB, cpu=4, priority=25, node="local")
    h.wait(60)
    urgent = h.submit(spec(cpu=2, priority=75, node="local"), principal=ANN)
    assert told(h) == [theirs.id]
    elastic = h.submit(spec(ELASTIC, cpu=4, memory="4GB", priority=25), principal=ANN)
    assert h.now(elastic).workers == 2
    h.run(elastic)
    h.wait(20)
    assert told(h) == [theirs.id]
    h.exit(theirs, exit_code=75)
    assert h.now(urgent).state is State.STARTING


def test_for_room_in_a_quota_no_more_trainings_start_again_than_it_is_for() -> None:
    h = harness(Quota(cpu=4), node(cpu=4), node(cpu=4, name="second"), grow_s=5.0)
    full = h.submit(spec(cpu=2), principal=ANN)
    h.run(full)
    work = spec(replace(TRAIN, workers=3, workers_min=1), cpu=3, memory="3GB")
    places = (replace(work, node="local"), replace(work, node="second"))
    h.step(*(ev.Submit(request=n, spec=one, principal=ANN) for n, one in enumerate(places)))
    first, second = (task for task in h.kernel.state.tasks.values() if task.id != full.id)
    assert [h.now(task).workers for task in (first, second)] == [1, 1]
    h.run(first)
    h.run(second)
    h.wait(60)
    h.exit(full)
    assert told(h) == [first.id]


def test_what_an_idle_model_gives_back_to_its_owner_elsewhere_is_there_for_others() -> None:
    """So no other model ends for them."""
    h = harness(Quota(), node(cpu=4), node(cpu=4, name="second"), model_residence_s=2.0)
    full = h.submit(spec(cpu=4, node="second"))
    h.run(full)
    replicas = []
    for name, who in (("one", ANN), ("two", BOB)):
        more = DeploymentSpec(model=name, cpu=2, keep_alive_s=3600.0)
        h.ask(ev.Deploy(request=1, spec=more, principal=who))
        h.step(ev.Demand(name=name), ev.Used(name=name, in_flight=1, waiting=1))
        replica = h.kernel.state.tasks[h.kernel.state.deployments[name].replicas[-1]]
        h.run(replica)
        h.step(ev.WorkerReady(task=replica.id, generation=1), ev.Used(name=name, in_flight=0))
        replicas.append(replica)
    h.exit(full)
    h.step(ev.Configured(config=replace(h.config, user_quotas={"ann": Quota(cpu=2)})))
    h.wait(60)
    h.step(
        ev.Submit(request=1, spec=spec(cpu=2, priority=75, node="second"), principal=ANN),
        ev.Submit(request=2, spec=spec(cpu=2, node="local"), principal=BOB),
    )
    assert told(h) == [replicas[0].id]


def test_nothing_is_held_back_for_an_overdue_task_that_its_quota_has_no_room_for_any_more() -> None:
    h = harness(Quota(cpu=3), node(cpu=3), node(cpu=1, name="second"))
    h.run(h.submit(spec(cpu=1, node="local"), principal=BOB))
    wide = h.submit(spec(cpu=3), principal=ANN)
    h.wait(30 * 86400.0)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert held.task == wide.id
    small = ev.Submit(request=1, spec=spec(cpu=1, node="second"), principal=ANN)
    other = ev.Submit(request=2, spec=spec(cpu=2), principal=BOB)
    h.step(small, other)
    assert h.now(wide).state is State.QUEUED
    assert [h.kernel.state.tasks[task].state for task in ("t3", "t4")] == [State.STARTING] * 2


def test_who_has_room_since_others_give_way_starts_at_once() -> None:
    h = harness(Quota(cpu=4), node(cpu=4), node(cpu=8, name="second"))
    first, second = (running(h, cpu=1, priority=25, node="local") for _ in range(2))
    h.run(h.submit(spec(cpu=1, node="local"), principal=ANN))
    h.wait(60)
    h.submit(spec(cpu=2, priority=75), principal=ANN)
    small = h.submit(spec(cpu=1, priority=20), principal=ANN)
    h.submit(spec(cpu=1, priority=90, node="local"), principal=BOB)
    assert told(h) == [first.id, second.id]
    assert h.now(small).state is State.QUEUED
    h.wait(h.steps[-1].wake - h.clock.now())
    assert h.clock.now() < 1061.0
    assert h.now(small).state is State.STARTING


@pytest.mark.parametrize("suspend", [False, True])
def test_the_quota_of_the_first_overdue_may_be_used_up_while_the_daemon_goes_down(
    *, suspend: bool
) -> None:
    h = harness(Quota(gpu_hours=1), node(cpu=4, gpu=2), overdue_wait_s=10.0)
    running(h, gpu=1)
    h.run(h.submit(spec(gpu=1), principal=BOB))
    waiting = h.submit(spec(gpu=2), principal=ANN)
    h.wait(600)
    reservation = h.kernel.state.scheduler.reservation
    assert reservation is not None
    assert reservation.task == waiting.id
    h.step(ev.Shutdown(suspend=suspend))
    h.wait(3000)  # its owner has had her hour: this step ends as any other
    assert h.now(waiting).state is State.QUEUED


def test_the_kernel_asks_to_be_called_at_once_but_once_when_others_may_have_what_is_given() -> None:
    h = harness(Quota(cpu=2))
    running(h, cpu=2, priority=25)
    h.wait(60)
    h.submit(spec(cpu=1, priority=75), principal=ANN)
    assert h.steps[-1].wake - h.clock.now() < 1
    h.wait(h.steps[-1].wake - h.clock.now())
    assert h.steps[-1].wake - h.clock.now() > 1
