"""Programs as tasks: real processes, started, watched, stopped, adopted and lost."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.conftest import Rig, program, survivors
from zenos.core import limits, shim
from zenos.core.events import StartFailed, WorkerExited, WorkerLost, WorkerStarted
from zenos.core.resources import Resources
from zenos.workers import runs
from zenos.workers.limits import OPEN_FILES, raise_open_files

PYTHON = sys.executable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - of files and processes there are no events
            await asyncio.sleep(0.005)


async def exited(rig: Rig) -> WorkerExited:
    (event,) = await rig.until(WorkerExited)
    assert isinstance(event, WorkerExited)
    return event


async def test_a_program_runs_and_says_how_it_ended(rig: Rig, tmp_path: Path) -> None:
    task = program("/bin/sh", "-c", "echo out; echo err >&2; pwd; exit 3", cwd=str(tmp_path))
    await rig.executor.start(task)
    outcome = (await exited(rig)).outcome
    assert outcome.exit_code == 3
    assert outcome.log_tail == f"out\nerr\n{tmp_path}\n"
    assert outcome.describe() == "cannot finish: the program ended with exit code 3"
    assert isinstance(rig.events[0], WorkerStarted)


CPUS_SEEN = """
import os
from zenos.threads import Pool, cpus
import torch
with Pool() as pool:
    print(cpus(), pool.lanes, torch.get_num_threads(), os.environ["RAYON_NUM_THREADS"])
"""


@pytest.mark.parametrize(("cpu", "seen"), [(1, "1.0 1 1 1"), (0.5, "0.5 1 1 1")])
async def test_two_tasks_start_no_more_threads_than_they_have_cores(
    rig: Rig, cpu: float, seen: str
) -> None:
    held = Resources.of(cpu=cpu, memory="2GiB")
    for number in (1, 2):
        await rig.executor.start(
            program(PYTHON, "-c", CPUS_SEEN, number=number, resources=held, cwd=str(Path.cwd()))
        )
    ended = await rig.until(WorkerExited, 2)
    assert [event.outcome.log_tail for event in ended if isinstance(event, WorkerExited)] == [
        f"{seen}\n"
    ] * 2


async def test_what_a_task_asks_for_stays(rig: Rig) -> None:
    task = program(
        "/bin/sh",
        "-c",
        "echo $OMP_NUM_THREADS $RAYON_NUM_THREADS $ZENOS_CPU $TOKENIZERS_PARALLELISM",
        env={"OMP_NUM_THREADS": "7"},
        resources=Resources.of(cpu=2.5, memory="200MB"),
    )
    await rig.executor.start(task)
    assert (await exited(rig)).outcome.log_tail == "7 3 2.5 true\n"


async def test_with_the_end_it_is_told_how_far_the_task_is_saved(rig: Rig) -> None:
    (rig.home.checkpoint("t1") / "step-000000007").mkdir(parents=True)
    await rig.executor.start(program("/bin/true"))
    assert (await exited(rig)).saved_step == 7
    (rig.home.checkpoint("t2") / "step-000000008").mkdir(parents=True)
    await rig.executor.start(program("/bin/sleep", "600", number=2))
    await rig.until(WorkerStarted, 2)
    pid = runs.process(rig.home.run("t2", 1), "shim")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    (lost,) = await rig.until(WorkerLost)
    assert isinstance(lost, WorkerLost)
    assert lost.saved_step == 8


async def test_a_long_log_of_a_helper_is_set_aside_when_it_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DAEMON_LOG_BYTES_MAX", 10)
    log, old = rig.home.root / "shim.log", rig.home.root / "shim.log.1"
    log.write_text("more than ten bytes")
    await rig.executor.start(program("/bin/true"))
    await exited(rig)
    assert old.read_text() == "more than ten bytes"
    assert "more" not in log.read_text()


async def test_a_program_that_is_not_there_is_named(rig: Rig) -> None:
    await rig.executor.start(program("/no/such/program"))
    outcome = (await exited(rig)).outcome
    assert outcome.exit_code == 127
    assert "cannot execute '/no/such/program'" in outcome.describe()


async def test_a_signal_is_reported_as_one(rig: Rig) -> None:
    await rig.executor.start(program("/bin/sh", "-c", "kill -SEGV $$"))
    assert (await exited(rig)).outcome.signal == signal.SIGSEGV


async def test_the_environment_is_scrubbed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    kept = {"https_proxy": "http://proxy", "HF_ENDPOINT": "http://hub", "LC_TIME": "C"}
    kept |= {"TZ": "Europe/Berlin", "LANG": "de_DE.UTF-8"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    await rig.executor.start(program("/usr/bin/env", env={"MINE": "1"}))
    lines = (await exited(rig)).outcome.log_tail.splitlines()
    assert "MINE=1" in lines
    assert {f"{name}={value}" for name, value in kept.items()} <= set(lines)
    assert "ZENOS_TASK=t1" in lines
    assert not any(line.startswith("SECRET") for line in lines)


async def test_a_program_gets_the_open_files_that_the_daemon_was_started_with(rig: Rig) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What the daemon does to its own limit is not passed on.
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES - 1, before[1]))
    try:
        await rig.executor.start(program("/bin/sh", "-c", "ulimit -Sn"))
        assert (await exited(rig)).outcome.log_tail == f"{OPEN_FILES}\n"
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= OPEN_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_result_file_becomes_the_result(rig: Rig) -> None:
    path = rig.home.run("t1", 1) / "result.json"
    await rig.executor.start(program("/bin/sh", "-c", f"""echo '{{"answer": 42}}' > {path}"""))
    assert (await exited(rig)).outcome.result == {"answer": 42}


async def test_starting_again_does_not_start_twice(rig: Rig, tmp_path: Path) -> None:
    task = program("/bin/sh", "-c", f"echo x >> {tmp_path}/ran")
    await asyncio.gather(*(rig.executor.start(task) for _ in range(3)))
    await exited(rig)
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_two_daemons_racing_for_one_generation_run_it_once(
    rigs: Callable[..., Rig], tmp_path: Path
) -> None:
    first, second = rigs(), rigs()
    task = program("/bin/sh", "-c", f"echo x >> {tmp_path}/ran; sleep 0.3")
    await asyncio.gather(first.executor.start(task), second.executor.start(task))
    await asyncio.gather(exited(first), exited(second))
    assert (tmp_path / "ran").read_text() == "x\n"


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
subprocess.Popen(["sleep", "600"])
print("up", flush=True)
time.sleep(600)
"""


async def test_stopping_ends_everything_that_the_program_started(rig: Rig) -> None:
    await rig.executor.start(program(PYTHON, "-c", STUBBORN))
    await rig.until(WorkerStarted)
    log = rig.home.run("t1", 1) / "log"
    await until(lambda: "up\n" in runs.log_tail(log))
    pid = runs.process(rig.home.run("t1", 1), "shim")
    assert pid is not None
    family = shim.descendants(pid)
    assert len(family) == 3
    await rig.executor.stop("t1", 1, 0.1, save=False)
    assert (await exited(rig)).outcome.signal == signal.SIGKILL
    assert not any(shim.start_time(member) for member in family)


async def test_who_was_to_save_first_and_is_cancelled_then_has_less_time(rig: Rig) -> None:
    await rig.executor.start(program(PYTHON, "-c", STUBBORN))
    await rig.until(WorkerStarted)
    log = rig.home.run("t1", 1) / "log"
    await until(lambda: "up\n" in runs.log_tail(log))
    await rig.executor.stop("t1", 1, 1000.0, save=True)
    await rig.executor.stop("t1", 1, 0.1, save=False)
    assert (await exited(rig)).outcome.signal == signal.SIGKILL


async def test_a_program_that_ends_on_sigterm_ends_within_the_grace_time(rig: Rig) -> None:
    await rig.executor.start(program("/bin/sleep", "600"))
    await rig.executor.stop("t1", 1, 60.0, save=False)  # perhaps before it has started
    assert (await exited(rig)).outcome.signal == signal.SIGTERM


async def test_one_that_was_told_to_end_before_it_started_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    async def fork(_spec: Path, notify: int) -> None:
        held.append(os.dup(notify))  # a fork server that takes its time

    monkeypatch.setattr(rig.launcher, "fork", fork)
    await rig.executor.start(program("true"))
    await rig.executor.stop("t1", 1, 0.0, save=False)
    (event,) = await rig.until(StartFailed)
    os.close(held[0])
    assert isinstance(event, StartFailed)
    assert event.reason == "it was told to end before it had started"


async def test_what_a_program_leaves_behind_ends_with_it(rig: Rig, tmp_path: Path) -> None:
    script = f"setsid sleep 600 & echo $! > {tmp_path}/pid; exit 0"
    await rig.executor.start(program("/bin/sh", "-c", script))
    assert (await exited(rig)).outcome.ok
    assert not shim.start_time(int((tmp_path / "pid").read_text()))


async def test_a_new_daemon_adopts_what_lives_and_finishes_what_has_ended(
    rig: Rig, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    living = program("/bin/sh", "-c", f"read x < {go}; exit 5")
    done = program("/bin/true", number=2)
    await rig.executor.start(living)
    await rig.executor.start(done)
    await rig.until(WorkerStarted, 2)
    await exited(rig)
    second = await rig.again(living, done)
    try:
        event = await exited(second)
        assert (event.task, event.outcome.exit_code) == ("t2", 0)
        await second.until(WorkerStarted)
        await asyncio.to_thread(go.write_text, "x\n")
        last = (await second.until(WorkerExited, 2))[1]
        assert isinstance(last, WorkerExited)
        assert (last.task, last.outcome.exit_code) == ("t1", 5)
    finally:
        await second.executor.close()


async def test_an_adopted_worker_can_be_stopped(rig: Rig) -> None:
    task = program("/bin/sleep", "600")
    await rig.executor.start(task)
    await rig.until(WorkerStarted)
    second = await rig.again(task)
    await second.until(WorkerStarted)
    await second.executor.stop("t1", 1, 60.0, save=False)
    assert (await exited(second)).outcome.signal == signal.SIGTERM
    await second.executor.close()


async def test_a_killed_shim_takes_its_worker_along_and_the_task_is_lost(rig: Rig) -> None:
    await rig.executor.start(program("/bin/sh", "-c", "sleep 600 & sleep 600"))
    await rig.until(WorkerStarted)
    pid = runs.process(rig.home.run("t1", 1), "shim")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    (event,) = await rig.until(WorkerLost)
    assert isinstance(event, WorkerLost)
    assert "shim was killed" in event.reason
    await until(lambda: not survivors(rig.home))


async def test_a_killed_worker_is_a_recorded_fault(rig: Rig) -> None:
    await rig.executor.start(program("/bin/sh", "-c", "echo last words; sleep 600"))
    (event,) = await rig.until(WorkerStarted)
    assert isinstance(event, WorkerStarted)
    log = rig.home.run("t1", 1) / "log"
    await until(lambda: runs.log_tail(log))
    os.kill(event.pid, signal.SIGKILL)
    outcome = (await exited(rig)).outcome
    assert (outcome.signal, outcome.log_tail, outcome.oom) == (9, "last words\n", False)


SHIM_POINTS = [
    "shim.claim.before",
    "shim.claim.after",
    "shim.fork.after",
    "shim.started.after",
    "shim.exit.before",
    "shim.exit.after",
]


@pytest.mark.parametrize("point", SHIM_POINTS)
async def test_a_shim_killed_at_any_point_loses_nothing_and_runs_nothing_twice(
    rigs: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Either it ended rightly, or it says that nothing ran, or it is lost: never a second run."""
    task = program("/bin/sh", "-c", f"echo x >> {tmp_path}/ran")
    monkeypatch.setenv("ZENOS_FAILPOINTS", f"{point}=kill@1")
    rig = rigs()
    await rig.executor.start(task)
    await until(lambda: any(not isinstance(e, WorkerStarted) for e in rig.events))
    monkeypatch.delenv("ZENOS_FAILPOINTS")
    ran = (tmp_path / "ran").read_text() if (tmp_path / "ran").exists() else ""
    match rig.events[-1]:
        case StartFailed():
            assert ran == ""
        case WorkerExited(outcome=outcome):
            assert point == "shim.exit.after"
            assert (outcome.exit_code, ran) == (0, "x\n")
        case WorkerLost():
            assert point in {"shim.started.after", "shim.exit.before"}
            assert ran in {"", "x\n"}
        case event:
            pytest.fail(f"unexpected {event}")


BOMB = """
import time
held = []
for _ in range(100):
    held.append(bytearray(10_000_000))
    time.sleep(0.005)
print("not stopped")
"""


@pytest.mark.parametrize("enforcement", ["auto", "watchdog"])
async def test_a_task_over_its_memory_limit_ends_and_its_neighbour_goes_on(
    rigs: Callable[..., Rig], enforcement: str
) -> None:
    rig = rigs(enforcement=enforcement)
    limit = Resources.of(cpu=1, memory="100MB")
    await rig.executor.start(program("/bin/sleep", "600", number=2, resources=limit))
    await rig.executor.start(program(PYTHON, "-c", BOMB, resources=limit))
    outcome = (await exited(rig)).outcome
    assert outcome.oom
    assert "cannot allocate more memory: used" in outcome.describe()
    assert "of 95.4 MiB" in outcome.describe()
    assert "not stopped" not in outcome.log_tail
    await until(lambda: len(survivors(rig.home)) == 2)  # the neighbour and its shim
    await rig.executor.stop("t2", 1, 5.0, save=False)
    await rig.until(WorkerExited, 2)


async def test_a_log_never_ends_inside_a_character(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes("模型".encode() * 2000)
    tail = runs.log_tail(tmp_path / "log")
    assert set(tail) == {"模", "型"}
    assert len(tail.encode()) <= 4096
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").write_text("begun anew\n")
    assert runs.log_tail(tmp_path / "log") == tail[4:] + "begun anew\n"


async def test_a_token_is_good_for_its_own_generation_alone(rig: Rig) -> None:
    await rig.executor.start(program("/bin/sleep", "600"))
    await rig.until(WorkerStarted)
    token = runs.read_token(rig.home, "t1", 1)
    assert token is not None
    assert rig.executor.authenticate("t1", 1, token)
    assert not rig.executor.authenticate("t1", 2, token)
    assert not rig.executor.authenticate("t1", 1, "x")
    assert not rig.executor.authenticate("../t1", 1, token)
    await rig.executor.stop("t1", 1, 5.0, save=False)
    await exited(rig)
    assert not rig.executor.authenticate("t1", 1, token)


async def test_forgotten_tasks_leave_nothing(rig: Rig) -> None:
    await rig.executor.start(program("/bin/true"))
    await exited(rig)
    rig.executor.forget(["t1"])
    assert list(rig.home.runs.iterdir()) == []


SAVING = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""


async def test_a_program_inside_a_shell_has_its_whole_grace_time(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVING)
    await rig.executor.start(program("/bin/sh", "-c", f"{PYTHON} {tmp_path}/train.py; echo end"))
    log = rig.home.run("t1", 1) / "log"
    await until(lambda: "up\n" in runs.log_tail(log))
    await rig.executor.stop("t1", 1, 60.0, save=True)
    outcome = (await exited(rig)).outcome
    assert (outcome.signal, outcome.log_tail) == (signal.SIGTERM, "up\nsaved\n")
