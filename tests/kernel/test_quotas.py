"""What a user and a project may have at most."""

from __future__ import annotations

import pytest

from tests.kernel.harness import PROGRAM, TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config, resolve
from zenos.core.errors import InvalidError, QuotaError
from zenos.core.outlook import Why
from zenos.core.quotas import Quota
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Principal, State, Task
from zenos.kernel.explanation import explain
from zenos.kernel.picture import take

ANN, BOB = Principal(user="ann", project="lab"), Principal(user="bob", project="lab")
CAT = Principal(user="cat")


def harness(users: dict[str, Quota], projects: dict[str, Quota] | None = None) -> Harness:
    config = Config(
        user_quotas=users,
        project_quotas=projects or {},
        quota_window_s=86400.0,
        overdue_wait_s=3 * 86400.0,
    )
    return Harness(node(cpu=8, gpu=4, memory="64GB"), config=config)


def states(h: Harness, *tasks: Task) -> list[State]:
    return [h.now(task).state for task in tasks]


def why(h: Harness, task: Task) -> Why:
    return explain(take(h.kernel, h.clock.now(), task.id), task.id)


def test_more_tasks_than_a_user_may_have_are_refused_and_leave_nothing() -> None:
    h = harness({"ann": Quota(tasks=3)})
    first = h.submit(spec(), principal=ANN)
    h.submit(spec(cpu=8), principal=ANN)
    with pytest.raises(QuotaError, match="cannot submit 2 tasks: ann has 2 of 3 tasks"):
        h.submit_array(spec(), "0-1", principal=ANN)
    h.submit(spec(), principal=ANN)
    with pytest.raises(QuotaError, match="cannot submit: ann has 3 of 3 tasks"):
        h.submit(spec(), principal=ANN)
    h.submit(spec(), principal=BOB)
    h.run(first)
    h.exit(first)
    h.submit(spec(), principal=ANN)
    assert len(h.kernel.state.tasks) == 5


@pytest.mark.parametrize(
    ("quota", "wants", "said"),
    [
        (Quota(tasks=0), {}, "ann may have no tasks"),
        (Quota(gpu=0), {"gpu": 1}, "ann may hold no GPUs"),
        (Quota(gpu_hours=0), {"gpu": 1}, "ann may have no GPU-hours"),
        (Quota(cpu=2), {"cpu": 3}, "ann may hold 2 CPUs at once, and this wants 3 CPUs"),
        (Quota(memory="1GiB"), {"memory": "2GiB"}, "may hold 1 GiB of memory at once"),
    ],
)
def test_what_could_never_be_held_is_refused(
    quota: Quota, wants: dict[str, object], said: str
) -> None:
    h = harness({"*": quota})
    with pytest.raises(QuotaError, match=said):
        h.submit(spec(PROGRAM, **wants), principal=ANN)  # type: ignore[arg-type]
    with pytest.raises(QuotaError, match="lab may hold no memory"):
        harness({}, {"lab": Quota(memory="0")}).submit(spec(), principal=ANN)


def test_over_what_may_be_held_at_once_a_task_waits_and_why_says_so() -> None:
    h = harness({"ann": Quota(gpu=2)})
    running = [h.submit(spec(gpu=1), principal=ANN) for _ in range(2)]
    waiting = h.submit(spec(gpu=1), principal=ANN)
    without = h.submit(spec(), principal=ANN)
    other = h.submit(spec(gpu=1), principal=BOB)
    assert states(h, *running, without, other) == [State.STARTING] * 4
    assert h.now(waiting).state is State.QUEUED
    found = why(h, waiting)
    assert found.reason == "ann holds 2 GPUs of at most 2 GPUs, and it wants 1 GPU"
    assert found.ahead is None
    assert found.starts_at is not None  # once one of ann's has ended, by the forecast
    h.run(running[0])
    h.exit(running[0])
    assert h.now(waiting).state is State.STARTING


def test_a_full_quota_lets_nobody_give_way_and_holds_nothing_back() -> None:
    h = harness({"ann": Quota(gpu=1)})
    h.run(h.submit(spec(gpu=1), principal=ANN))
    yielding = h.submit(spec(TRAIN, gpu=3), principal=BOB)
    h.run(yielding)
    h.wait(1000)
    h.submit(spec(gpu=1, priority=90), principal=ANN)
    assert not h.stopped
    h.wait(7 * 86400)  # it is overdue by now
    assert not h.stopped
    assert h.kernel.state.scheduler.reservation is None
    h.exit(yielding)
    assert h.now(h.submit(spec(gpu=3), principal=CAT)).state is State.STARTING


def test_no_more_give_way_than_a_quota_has_room_for() -> None:
    h = harness({"ann": Quota(gpu=1)})
    trainings = [h.submit(spec(TRAIN, gpu=1), principal=BOB) for _ in range(4)]
    for task in trainings:
        h.run(task)
    h.wait(1000)
    h.step(
        *(
            ev.Submit(request=n, spec=spec(gpu=1, priority=90, name=f"n{n}", cpu=n), principal=ANN)
            for n in (1, 2)
        )
    )
    assert len(h.stopped) == 1


def test_a_project_bounds_its_users_together() -> None:
    h = harness({}, {"lab": Quota(cpu=2)})
    ann, bob = h.submit(spec(cpu=1.5), principal=ANN), h.submit(spec(), principal=BOB)
    outside = h.submit(spec(), principal=CAT)
    assert states(h, ann, bob, outside) == [State.STARTING, State.QUEUED, State.STARTING]
    assert why(h, bob).reason == (
        "the project lab holds 1.5 CPUs of at most 2 CPUs, and it wants 1 CPU"
    )


def test_gpu_hours_are_counted_over_a_restart_and_begin_anew_with_the_window() -> None:
    h = harness({"ann": Quota(gpu_hours=4)})
    h.clock.advance(86400.0 - h.clock.now())
    first = h.submit(spec(gpu=2), principal=ANN)
    h.run(first)
    h.wait(3600)
    h = h.restarted()
    h.wait(1800)
    assert h.now(h.submit(spec(gpu=1, name="fits"), principal=ANN)).state is State.STARTING
    h.exit(first)  # 3 hours of them
    h.wait(3 * 3600)
    late = h.submit(spec(gpu=1), principal=ANN)
    assert "ann has had 6.0 of 4 GPU-hours" in why(h, late).reason  # who runs, runs on
    while h.now(late).state is State.QUEUED:
        h.wait(h.steps[-1].wake - h.clock.now())
    assert h.clock.now() == 2 * 86400.0


def test_a_smaller_quota_ends_nothing_and_a_larger_one_lets_start_at_once() -> None:
    h = harness({"ann": Quota(cpu=2)})
    running = [h.submit(spec(), principal=ANN) for _ in range(2)]
    waiting = h.submit(spec(), principal=ANN)
    h.step(ev.Configured(config=Config(user_quotas={"ann": Quota(cpu=0.5)})))
    assert "cannot start: ann may hold 0.5 CPUs" in why(h, waiting).reason
    assert states(h, *running, waiting) == [State.STARTING, State.STARTING, State.QUEUED]
    h.step(ev.Configured(config=Config()))
    assert h.now(waiting).state is State.STARTING


def test_a_replica_counts_as_held_and_is_no_task_that_was_submitted() -> None:
    h = harness({"ann": Quota(tasks=1, memory="2GB")})
    deployed = DeploymentSpec(model="m", min_replicas=1, memory="2GB")
    with pytest.raises(QuotaError, match="may hold"):
        h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="n", memory="3GB"), principal=ANN))
    h.ask(ev.Deploy(request=2, spec=deployed, principal=ANN))
    task = h.submit(spec(memory="1GB"), principal=ANN)
    assert h.now(task).state is State.QUEUED


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"ann": {"tasks": -1}}', "tasks -1"),
        ('{"ann": {"gpu": 1e12}}', "gpu"),
        ('{"ann": {"memory": "much"}}', "memory"),
        ('{"ann": {"gpus": 1}}', "gpus"),
        ('{"a/b": {"tasks": 1}}', "name"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        resolve(environment={"ZENOS_USER_QUOTAS": given})
    assert resolve(environment={"ZENOS_USER_QUOTAS": '{"*": {"tasks": 0}}'}).user_quotas
