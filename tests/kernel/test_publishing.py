"""Which version a deployment serves: what is published, rolled back, deployed anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.harness import Harness
from tests.kernel.test_model_manager import make_ready, replicas
from zenos.core import events as ev
from zenos.core.actions import Update
from zenos.core.errors import NotFoundError, RefusedError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Principal


def deploy(h: Harness, version: str = "m:1", build: str = "b", model: str = "m") -> Deployment:
    spec = DeploymentSpec(model=model, min_replicas=1, memory="500MB")
    answer = h.ask(ev.Deploy(request=1, spec=spec, version=version, build=build))
    assert isinstance(answer, Deployment)
    return answer


def publish(h: Harness, version: str, build: str = "b") -> list[Deployment]:
    """What replicas are told of it."""
    step = h.step(ev.Published(version=version, build=build, task="t9"))
    return [action.deployment for action in step.actions if isinstance(action, Update)]


def roll_back(h: Harness, version: str, build: str = "b", name: str = "m") -> Deployment:
    answer = h.ask(ev.Rollback(request=1, name=name, version=version, build=build))
    assert isinstance(answer, Deployment)
    return answer


def served(h: Harness, name: str = "m") -> Deployment:
    return h.kernel.state.deployments[name]


def test_a_published_version_is_served_by_the_replica_that_is_there() -> None:
    h = Harness()
    deploy(h)
    task = make_ready(h)
    (told,) = publish(h, "m:2")
    assert (told.version, told.source, told.replicas) == ("m:2", "t9", [task.id])
    assert told.turn > 0
    h.wait(60)
    assert [t.id for t in replicas(h)] == [task.id]
    assert not h.stopped
    # Said again, as after a restart of either side, it changes nothing; nor does an older one.
    assert publish(h, "m:2") == []
    assert publish(h, "m:1") == []
    assert served(h) == told
    # One that takes its place begins with what is served now.
    h.exit(task, exit_code=None, signal=9)
    h.wait(60)
    assert getattr(replicas(h)[-1].spec.work, "model", "") == "m:2"


def test_a_version_of_another_build_replaces_the_replica() -> None:
    h = Harness()
    deploy(h)
    task = make_ready(h)
    publish(h, "m:2", build="other")
    assert not h.stopped  # until another one answers
    new = make_ready(h)
    assert new.id != task.id
    h.step()
    assert [stopped.task for stopped in h.stopped] == [task.id]


@pytest.mark.parametrize("model", ["m:1", "m:good"])
def test_a_deployment_of_a_version_does_not_follow(model: str) -> None:
    h = Harness()
    deploy(h, model=model)
    assert publish(h, "m:2") == []
    assert served(h, model).version == "m:1"


def test_a_rollback_holds_until_it_is_deployed_again() -> None:
    h = Harness()
    deploy(h)
    task = make_ready(h)
    publish(h, "m:2")
    back = roll_back(h, "m:1")
    assert (back.version, back.pinned) == ("m:1", True)
    assert publish(h, "m:3") == []
    again = h.restarted()
    assert publish(again, "m:3") == []
    assert served(again).version == "m:1"
    deploy(h, "m:3")
    assert (served(h).version, served(h).pinned) == ("m:3", False)
    assert publish(h, "m:4")
    assert [t.id for t in replicas(h)] == [task.id]


def test_what_is_not_served_or_not_ones_own_cannot_be_rolled_back() -> None:
    h = Harness()
    with pytest.raises(NotFoundError, match="cannot find a deployment of 'm'"):
        roll_back(h, "m:1")
    deploy(h)
    other = Principal(user="other", project="other")
    with pytest.raises(RefusedError, match="cannot roll back m: it belongs to another project"):
        h.ask(ev.Rollback(request=1, name="m", version="m:1", principal=other))


def test_a_version_published_while_another_was_looked_up_is_not_lost() -> None:
    h = Harness()
    deploy(h)
    publish(h, "m:2")
    publish(h, "m:3")
    deploy(h, "m:2")  # what the registry said before the third was there
    assert served(h).version == "m:3"


WORDS = st.one_of(
    st.tuples(st.sampled_from(["publish", "back", "deploy"]), st.integers(1, 8)),
    st.tuples(st.just("restart"), st.just(0)),
)


@given(st.lists(WORDS, max_size=30))
def test_versions_go_forward_unless_somebody_goes_back(words: list[tuple[str, int]]) -> None:
    h = Harness()
    deploy(h)
    newest, pinned, turn = 1, False, 0
    for word, number in words:
        if word == "publish":
            publish(h, f"m:{number}")
            newest = newest if pinned else max(newest, number)
        elif word == "back":
            roll_back(h, f"m:{number}")
            newest, pinned = number, True
        elif word == "deploy":
            deploy(h, f"m:{number}")
            newest = number if pinned or turn == 0 else max(newest, number)
            pinned = False
        else:
            h = h.restarted()
        now = served(h)
        assert (now.version, now.pinned) == (f"m:{newest}", pinned)
        assert now.turn >= turn  # by which replicas tell old news
        turn = now.turn
