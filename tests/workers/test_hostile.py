"""Whatever a worker leaves, and whatever its fork server does, something is heard of each task."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.processes import until
from tests.workers.conftest import Rig, program
from zenos.core import failpoints, shim
from zenos.core.events import StartFailed, WorkerExited, WorkerLost, WorkerStarted
from zenos.core.home import Home
from zenos.core.processes import identity
from zenos.workers import fork_server, runs


@pytest.mark.parametrize(
    "left",
    [
        """printf '{"text": "\\\\ud83d"}' > result.json""",  # half a character
        "head -c 100000 /dev/zero | tr '\\0' '[' > result.json",
        "mkfifo result.json",
        "ln -s /dev/zero result.json",
        "mkdir result.json",
        "head -c 3000000 /dev/zero > result.json",
        "echo '[1]' > result.json",
        "mkfifo error.json; rm log; mkfifo log",
        """echo '{"message": "\\\\udc80", "code": 7}' > error.json""",
        """echo '{"memory_peak": "x"}' > error.json""",
    ],
)
async def test_whatever_a_worker_leaves_its_end_is_told(rig: Rig, left: str) -> None:
    directory = rig.home.run("t1", 1)
    await rig.executor.start(program("/bin/sh", "-c", f"cd '{directory}' && {left}; exit 3"))
    (event,) = await rig.until(WorkerExited)
    assert isinstance(event, WorkerExited)
    assert event.outcome.exit_code == 3
    assert event.outcome.result is None
    assert event.outcome.error is None


@pytest.mark.parametrize(("lost_bytes", "told"), [(7, True), (0, False), ("x", False)])
async def test_output_of_which_the_log_has_no_room_to_tell_is_told_with_the_end(
    rig: Rig, lost_bytes: object, told: bool
) -> None:
    directory = rig.home.run("t1", 1)
    directory.mkdir(parents=True)
    (directory / "log").write_text("start\n")
    (directory / "exit").write_text(json.dumps({"exit_code": 0, "lost_bytes": lost_bytes}))
    await rig.executor.recover([program("/bin/true")], next_task=2)
    (event,) = await rig.until(WorkerExited)
    assert isinstance(event, WorkerExited)
    notice = "\n[cannot show 7 bytes of output: the disk was full]\n"
    assert event.outcome.log_tail == "start\n" + (notice if told else "")


async def test_what_a_result_may_be(rig: Rig) -> None:
    path = rig.home.run("t1", 1) / "result.json"
    text = json.dumps({"text": "😀", "n": 2**70, "deep": [[1.5]]})
    await rig.executor.start(program("/bin/sh", "-c", f"printf '%s' '{text}' > '{path}'"))
    (event,) = await rig.until(WorkerExited)
    assert isinstance(event, WorkerExited)
    assert event.outcome.result == json.loads(text)


async def test_variables_that_are_no_text_are_passed_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_NAME", os.fsdecode(b"m\xfcller"))
    await rig.executor.start(program("/bin/sh", "-c", 'printf %s "$LC_NAME"'))
    await rig.until(WorkerExited)
    assert (rig.home.run("t1", 1) / "log").read_bytes() == b"m\xfcller"


async def test_a_gang_over_several_machines_is_not_started_in_part(rig: Rig) -> None:
    task = program("/bin/true")
    assert task.allocation is not None
    there = replace(task.allocation, node="another")
    await rig.executor.start(replace(task, allocation=replace(task.allocation, others=(there,))))
    (event,) = await rig.until(StartFailed)
    assert isinstance(event, StartFailed)
    assert event.reason.startswith("cannot run t1 on 2 nodes")
    assert not (rig.home.run("t1", 1) / "log").exists()


async def stopped_launcher(rig: Rig) -> int:
    """The launcher, ready, and stopped like one that hangs."""
    await rig.launcher.start()
    async with asyncio.timeout(30):
        while not rig.launcher.ready:  # noqa: ASYNC110 - it has no event for others
            await asyncio.sleep(0.01)
    pid = rig.launcher.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


async def test_what_a_hanging_launcher_holds_can_be_cancelled_and_never_runs(
    rig: Rig, tmp_path: Path
) -> None:
    launcher = await stopped_launcher(rig)
    ran = tmp_path / "ran"
    await rig.executor.start(program("/bin/touch", str(ran)))
    await rig.executor.stop("t1", 1, 0.05, save=False)
    (event,) = await rig.until(StartFailed)
    assert isinstance(event, StartFailed)
    os.kill(launcher, signal.SIGCONT)
    await rig.executor.start(program("/bin/true", number=2))
    await rig.until(WorkerExited)  # behind the late one
    assert not ran.exists()


async def test_more_starts_than_the_launcher_s_queue_holds_all_come_to_run(rig: Rig) -> None:
    launcher = await stopped_launcher(rig)
    count = 320
    tasks = [program("/bin/true", number=number) for number in range(1, count + 1)]
    starting = [asyncio.create_task(rig.executor.start(task)) for task in tasks]
    done, _ = await asyncio.wait(starting, timeout=2)
    assert len(done) < count  # the queue was full
    os.kill(launcher, signal.SIGCONT)
    await asyncio.gather(*starting)
    await rig.until(WorkerExited, count)
    assert not [event for event in rig.events if isinstance(event, StartFailed)]


async def test_a_start_after_the_launcher_was_closed_fails_at_once(rig: Rig) -> None:
    await rig.launcher.close()
    await asyncio.wait_for(rig.executor.start(program("/bin/true")), 10)
    assert [type(event) for event in rig.events] == [StartFailed]


async def test_what_a_launcher_that_dies_was_to_start_is_started_by_the_next(rig: Rig) -> None:
    launcher = await stopped_launcher(rig)
    await rig.executor.start(program("/bin/true", number=1))  # lies in its queue
    os.kill(launcher, signal.SIGKILL)
    await rig.executor.start(program("/bin/true", number=2))  # it is gone, and nobody knows yet
    for event in await rig.until(WorkerExited, 2):
        assert isinstance(event, WorkerExited)
        assert (event.generation, event.outcome.exit_code) == (1, 0)
    assert not [event for event in rig.events if isinstance(event, StartFailed)]


async def test_who_kills_every_launcher_is_given_up(
    rigs: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "launcher.fork.before=kill@1")
    monkeypatch.setattr(fork_server, "RESTART_S", 0.0)
    rig = rigs()
    await rig.executor.start(program("/bin/true"))
    (event,) = await rig.until(StartFailed)
    assert isinstance(event, StartFailed)
    assert event.reason == "its shim ended before it began"
    assert not rig.home.run("t1", 1).exists()


@pytest.mark.parametrize(
    ("label", "event"), [("shim.claim.before", StartFailed), ("shim.started.after", WorkerLost)]
)
async def test_why_a_shim_failed_is_told(
    rigs: Callable[..., Rig],
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    event: type[StartFailed] | type[WorkerLost],
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"{label}=enospc@1")
    rig = rigs()
    await rig.executor.start(program("/bin/true"))
    (told,) = await rig.until(event)
    assert isinstance(told, StartFailed | WorkerLost)
    assert told.reason.startswith("its shim failed: ")
    assert told.reason.endswith("No space left on device")


async def test_strangers_in_a_session_of_the_same_number_are_left_alone(rig: Rig) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(argv, start_new_session=True) as stranger:
        try:
            directory = rig.home.run("t1", 1)
            directory.mkdir(parents=True)
            (directory / "lock").touch()
            for name, pid in (("shim", stranger.pid), ("started", 2**22 + 5)):
                record = {"pid": pid, "start_time": 1, "boot_id": shim.boot_id()}
                (directory / name).write_text(json.dumps(record))
            fresh = await rig.again(program("/bin/true"))
            await fresh.until(WorkerLost)
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"boot_id": "another"}, False),
        ({"start_time": 1}, False),
        ({"pid": "7"}, False),
    ],
)
def test_a_process_is_known_by_its_number_its_start_and_its_boot(
    tmp_path: Path, changes: dict[str, object], same: bool
) -> None:
    """Numbers are given anew: by the next boot, and after enough other processes."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            record = {**identity(process.pid), **changes}
            (tmp_path / "shim").write_text(json.dumps(record))
            assert runs.process(tmp_path, "shim") == (process.pid if same else None)
        finally:
            process.kill()


def test_a_spec_is_written_anew_and_keeps_its_token(tmp_path: Path) -> None:
    home, task = Home(tmp_path), program("/bin/true")
    path = runs.write_spec(home, task, runs.make_spec(home, task, ["/old/group"]))
    token = runs.read_token(home, "t1", 1)
    runs.write_spec(home, task, runs.make_spec(home, task, ["/new/group"]))
    assert json.loads(path.read_bytes())["cgroups"] == ["/new/group"]
    assert runs.read_token(home, "t1", 1) == token


async def test_one_task_that_cannot_be_looked_at_keeps_no_other_down(rig: Rig) -> None:
    runs_of_first = rig.home.runs / "t1"
    runs_of_first.mkdir(parents=True)
    (runs_of_first / "1").symlink_to(runs_of_first / "1")  # a loop
    fresh = await rig.again(program("/bin/true"), program("/bin/true", number=2))
    await fresh.until(WorkerExited)
    started = [event for event in fresh.events if isinstance(event, WorkerStarted)]
    assert [event.task for event in started] == ["t2"]


@pytest.mark.parametrize("while_down", [False, True])
async def test_without_groups_what_has_left_the_session_ends_with_a_killed_shim(
    rigs: Callable[..., Rig], tmp_path: Path, while_down: bool
) -> None:
    """It would run on beside its own restart, and outside the task's limits."""
    rig = rigs(enforcement="watchdog")
    left = f"setsid sh -c 'sleep 600 & echo $! $$ > {tmp_path}/pids; wait' & wait"
    task = program("/bin/sh", "-c", left)
    await rig.executor.start(task)
    await rig.until(WorkerStarted)
    await asyncio.to_thread(
        until, lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text()
    )
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    pid = runs.process(rig.home.run("t1", 1), "shim")
    assert pid is not None
    stranger = subprocess.Popen(  # of another generation
        ["sleep", "600"],
        env={**os.environ, "ZENOS_TASK": "t1", "ZENOS_TASK_HOME": str(rig.home.root)}
        | {"ZENOS_GENERATION": "2"},
    )
    try:
        if while_down:
            await rig.executor.close()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: not shim.start_time(pid))
        if while_down:
            rig = await rig.again(task)
        await rig.until(WorkerLost)
        await asyncio.to_thread(until, lambda: not any(map(shim.start_time, pids)))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
