"""On whose behalf functions run, and in whose quota, where several people share a daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.calls.conftest import running_system
from tests.processes import until
from tests.system.harness import System
from zenos.client import Client, connect
from zenos.core.task import Kind, Principal, State, Task

ANN = Principal(user="ann", project="vision")
BOB = Principal(user="bob", project="bob")
CALL = "zenos.call(os.getenv, 'ZENOS_TASK', cpu=0.1, memory='64MiB', keep_alive_s=60).result(60)"
WAYS = {"call": CALL, "map": f"next(iter({CALL.replace('call', 'map', 1)}))"}
WAYS["map"] = WAYS["map"].replace("'ZENOS_TASK'", "['ZENOS_TASK']").replace(".result(60)", "")


@pytest.fixture
def people(tmp_path: Path) -> Iterator[System]:
    """A daemon for the operator, bob, and ann, who may hold half a core."""
    with running_system(tmp_path) as made:
        made.home.config.write_text("user_quotas:\n  ann: {tasks: 3, cpu: 0.5}\n")
        made.start()
        yield made


def grant(system: System, who: Principal) -> str:
    """A token of theirs."""
    made = system.ask(lambda c: c.tokens.create(who.user, user=who.user, project=who.project))
    assert made.token is not None
    return made.token


def coming(system: System, who: Principal) -> Client:
    """As that user; the operator with the home's token."""
    token = None if who.is_operator else grant(system, who)
    return connect(home=system.home.root, token=token)


def run(client: Client, code: str) -> Task:
    """A program of theirs, all from one folder with one path, when it has ended."""
    argv = [sys.executable, "-c", f"import os, zenos; print({code})"]
    ended = client.submit(argv, cwd=os.getcwd(), cpu=0.1, memory="256MiB").wait(60)  # noqa: PTH109
    assert ended.outcome is not None
    return ended


def host_of(system: System, program: Task) -> Task:
    """The host that it printed."""
    assert program.state is State.SUCCEEDED, program.outcome
    assert program.outcome is not None
    name = program.outcome.log_tail.strip()
    return system.ask(lambda client: client.task(name).task)


@pytest.mark.parametrize("way", WAYS)
def test_a_call_in_a_task_runs_on_a_host_of_that_tasks_user(people: System, way: str) -> None:
    hosts = {}
    for who in (Principal(), ANN, BOB):  # one after another, who all want the same
        with coming(people, who) as client:
            first, again = (host_of(people, run(client, WAYS[way])) for _ in range(2))
        assert (first.kind, first.principal) == (Kind.CALL, who)
        assert again.id == first.id, "they share it with themselves"
        hosts[first.id] = first
    assert len(hosts) == 3
    journals = {host.spec.work.key for host in hosts.values()}  # type: ignore[union-attr]
    assert len(journals) == 3, "nobody takes over what another has left"


def test_a_call_in_a_task_is_within_the_quota_of_its_user(people: System) -> None:
    with coming(people, ANN) as ann:
        code = "repr(zenos.call(os.getpid, cpu=1).exception(60))"
        told = run(ann, code)
    assert told.outcome is not None
    assert "QuotaError" in told.outcome.log_tail
    assert "ann may hold 0.5 CPUs" in told.outcome.log_tail
    assert people.ask(lambda client: client.tasks(kind="call")) == []


def test_what_a_call_calls_is_of_the_same_user(people: System, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    again = f"from tests.calls import work; work.call_on({str(ran)!r})"
    with coming(people, ANN) as ann:
        run(ann, f"zenos.call(exec, {again!r}, cpu=0.1, memory='64MiB').result(60)")
    until(lambda: work.lines(ran) == ["called"])
    hosts = people.ask(lambda client: client.tasks(kind="call"))
    assert [view.task.principal for view in hosts] == [ANN, ANN]


def test_outside_a_task_calls_are_of_whose_token_is_given(
    people: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time: a program may change it, and what it has called goes on as before."""

    def host() -> Task:
        wanted = {"cpu": 0.1, "memory": "64MiB", "keep_alive_s": 60.0}
        name = zenos.call(os.getenv, "ZENOS_TASK", **wanted).result(60)  # type: ignore[arg-type]
        assert name is not None
        return people.ask(lambda client: client.task(name).task)

    operators = host()
    assert operators.principal == Principal()
    monkeypatch.setenv("ZENOS_TOKEN", grant(people, ANN))
    anns = host()
    assert anns.principal == ANN
    monkeypatch.delenv("ZENOS_TOKEN")
    assert host().id == operators.id
