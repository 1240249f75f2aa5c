"""Tasks that have to be on certain nodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import YIELDING, Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config, resolve
from zenos.core.errors import InvalidError, UnfittableError
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Kind, State, Task

FAST = replace(node(cpu=1, gpu=0, name="fast"), labels=["disk=fast", "zone=a"])
SLOW = replace(node(cpu=4, gpu=0, memory="8GB", name="slow"), labels=["disk=slow", "zone=a"])


def where(h: Harness, task: Task) -> str | None:
    allocation = h.now(task).allocation
    return allocation.node if allocation is not None else None


def test_a_task_runs_where_it_says_and_waits_for_that_though_others_are_free() -> None:
    h = Harness(SLOW, FAST)
    first = h.submit(spec(labels={"disk": "fast"}))
    second = h.submit(spec(node="fast", labels={"zone": "a"}))
    other = h.submit(spec(cpu=1))
    assert (where(h, first), where(h, second), where(h, other)) == ("fast", None, "slow")
    allocation = h.now(first).allocation
    assert allocation is not None
    assert type(allocation.resources) is Resources  # which is what is stored
    h = h.restarted()
    h.run(first)
    h.exit(first)
    assert where(h, second) == "fast"


def test_an_overdue_task_has_room_reserved_on_its_node_alone() -> None:
    h = Harness(SLOW, FAST, config=Config(overdue_wait_s=100.0))
    holds = h.submit(spec(node="fast"))
    waits = h.submit(spec(node="fast"))
    h.run(holds)
    h.wait(200)
    reservation = h.kernel.state.scheduler.reservation
    assert reservation is not None
    assert (reservation.task, reservation.node) == (waits.id, "fast")
    assert where(h, h.submit(spec(cpu=4, memory="5GB"))) == "slow"


def test_only_who_is_on_its_node_gives_way() -> None:
    h = Harness(SLOW, FAST)
    there = h.submit(spec(YIELDING, node="fast"))
    elsewhere = h.submit(spec(YIELDING, cpu=4, node="slow", priority=10))
    for task in (there, elsewhere):
        h.run(task)
    h.submit(spec(node="fast", priority=90))
    h.wait(10)
    assert [stop.task for stop in h.stopped] == [there.id]


def test_an_idle_model_does_not_give_way_to_who_is_to_run_elsewhere() -> None:
    h = Harness(SLOW, FAST, config=Config(model_residence_s=1.0))
    h.run(h.submit(spec(node="fast")))
    h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="one", cpu=4, keep_alive_s=3600.0)))
    h.step(ev.Demand(name="one"))
    (replica,) = (t for t in h.kernel.state.tasks.values() if t.kind is Kind.SERVE)
    assert where(h, replica) == "slow"
    h.run(replica)
    h.step(ev.WorkerReady(task=replica.id, generation=1), ev.Used(name="one", in_flight=0))
    h.wait(60)
    h.submit(spec(node="fast", priority=90))
    h.submit(spec(labels={"disk": "fast"}, priority=90))
    assert h.stopped == []
    h.submit(spec(node="slow", priority=90))
    assert [stop.task for stop in h.stopped] == [replica.id]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"node": "none"}, "no node is called 'none'; there are fast, slow"),
        ({"labels": {"gpu": "a100"}}, "no node has gpu=a100 together; nodes have disk=fast, disk="),
        ({"node": "fast", "labels": {"disk": "slow"}}, "the node fast has disk=fast, zone=a"),
        ({"node": "fast", "cpu": 2}, "wants 2 CPUs, the largest node has 1"),
    ],
)
def test_what_no_node_can_be_is_refused_with_what_there_is(
    more: dict[str, object], said: str
) -> None:
    h = Harness(SLOW, FAST)
    with pytest.raises(UnfittableError, match="cannot ever fit") as refused:
        h.submit(spec(**more))  # type: ignore[arg-type]
    assert said in refused.value.message
    assert ("ask for less" in refused.value.message) == ("cpu" in more)
    assert h.kernel.state.tasks == {}


@pytest.mark.parametrize("labels", [{"": "x"}, {"a b": "x"}, {"a": "x/y"}, {"a": "x" * 65}])
def test_labels_that_cannot_be_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        spec(labels=labels).check()
    with pytest.raises(InvalidError):
        Config(labels=labels).check()


def test_labels_come_from_the_environment_as_an_object() -> None:
    assert resolve(environment={"ZENOS_LABELS": '{"disk": "fast"}'}).labels == {"disk": "fast"}


places = st.fixed_dictionaries(
    {
        "node": st.sampled_from(["", "fast", "slow"]),
        "labels": st.sampled_from([{}, {"zone": "a"}, {"disk": "fast"}, {"disk": "slow"}]),
        "cpu": st.sampled_from([0.5, 1.0, 3.0]),
        "priority": st.sampled_from([25, 50, 75]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(places, min_size=1, max_size=12), st.lists(st.booleans(), max_size=40))
def test_no_task_is_ever_elsewhere_and_none_waits_that_could_run(
    wanted: list[dict[str, object]], steps: list[bool]
) -> None:
    h = Harness(SLOW, FAST)
    for more in wanted:
        try:
            h.submit(spec(YIELDING, memory="5MB", **more))  # type: ignore[arg-type]
        except UnfittableError:
            continue
    labels = {"fast": FAST.labels, "slow": SLOW.labels}
    for end in steps:
        for task in list(h.kernel.state.tasks.values()):
            if task.state is State.STARTING:
                h.run(task)
            elif task.state in (State.RUNNING, State.SUSPENDING) and end:
                h.exit(task, exit_code=75 if task.state is State.SUSPENDING else 0)
                break
        h.wait(5)
        for task in h.kernel.state.tasks.values():
            if task.allocation is not None:
                place = task.allocation.node
                assert task.spec.node in ("", place)
                assert {f"{k}={v}" for k, v in task.spec.labels.items()} <= set(labels[place])
            elif task.id in h.kernel.state.scheduler.queue:
                held = h.kernel.state.scheduler.reserved(task.id)
                could = h.kernel.state.resources.allocate(task.spec.request, held)
                assert could is None
