"""The shim by itself, as a process of its own: no daemon, no launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.disks import Disk, small_disk
from tests.processes import until
from zenos.core import shim
from zenos.core.output import Output
from zenos.core.watch import STOPPING

# Says in `calls`, beside the run directory, what it asks of the disk, in order.
SHIM = """
import json, os, sys
from zenos.core import shim
fsync, rename = os.fsync, os.rename
folder = os.path.dirname(json.loads(sys.argv[1])["directory"])
def say(*words):
    with open(folder + "/calls", "a") as file:
        print(*words, file=file)
def fsync_said(fd):
    path = os.readlink(f"/proc/self/fd/{fd}")
    say("fsync", path)
    if os.path.exists(folder + "/full"):
        raise OSError(28, "No space left on device")
    fsync(fd)
def rename_said(old, new):
    say("rename", new)
    rename(old, new)
os.fsync, os.rename = fsync_said, rename_said
shim.run(json.loads(sys.argv[1]), os.dup(1))
"""


@contextmanager
def running(directory: Path, *argv: str, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A shim with its program. Nothing is left of them after the block."""
    spec: dict[str, Any] = {"directory": str(directory), "argv": argv, "env": {}, **more}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SHIM, json.dumps(spec)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            until(lambda: not shim.session_members(process.pid))


def ended(directory: Path) -> dict[str, Any]:
    """How the worker ended; waits for it."""
    until(lambda: shim.read_record(str(directory), "exit"))
    record = shim.read_record(str(directory), "exit")
    assert record is not None
    return record


FLOOD = """
import os
for number in range(1 << 16):
    os.write(1, b"%08d%s\\n" % (number, b"x" * 1015))
"""


def test_a_log_keeps_its_size_however_fast_a_program_writes(tmp_path: Path) -> None:
    run, limit, most = tmp_path / "1", 1 << 20, 0
    logs = [run / "log", run / "log.1"]
    with running(run, sys.executable, "-c", FLOOD, log_bytes_max=limit) as process:
        while process.poll() is None:
            for log in logs:
                with suppress(FileNotFoundError):
                    most = max(most, log.stat().st_size)
    assert ended(run)["exit_code"] == 0
    assert 0 < most <= limit
    # What was kept is the end, without a gap; of its first line maybe a part.
    lines = (logs[1].read_bytes() + logs[0].read_bytes()).splitlines()[1:]
    assert [int(line[:8]) for line in lines] == list(range((1 << 16) - len(lines), 1 << 16))
    assert (len(lines) + 1) * 1024 > limit


def test_a_worker_over_its_memory_limit_ends_while_it_floods_its_log(tmp_path: Path) -> None:
    script = "import os\nheld = []\nwhile True: held.append(b'x' * 100_000); os.write(1, held[-1])"
    argv = (sys.executable, "-c", script)
    with running(tmp_path / "1", *argv, log_bytes_max=1 << 20, memory_limit=100_000_000):
        record = ended(tmp_path / "1")
    assert (record["oom"], record["signal"]) == (True, 9)


# None of these processes has as much as they have together.
FAMILY = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = b"x" * 40_000_000
        time.sleep(600)
os.wait()
"""


def test_what_its_children_hold_counts_against_a_workers_limit(tmp_path: Path) -> None:
    with running(tmp_path / "1", sys.executable, "-c", FAMILY, memory_limit=100_000_000):
        record = ended(tmp_path / "1")
    assert (record["oom"], record["signal"], record["limit"]) == (True, 9, 100_000_000)
    assert record["memory_peak"] > 100_000_000


def test_a_program_may_close_its_output_and_go_on(tmp_path: Path) -> None:
    script = f"echo last; exec >&- 2>&-; sleep 0.1; echo done > {tmp_path}/done; exit 4"
    with running(tmp_path / "1", "/bin/sh", "-c", script):
        assert ended(tmp_path / "1")["exit_code"] == 4
    assert (tmp_path / "1" / "log").read_text() == "last\n"
    assert (tmp_path / "done").exists()


def test_output_that_finds_no_room_is_counted_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    output = Output(str(tmp_path), 32)
    for line in (b"lost\n", b"a line that begins the log anew\n"):
        os.write(output.writer, line)
        output.take()
    output.leave()
    output.drain()
    os.close(output.end)
    log = (tmp_path / "log").read_text()
    assert "[cannot show 5 bytes of output: No space left on device]\na line that" in log


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with small_disk(request.node, tmp_path / "disk") as made:
        yield made


# Says 50,000 bytes once the file `full` is there, and ends when `go` is.
LOUD = """
echo start
until [ -e {0}/full ]; do sleep 0.01; done
head -c 50000 /dev/zero | tr '\\0' x
touch {0}/said
until [ -e {0}/go ]; do sleep 0.01; done
"""


@pytest.mark.parametrize("ends_first", [False, True])
def test_output_that_found_no_room_is_told_once_there_is_some(
    disk: Disk, tmp_path: Path, ends_first: bool
) -> None:
    run, log = disk.path / "1", disk.path / "1" / "log"
    with running(run, "/bin/sh", "-c", LOUD.format(tmp_path)):
        until(lambda: log.exists() and log.read_text() == "start\n")
        disk.fill()
        (tmp_path / "full").touch()
        until((tmp_path / "said").exists)
        if ends_first:
            (tmp_path / "go").touch()
            until((run / "exit.tmp").exists)  # it has ended, and this waits for room
        disk.clear()
        until(lambda: "cannot show" in log.read_text())
        (tmp_path / "go").touch()
        assert ended(run) == ended(run) | {"exit_code": 0, "lost_bytes": 0}
    before, lost, after = re.split(
        r"\n\[cannot show (\d+) bytes of output: .*\]\n", log.read_text()
    )
    assert before.startswith("start\n")
    assert int(lost) + (before + after).count("x") == 50_000


def test_where_the_log_never_has_room_the_record_tells_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    output = Output(str(tmp_path), 0)
    os.write(output.writer, b"lost\n")
    output.take()
    output.leave()
    shim._write_exit(str(tmp_path), {"exit_code": 0}, output)
    os.close(output.end)
    assert shim.read_record(str(tmp_path), "exit") == {"exit_code": 0, "lost_bytes": 5}


# A worker whose leader ends on SIGTERM at once while its child takes its time, as a shell does
# around a program. argv: a folder, what the child does on SIGTERM, 1 to leave the group.
SLOW = """
import os, signal, sys, time
from pathlib import Path
folder, doing, leave = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
if os.fork() == 0:
    if leave:
        os.setsid()
    def ask(*_):
        with (folder / "told").open("a") as file:
            file.write("x")
        if doing == "save":
            time.sleep(0.5)
            (folder / "saved").touch()
            os._exit(0)
    signal.signal(signal.SIGTERM, ask)
    (folder / "up").touch()
    while True:
        time.sleep(0.05)
while not (folder / "up").exists():
    time.sleep(0.005)
if doing == "own end":
    sys.exit(3)
time.sleep(600)
"""


def slow(folder: Path, doing: str, *, leave: bool = False) -> tuple[str, ...]:
    return (sys.executable, "-c", SLOW, str(folder), doing, str(int(leave)))


def worker(directory: Path) -> int:
    record = shim.read_record(str(directory), "started")
    assert record is not None
    return int(record["pid"])


def stop(run: Path) -> None:
    """As the daemon does it."""
    (run / STOPPING).touch()
    os.killpg(worker(run), signal.SIGTERM)


@pytest.mark.parametrize("leave", [False, True])
def test_what_a_stopped_worker_leaves_behind_may_save(tmp_path: Path, leave: bool) -> None:
    run = tmp_path / "1"
    with running(run, *slow(tmp_path, "save", leave=leave)):
        until((tmp_path / "up").exists)
        stop(run)
        assert ended(run)["signal"] == signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "told").read_text() == "x", "told twice"


def sentinels(pid: int, family: list[int], group: int) -> list[int]:
    """What a shim has put into its worker's group since `family` was all of it."""
    fresh = set(shim.descendants(pid)) - set(family)
    return [pid for pid in fresh if os.getpgid(pid) == group]


@pytest.mark.parametrize("leave", [False, True])
def test_its_time_ends_when_the_group_is_killed(tmp_path: Path, leave: bool) -> None:
    run = tmp_path / "1"
    with running(run, *slow(tmp_path, "stay", leave=leave)) as process:
        until((tmp_path / "up").exists)
        family = shim.descendants(process.pid)
        stop(run)
        until((tmp_path / "told").exists)
        # The leader has ended, and is there for the daemon to kill its group: so is a sentinel.
        until(lambda: sentinels(process.pid, family, worker(run)))
        assert shim.start_time(worker(run))
        os.killpg(worker(run), signal.SIGKILL)
        assert ended(run)["signal"] == signal.SIGTERM
        assert len(family) == 2
        assert not any(shim.start_time(pid) for pid in family)


def test_what_is_left_by_a_worker_that_others_end_is_killed_soon(tmp_path: Path) -> None:
    run = tmp_path / "1"
    with running(run, *slow(tmp_path, "stay")):
        until((tmp_path / "up").exists)
        os.killpg(worker(run), signal.SIGTERM)  # nobody will say when its time is over
        assert ended(run)["signal"] == signal.SIGTERM
    assert (tmp_path / "told").read_text().startswith("x")


def test_what_a_program_leaves_behind_is_asked_then_killed(tmp_path: Path) -> None:
    run = tmp_path / "1"
    with running(run, *slow(tmp_path, "own end")):
        assert ended(run)["exit_code"] == 3
    assert (tmp_path / "told").read_text() == "x"


def test_the_leader_alone_may_be_stopped(tmp_path: Path) -> None:
    """By a user who knows its pid; its children didn't get the signal, and end all the same."""
    run = tmp_path / "1"
    script = f"sleep 600 & echo > {tmp_path}/up; wait"
    with running(run, "/bin/sh", "-c", script):
        until((tmp_path / "up").exists)
        os.kill(worker(run), signal.SIGTERM)
        assert ended(run)["signal"] == signal.SIGTERM


def test_a_power_cut_never_makes_a_program_that_has_begun_look_as_if_it_had_not(
    tmp_path: Path,
) -> None:
    run, seen = tmp_path / "1", tmp_path / "seen"
    with running(run, "/bin/cp", str(tmp_path / "calls"), str(seen)):
        assert ended(run)["exit_code"] == 0
    calls = seen.read_text().splitlines()  # those before the program's first instruction
    assert calls.index(f"rename {run / 'started'}") < calls.index(f"fsync {run}")
    assert calls.index(f"rename {run}") < calls.index(f"fsync {tmp_path}")


def test_how_it_ended_is_on_the_disk_before_the_shim_has_gone(tmp_path: Path) -> None:
    run = tmp_path / "1"
    with running(run, "/bin/true") as process:
        assert process.wait(30) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    at = calls.index(f"rename {run / 'exit'}")
    assert calls[at - 1 : at + 2 : 2] == [f"fsync {run / 'exit.tmp'}", f"fsync {run}"]


def test_a_program_does_not_begin_when_the_disk_does_not_take_its_start(tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    run, ran = tmp_path / "1", tmp_path / "ran"
    with running(run, "/bin/touch", str(ran)) as process:
        assert process.wait(30) != 0
    assert (run / "lock").exists()
    assert not (run / "started").exists()
    assert not ran.exists()


NAMES = """
import json, os, sys
from pathlib import Path
from zenos.core import shim
def target(spec, directory):
    for pid in (os.getppid(), os.getpid()):
        print(Path(f"/proc/{pid}/comm").read_text(), end="", flush=True)
    return 0
shim.run(json.loads(sys.argv[1]), os.dup(1), target)
"""


def test_a_shim_and_a_worker_are_called_by_their_task(tmp_path: Path) -> None:
    directory = tmp_path / "t42" / "1"
    directory.parent.mkdir()
    spec = json.dumps({"directory": str(directory), "env": {}})
    subprocess.run(
        [sys.executable, "-P", "-c", NAMES, spec],
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=True,
    )
    assert (directory / "log").read_text() == "shim:t42\nzenos:t42\n"


def test_a_program_keeps_its_own_name(tmp_path: Path) -> None:
    with running(tmp_path / "1", "/bin/cat", "/proc/self/comm"):
        assert ended(tmp_path / "1")["exit_code"] == 0
    assert (tmp_path / "1" / "log").read_text() == "cat\n"
