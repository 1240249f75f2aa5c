"""`zenos serve` of what is served already: which replica answers, and what is said of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.cli.conftest import Daemon, Ran, until, zenos
from zenos.core import events
from zenos.core.task import Outcome

FAILS = Outcome(exit_code=1, error="cannot allocate: used 6 MiB of 4 MiB")


def serve(daemon: Daemon, memory: str, cpu: int, happens: Callable[[str], object]) -> Ran:
    """Serve with these; `happens` with the new replica once that runs."""
    known = set(daemon.double.view.tasks)

    def new() -> str:
        tasks = list(daemon.double.view.tasks.values())
        return next((t.id for t in tasks if t.id not in known and t.state == "running"), "")

    driver = threading.Thread(target=lambda: happens(until(new)))
    driver.start()
    ran = zenos("serve", "tiny", "--memory", memory, "--cpu", str(cpu))
    driver.join()
    return ran


@pytest.fixture
def served(daemon: Daemon) -> Callable[[int], None]:
    """Serves a model that answers, with so many of the four cores."""

    def make_ready(task: str) -> None:
        generation = daemon.double.view.tasks[task].generation
        daemon.do(daemon.double.inbox.put, events.WorkerReady(task=task, generation=generation))

    def serves(cpu: int) -> None:
        ran = serve(daemon, "1GiB", cpu, make_ready)
        assert (ran.code, "tiny is served at" in ran.out) == (0, True)

    return serves


def test_new_settings_that_fail_are_told_and_what_answers_stays(
    daemon: Daemon, served: Callable[[int], None]
) -> None:
    served(1)
    ran = serve(daemon, "4MiB", 1, lambda task: daemon.end(task, FAILS))
    assert ran.code == 1
    assert "is served at" not in ran.out
    assert f"{FAILS.error}; tiny answers as before" in ran.err
    assert "no room" not in ran.err
    assert "served as before: cannot allocate" in " ".join(zenos("status").out.split())


def test_replicas_that_wait_are_not_counted_as_running(daemon: Daemon) -> None:
    ran = zenos("serve", "tiny", "--min-replicas", "7", "--max-replicas", "7", "--no-wait")
    assert "note: the nodes have room for about 4 of its 7 replicas at once" in ran.err
    until(lambda: "4 of 7 (7 to 7)" in zenos("status").out)


def test_while_new_settings_load_the_status_says_that_the_old_ones_answer(
    daemon: Daemon, served: Callable[[int], None]
) -> None:
    served(1)
    assert zenos("serve", "tiny", "--memory", "4MiB", "--no-wait").code == 0
    assert "served as before: the new one loads" in zenos("status").out


def test_without_room_for_both_it_says_that_what_answered_has_ended(
    daemon: Daemon, served: Callable[[int], None]
) -> None:
    served(4)
    ran = serve(daemon, "4MiB", 4, lambda task: daemon.end(task, FAILS))
    assert ran.code == 1
    assert f"{FAILS.error}; nothing answers for tiny now" in ran.err
    assert "no room for both: tiny answers again when its new replica has loaded" in ran.err


def test_stop_ends_the_replica_and_the_deployment(
    daemon: Daemon, served: Callable[[int], None]
) -> None:
    served(1)
    (replica,) = daemon.double.view.tasks
    ran = zenos("stop", "tiny")
    assert (ran.code, ran.err) == (0, "tiny is being stopped\n")
    until(lambda: daemon.double.view.tasks[replica].is_ended)
    until(lambda: "tiny" not in zenos("status").out)
    again = zenos("stop", "tiny")
    assert again.code == 3


def test_every_flag_is_the_deployment_s(daemon: Daemon) -> None:
    flags = (
        "--min-replicas 0 --max-replicas 2 --keep-alive 90s --priority low --cpu 0.5 --gpu 0.25"
        " --memory 2GiB --dtype float32 --slots 3 --context 64 --on-update restart --json"
    )
    ran = zenos("serve", "tiny", *flags.split())
    assert ran.code == 0, ran.err
    wanted = {
        "model": "tiny",
        "min_replicas": 0,
        "max_replicas": 2,
        "keep_alive_s": 90.0,
        "priority": 25,
        "cpu": 0.5,
        "gpu": 0.25,
        "memory": "2GiB",
        "dtype": "float32",
        "slots": 3,
        "context": 64,
        "on_update": "restart",
    }
    spec = ran.json["spec"]
    assert {name: spec[name] for name in wanted} == wanted
