"""Whose something is, and who may change it: those of its project, and the operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.harness import Harness, spec
from zenos.core import events as ev
from zenos.core.errors import RefusedError, ZenosError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Principal, State

ANN, BOB = Principal(user="ann", project="vision"), Principal(user="bob", project="speech")
EVE = Principal(user="eve", project="vision")
OPERATOR = Principal()

Act = Callable[[str, Principal], ev.Event]
ACTS: list[Act] = [
    lambda task, who: ev.Nice(request=0, task=task, priority=60, principal=who),
    lambda task, who: ev.Pause(request=0, task=task, principal=who),
    lambda task, who: ev.Resume(request=0, task=task, principal=who),
    lambda task, who: ev.Cancel(request=0, task=task, principal=who),
]


@pytest.mark.parametrize("who", [ANN, EVE, OPERATOR])
def test_who_is_of_its_project_and_the_operator_may_change_a_task(who: Principal) -> None:
    h = Harness()
    task = h.submit(spec(), principal=ANN)
    h.run(task)
    for act in ACTS:
        answer = h.ask(act(task.id, who))
        assert not isinstance(answer, ZenosError), answer
    assert h.now(task).stopping == "cancel"
    assert h.now(task).principal == ANN


@pytest.mark.parametrize(
    "who", [BOB, Principal(user="local", project="speech"), Principal(user="ann", project="x")]
)
def test_another_project_may_not_and_a_name_alone_makes_no_operator(who: Principal) -> None:
    h = Harness()
    task = h.submit(spec(), principal=ANN)
    array = h.submit_array(spec(), "0-1", principal=ANN)
    h.run(task)
    for act in ACTS:
        with pytest.raises(RefusedError, match="belongs to ann"):
            h.ask(act(task.id, who))
    with pytest.raises(RefusedError, match="belongs to ann"):
        h.ask(ev.CancelArray(request=0, array=array.id, principal=who))
    assert h.now(task).state is State.RUNNING


def deploy(h: Harness, who: Principal, **more: object) -> Deployment:
    made = h.ask(
        ev.Deploy(request=0, spec=DeploymentSpec(model="m", **more), version="m:1", principal=who)  # type: ignore[arg-type]
    )
    assert isinstance(made, Deployment)
    return made


def test_a_deployment_is_changed_by_its_project_alone_and_stays_its() -> None:
    h = Harness()
    deploy(h, ANN)
    with pytest.raises(RefusedError, match="cannot change how m is served: ann serves it"):
        deploy(h, BOB, min_replicas=0)
    with pytest.raises(RefusedError, match="cannot stop m: it belongs to another project"):
        h.ask(ev.Undeploy(request=0, name="m", principal=BOB))
    with pytest.raises(RefusedError, match="cannot roll back m"):
        h.ask(ev.Rollback(request=0, name="m", version="m:1", principal=BOB))
    assert deploy(h, EVE, max_replicas=2).principal == EVE
    assert deploy(h, OPERATOR, max_replicas=3).principal == EVE
    stopping = h.ask(ev.Undeploy(request=0, name="m", principal=ANN))
    assert isinstance(stopping, Deployment)
    assert stopping.stopping


def test_what_a_request_has_loaded_is_anybodys_to_deploy() -> None:
    h = Harness()
    h.ask(ev.Demand(request=0, name="m", spec=DeploymentSpec(model="m"), principal=ANN))
    assert deploy(h, BOB).principal == BOB


def test_a_training_of_another_project_does_not_change_what_is_served() -> None:
    h = Harness()
    deploy(h, ANN)
    theirs, own = h.submit(spec(), principal=BOB), h.submit(spec(), principal=ANN)
    h.step(ev.Published(version="m:2", task=theirs.id))
    assert h.kernel.state.deployments["m"].version == "m:1"
    h.step(ev.Published(version="m:3", task=own.id))
    assert h.kernel.state.deployments["m"].version == "m:3"
