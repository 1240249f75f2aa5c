"""A program with a pool, run as a task: what its threads do is seen from outside."""

from __future__ import annotations

import os
import signal
import sys

from tests.processes import until
from tests.system.harness import System
from zenos.client import TaskThreads
from zenos.core.processes import stat_fields
from zenos.core.task import State
from zenos.core.thread_views import PoolView

PROGRAM = """
import sys, time
from pathlib import Path
from zenos.threads import Options, Pool, cancelled, report

def work(gate):
    report(0.5)
    while not Path(gate).exists():
        time.sleep(0.01)

kind, gate = sys.argv[1:]
with Pool(2, kind=kind, name="p\\x1bool") as pool:
    options = Options(name="on\\x07e", priority=60)
    waiting = [pool.submit(work, gate, options=options) for _ in range(5)]
    for one in waiting:
        one.result()
    Path(gate + ".seen").touch()
    while not Path(gate + ".end").exists():
        time.sleep(0.01)
"""


def submit(system: System, kind: str = "thread") -> str:
    argv = [sys.executable, "-c", PROGRAM, kind, str(system.released)]
    return system.ask(lambda client: client.submit(argv, memory="256MiB", cpu=0.1).id)


def threads(system: System, task: str) -> TaskThreads:
    return system.ask(lambda client: client.threads(task))


def pools(system: System, task: str) -> list[PoolView]:
    return [pool for process in threads(system, task).processes for pool in process.pools]


def at_work(system: System, task: str) -> PoolView:
    """The program's pool once both lanes are taken."""
    until(lambda: [pool.running for pool in pools(system, task)] == [2])
    return pools(system, task)[0]


def end(system: System, task: str) -> None:
    """Let the program end, and wait until it has."""
    for name in (system.released, system.released.with_name("released.end")):
        name.touch()
    until(lambda: system.ask(lambda client: client.task(task).task.is_ended))


def test_a_programs_threads_are_seen_while_they_run(system: System) -> None:
    system.start()
    task = submit(system)
    pool = at_work(system, task)
    assert (pool.kind, pool.queued, len(pool.lanes)) == ("thread", 3, 2)
    assert pool.name == "p\ufffdool"
    running, waiting = pool.threads[:2], pool.threads[2:]
    assert {thread.name for thread in pool.threads} == {"on\ufffde"}
    assert {thread.lane for thread in running} == {lane.id for lane in pool.lanes}
    assert [(thread.state, thread.priority) for thread in waiting] == [("queued", 60)] * 3
    until(lambda: [thread.progress for thread in pools(system, task)[0].threads[:2]] == [0.5] * 2)
    assert system.ask(lambda client: client.task(task).view.threads) == 5
    seen = pools(system, task)[0].threads[0].ran_s
    until(lambda: pools(system, task)[0].threads[0].ran_s > seen)

    system.released.touch()
    until(lambda: [pool.succeeded for pool in pools(system, task)] == [5])
    assert pools(system, task)[0].threads == []
    end(system, task)
    assert threads(system, task).processes == []


def test_processes_are_lanes_too_and_a_cancelled_task_shows_no_threads(system: System) -> None:
    system.start()
    task = submit(system, "process")
    pool = at_work(system, task)
    assert pool.kind == "process"
    assert threads(system, task).processes[0].pid not in {lane.pid for lane in pool.lanes}
    system.ask(lambda client: client.cancel(task))
    until(lambda: system.ask(lambda client: client.task(task).task.is_ended))
    assert threads(system, task).processes == []
    assert system.ask(lambda client: client.task(task).view.threads) == 0


def test_a_pause_takes_the_cores_from_all_lanes_and_gives_them_back(system: System) -> None:
    system.start()
    task = submit(system, "process")
    lanes = [lane.pid for lane in at_work(system, task).lanes]
    assert len(lanes) == 2
    system.ask(lambda client: client.pause(task))
    until(lambda: system.ask(lambda client: client.task(task).task.state) == State.PAUSED)
    assert [(stat_fields(pid) or "X")[0] for pid in lanes] == ["T", "T"]
    system.ask(lambda client: client.resume(task))
    end(system, task)
    assert system.ask(lambda client: client.task(task).task.state) == State.SUCCEEDED


def test_without_a_daemon_a_program_goes_on_and_the_next_one_is_told_again(system: System) -> None:
    system.start()
    task = submit(system)
    at_work(system, task)
    system.restart()
    assert at_work(system, task).queued == 3
    system.kill()
    system.released.touch()
    until(system.released.with_name("released.seen").exists)
    system.released.with_name("released.end").touch()
    until(lambda: system.ask(lambda client: client.task(task).task.is_ended))
    assert system.ask(lambda client: client.task(task).task.state) == State.SUCCEEDED


def test_a_process_that_is_killed_takes_its_threads_along(system: System) -> None:
    script = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {PROGRAM!r}, "thread", sys.argv[1]])
subprocess.run([sys.executable, "-c", "import signal; signal.pause()"])
"""
    system.start()
    argv = [sys.executable, "-c", script, str(system.released)]
    task = system.ask(lambda client: client.submit(argv, memory="256MiB", cpu=0.1).id)
    at_work(system, task)
    os.kill(threads(system, task).processes[0].pid, signal.SIGKILL)
    until(lambda: threads(system, task).processes == [])
    system.ask(lambda client: client.cancel(task))
    until(lambda: system.ask(lambda client: client.task(task).task.is_ended))
