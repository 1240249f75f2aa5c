"""What dies under calls: lanes, hosts, daemons, programs. What was accepted runs, once."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.calls.conftest import running_system
from tests.crash.labels import CALLS
from tests.processes import until
from tests.system.harness import System
from zenos.core import processes, shim
from zenos.core.errors import WorkerError
from zenos.core.task import State, Task


def hosts(system: System) -> list[Task]:
    views = system.ask(lambda client: client.tasks(kind="call", state="running"))
    return [view.task for view in views]


def kill_hosts(system: System) -> None:
    """Kill each as if it had crashed; its lanes go with it."""
    for host in hosts(system):
        record = shim.read_record(str(system.home.run(host.id, host.generation)), "started")
        assert record is not None
        lanes = processes.children(record["pid"])
        os.kill(record["pid"], signal.SIGKILL)
        until(lambda lanes=lanes: not any(map(processes.start_time, lanes)))


def test_a_killed_host_loses_nothing_and_runs_nothing_twice(system: System, tmp_path: Path) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    running = zenos.call(work.note_and_wait, str(ran), str(gate), "running")
    again = zenos.call(work.note_and_wait, str(ran), str(gate), "again", idempotent=True, lanes=2)
    waiting = [zenos.call(work.note, str(ran), f"w{n}") for n in range(10)]
    until(lambda: {"running", "again"} <= set(work.lines(ran)))
    passing = zenos.call(work.note, str(ran), "passing", durable=False)
    assert all(future.wait_accepted(60) for future in waiting)
    kill_hosts(system)
    gate.touch()
    with pytest.raises(WorkerError, match="cannot tell whether note_and_wait ran to its end"):
        running.result(60)
    with pytest.raises(WorkerError, match="cannot tell whether the call ran"):
        passing.result(60)
    assert again.result(60) == "again"
    for future in waiting:
        future.result(60)
    expected = Counter(["running", "again", "again", *(f"w{n}" for n in range(10))])
    assert Counter(work.lines(ran)) == expected


def test_a_call_that_uses_up_its_hosts_memory_says_so(system: System) -> None:
    system.start()
    if not system.ask(lambda client: client.nodes())[0].node.enforcement["memory"].startswith("cg"):
        pytest.skip("the whole host ends")
    says = "its lane was ended by SIGKILL, as the memory of 256 MiB that its host has was used up;"
    with pytest.raises(WorkerError, match=says):
        zenos.call(bytearray, 3 * 10**9, memory="256MiB").result(60)


def shim_turns(system: System, host: Task) -> int:
    """How often a host's shim has waited: each time it has looked before."""
    record = shim.read_record(str(system.home.run(host.id, host.generation)), "shim")
    assert record is not None
    (line,) = [
        line
        for line in Path(f"/proc/{record['pid']}/status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    ]
    return int(line.split()[1])


def test_a_call_that_uses_up_the_memory_leaves_those_beside_it_alone(
    system: System, tmp_path: Path
) -> None:
    system.start()
    if not system.ask(lambda client: client.nodes())[0].node.enforcement["memory"].startswith("cg"):
        pytest.skip("the whole host ends")
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    of = {"memory": "300MiB", "lanes": 2, "keep_alive_s": 600}
    beside = zenos.call(work.note_and_wait, str(ran), str(gate), "beside", **of)
    until(lambda: work.lines(ran) == ["beside"])
    (host,) = hosts(system)
    with pytest.raises(WorkerError, match="was used up"):
        zenos.call(bytearray, 3 * 10**9, **of).result(60)
    turns = shim_turns(system, host)
    until(lambda: shim_turns(system, host) > turns + 2)  # it has seen it
    gate.touch()
    assert beside.result(60) == "beside"
    again = zenos.call(work.note_and_tell, str(ran), "after", **of)
    assert again.result(60) == "after"
    assert [(one.id, one.generation) for one in hosts(system)] == [(host.id, host.generation)]
    assert work.lines(ran) == ["beside", "after"]


def test_the_host_after_one_that_used_up_its_memory_says_so(tmp_path: Path) -> None:
    """Without a group its shim ends the whole host."""
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    says = "its host died while it ran, as the memory of 256 MiB that its host has was used up; ask"
    with running_system(tmp_path, "enforcement=watchdog") as system:
        system.start()
        future = zenos.call(work.note_wait_and_grow, str(ran), str(gate), 10**9, memory="256MiB")
        until(lambda: work.lines(ran) == ["begun"])
        assert future.wait_accepted(60)
        with kept_away(system):
            gate.touch()
            until(lambda: not hosts(system))
        with pytest.raises(WorkerError, match=says):
            future.result(60)


@contextmanager
def kept_away(system: System) -> Iterator[None]:
    """This program finds no host meanwhile."""
    with (system.home.calls / "finding.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_results_wait_for_a_program_that_finds_the_next_host_late(
    system: System, tmp_path: Path
) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    first = zenos.call(work.note_and_wait, str(ran), str(gate), "first", keep_alive_s=600)
    waiting = [zenos.call(work.note_and_tell, str(ran), n, keep_alive_s=600) for n in "abc"]
    until(lambda: work.lines(ran) == ["first"])
    assert all(future.wait_accepted(60) for future in waiting)
    with kept_away(system):
        kill_hosts(system)
        until(lambda: work.lines(ran) == ["first", "a", "b", "c"])
    assert [future.result(60) for future in waiting] == ["a", "b", "c"]
    with pytest.raises(WorkerError, match="its host died while it ran"):
        first.result(60)


def test_what_the_next_host_has_run_does_not_run_again(system: System, tmp_path: Path) -> None:
    """Its program was never told that it was accepted, and so sends it again."""
    armed, ran = tmp_path / "armed", tmp_path / "ran"
    armed.mkdir()
    system.start(f"dir:{armed}")
    assert zenos.call(work.increment, 1, keep_alive_s=600).result(60) == 2
    with kept_away(system):
        (armed / "calls.kept=kill").touch()
        future = zenos.call(work.note_and_tell, str(ran), "once", keep_alive_s=600)
        until(lambda: work.lines(ran) == ["once"])
    assert future.result(60) == "once"
    assert work.lines(ran) == ["once"]


def test_calls_go_on_without_a_daemon_and_with_the_next(system: System, tmp_path: Path) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    running = zenos.call(work.note_and_wait, str(ran), str(gate), "running")
    until(lambda: work.lines(ran) == ["running"])
    system.kill()
    waiting = zenos.call(work.increment, 1)
    assert waiting.wait_accepted(60)
    gate.touch()
    assert running.result(60) == "running"
    assert waiting.result(60) == 2
    system.start()
    assert zenos.call(work.increment, 2).result(60) == 3
    assert len(hosts(system)) == 1


PROGRAM = """
import os, sys, zenos
from tests.calls import work

ran, gate = sys.argv[1:]
first = zenos.call(work.note_and_wait, ran, gate, "first")
assert first.wait_accepted(60)
futures = [zenos.call(work.note, ran, f"n{number}") for number in range(20)]
passing = zenos.call(work.note, ran, "passing", durable=False)
assert all(future.wait_accepted(60) for future in futures)
print("accepted", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_what_was_accepted_runs_without_its_program(
    system: System, tmp_path: Path, end: str
) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ran), str(gate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "accepted\n"
        if end == "kill":
            program.kill()
    gate.touch()
    expected = {"first", *(f"n{number}" for number in range(20))}
    until(lambda: expected <= set(work.lines(ran)))
    lines = Counter(work.lines(ran))
    assert lines.pop("passing", 0) <= 1
    assert lines == Counter(expected)


@pytest.mark.parametrize("label", CALLS)
@pytest.mark.parametrize("late", [False, True])
def test_a_host_that_dies_at_any_point(
    system: System, tmp_path: Path, label: str, late: bool
) -> None:
    """Idempotent calls all succeed. Others run at most once, and end; who succeeds has run."""
    armed = tmp_path / "armed"
    armed.mkdir()
    system.start(f"dir:{armed}")
    if late:
        assert zenos.call(work.increment, 1).result(60) == 2
    (armed / f"{label}=kill").touch()
    ran = tmp_path / "ran"
    once, often, passing = {}, {}, {}
    for number in range(8):
        name = str(number)
        once[f"o{name}"] = zenos.call(work.note, str(ran), f"o{name}")
        often[f"i{name}"] = zenos.call(work.note, str(ran), f"i{name}", idempotent=True)
        passing[f"p{name}"] = zenos.call(work.note, str(ran), f"p{name}", durable=False)
        if number % 4 == 3:  # several words to the host, and several commits
            wait([*once.values(), *often.values(), *passing.values()], 60)
    for future in often.values():
        future.result(60)
    failed = set()
    for name, future in {**once, **passing}.items():
        error = future.exception(60)
        if error is not None:
            assert isinstance(error, WorkerError), error
            assert "cannot tell" in str(error)
            failed.add(name)
    lines = Counter(work.lines(ran))
    assert set(often) <= set(lines)
    for name in [*once, *passing]:
        assert lines[name] <= 1, (name, lines)
        assert lines[name] == 1 or name in failed, (name, lines)
    assert list(armed.iterdir()) == []


def test_a_host_that_is_cancelled_says_so(system: System, tmp_path: Path) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    future = zenos.call(work.note_and_wait, str(ran), str(gate), "x")
    until(lambda: work.lines(ran) == ["x"])
    (host,) = hosts(system)
    system.ask(lambda client: client.cancel(host.id))
    with pytest.raises(WorkerError, match="its host was ended"):
        future.result(60)
    until(lambda: system.ask(lambda client: client.task(host.id)).task.state is State.CANCELLED)
    assert zenos.call(work.increment, 1).result(60) == 2


def test_a_host_ends_when_nobody_calls_and_leaves_nothing(system: System) -> None:
    system.start()
    assert zenos.call(work.increment, 1, keep_alive_s=0.05).result(60) == 2
    until(lambda: not hosts(system))
    # On a busy machine one may end before the call has come to it, and another takes its place.
    views = system.ask(lambda client: client.tasks(kind="call"))
    assert {view.task.state for view in views} == {State.SUCCEEDED}
    assert [path.name for path in system.home.calls.iterdir()] == ["finding.lock"]
    assert zenos.call(work.increment, 2, keep_alive_s=0.05).result(60) == 3


def test_a_host_without_calls_gives_way_and_one_with_a_call_does_not(
    system: System, tmp_path: Path
) -> None:
    system.start()
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    busy = zenos.call(work.note_and_wait, str(ran), str(gate), "busy", cpu=1, keep_alive_s=600)
    assert zenos.call(work.increment, 1, cpu=7, lanes=1, keep_alive_s=600).result(60) == 2
    until(lambda: work.lines(ran) == ["busy"])
    (idle,) = [host for host in hosts(system) if host.spec.resources.cpu == 7000]
    # Of the machine's eight: it needs the idle one's seven, and then the busy one's, too.
    waiting = system.ask(lambda client: client.submit(["true"], cpu=8)).id
    until(lambda: system.ask(lambda client: client.task(idle.id)).task.state is State.SUCCEEDED)
    assert [host.spec.resources.cpu for host in hosts(system)] == [1000]
    gate.touch()
    assert busy.result(60) == "busy"
    until(lambda: system.ask(lambda client: client.task(waiting)).task.state is State.SUCCEEDED)
    assert zenos.call(work.increment, 2, cpu=7, lanes=1, keep_alive_s=600).result(60) == 3
