"""The shim: the parent of every worker. Standard library only, since the launcher has no more.

It is forked by the launcher for a program, and by the zygote for torch work; see forking.py. It
outlives the daemon and both of them, and writes down how its worker ended; so no task's status
depends on them. In the run directory it leaves, in this order:

    lock      held (flock) while the shim lives
    shim      its own pid, start time and boot id
    started   the worker's; on the disk before the worker does anything
    exit      how the worker ended, fsynced

For the fields of its spec see `RunSpec` in zenos/workers/runs.py. On a descriptor it writes a line
for each thing that happens, for a daemon that wants to know at once; nobody need listen.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from zenos.core.failpoints import passing
from zenos.core.memory import Limits
from zenos.core.output import Output
from zenos.core.processes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    identity,
    name_process,
    prctl,
)
from zenos.core.processes import boot_id as boot_id
from zenos.core.processes import descendants as descendants
from zenos.core.processes import session_members as session_members
from zenos.core.processes import start_time as start_time
from zenos.core.watch import Watch

Target = Callable[[dict[str, Any], str], int]

NAME_SHOWN_MAX = 200
DISK_FULL_S = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


# -- files


def write_record(directory: str, name: str, record: dict[str, Any], *, sync: bool) -> None:
    """Write a JSON file beside, then rename it into place."""
    path = os.path.join(directory, name)
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = json.dumps(record).encode()
        while data:  # a disk that is nearly full takes a part
            data = data[os.write(fd, data) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if sync:
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Have a directory's entries outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_started(directory: str, worker: int) -> None:
    """Write `started` so that not even a power cut makes the generation look as if it had not run.

    A run directory that is gone, or has no `started`, says that nothing has run, and the task is
    started again. OSError when the disk doesn't take it; then it isn't there.
    """
    write_record(directory, "started", identity(worker), sync=False)
    try:
        sync_directory(directory)
        sync_directory(os.path.dirname(directory))  # the claim's rename
    except OSError:
        os.unlink(os.path.join(directory, "started"))
        raise


def read_record(directory: str, name: str) -> dict[str, Any] | None:
    """A JSON object that was written there; None when there is none, or none that can be read."""
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def claim(directory: str) -> int | None:
    """Make the run directory, locked, in one step; the lock's descriptor, or None if it is taken.

    It is filled beside and renamed into place. A rename onto a directory that isn't empty fails:
    of two shims for one generation, one wins.
    """
    temporary = f"{directory}.tmp-{os.getpid()}"
    os.mkdir(temporary, 0o700)
    fd = os.open(os.path.join(temporary, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    who = {**identity(os.getpid()), "lock": os.fstat(fd).st_ino}  # in a copy it is another one
    write_record(temporary, "shim", who, sync=False)
    try:
        os.rename(temporary, directory)
    except OSError as error:
        for name in os.listdir(temporary):
            os.unlink(os.path.join(temporary, name))
        os.rmdir(temporary)
        os.close(fd)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return None
        raise
    return fd


# -- the life of a worker


def run(spec: dict[str, Any], notify: int, target: Target | None = None) -> None:
    """Claim, fork the worker, wait for its end, write it down. Returns when all is over."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    passing("shim.claim.before")
    directory = spec["directory"]
    lock = claim(directory)
    if lock is None:
        return
    passing("shim.claim.after")
    name_process(f"shim:{_task(directory)}")
    _say(notify, f"claimed {os.getpid()}")
    # Children that a worker leaves behind become ours, and end with it.
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    limits = Limits(spec)
    output = Output(directory, int(spec.get("log_bytes_max") or 0))
    go_read, go_write = os.pipe()
    set_read, set_write = os.pipe()
    worker = os.fork()
    if worker == 0:
        for fd in (go_write, set_read, lock, notify):
            os.close(fd)
        _worker(spec, output, (set_write, go_read), limits, target)
    output.leave()
    os.close(go_read)
    os.close(set_write)
    passing("shim.fork.after")
    # Once it leads its group, under its limits, it can be stopped: so `started` comes after that.
    os.read(set_read, 1)
    os.close(set_read)
    write_started(directory, worker)
    passing("shim.started.after")
    _say(notify, f"started {worker}")
    try:
        os.write(go_write, b"g")
    except BrokenPipeError:
        _say(notify, "stopped before it began")
    os.close(go_write)
    watch = Watch(worker, output, limits)
    watch.until_end()
    passing("shim.exit.before")
    watch.let_rest_end(directory)
    code, usage = watch.end_rest()
    output.drain()
    record = {
        "exit_code": os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else None,
        "signal": os.WTERMSIG(code) if os.WIFSIGNALED(code) else None,
        "memory_peak": limits.most(usage.ru_maxrss * 1024),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "oom": limits.exceeded,
        "limit": limits.limit,
    }
    _write_exit(directory, record, output)
    passing("shim.exit.after")
    limits.remove()


def _write_exit(directory: str, record: dict[str, Any], output: Output) -> None:
    """Write down how it ended: on a full disk as soon as there is space, else it would be lost.

    The log first says what of the output found no room; where even that finds none, the record does
    (`lost_bytes`).
    """
    while True:
        lost_bytes = output.tell_lost()
        try:
            write_record(directory, "exit", record | {"lost_bytes": lost_bytes}, sync=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            time.sleep(DISK_FULL_S)
        else:
            return


def _task(directory: str) -> str:
    """Whose run directory it is: `runs/TASK/GENERATION`."""
    return os.path.basename(os.path.dirname(directory))


def _say(notify: int, line: str) -> None:
    try:
        os.write(notify, f"{line}\n".encode())
    except OSError:
        return  # the daemon has gone; the next one reads the files


def _worker(
    spec: dict[str, Any],
    output: Output,
    pipes: tuple[int, int],
    limits: Limits,
    target: Target | None,
) -> None:
    """In the worker's process: set up, wait for the word, then become the program or work."""
    code = 126
    ready, go = pipes
    directory = spec["directory"]
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        limits.enter()
        _limit_open_files(int(spec.get("open_files") or 0))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        output.enter()
        os.write(ready, b"r")
        os.close(ready)
        # Nothing of the work is done before `started` is written; nothing at all if the shim died.
        word = os.read(go, 1)
        os.close(go)
        if word == b"g":
            name_process(f"zenos:{_task(directory)}")
            code = target(spec, directory) if target is not None else _execute(spec, directory)
    except BaseException as error:  # noqa: BLE001 - a fork must not go on in its parent's code
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)


def _execute(spec: dict[str, Any], directory: str) -> int:
    """Become the program; 127 when that isn't possible, with the reason in error.json."""
    argv = [os.fsencode(argument) for argument in spec["argv"]]
    environment = {os.fsencode(k): os.fsencode(v) for k, v in spec["env"].items()}
    program = spec["argv"][0]
    doing = f"execute {program[:NAME_SHOWN_MAX]!r}"
    try:
        if spec.get("cwd"):
            doing = f"use the working directory {spec['cwd'][:NAME_SHOWN_MAX]!r}"
            os.chdir(spec["cwd"])
            doing = f"execute {program[:NAME_SHOWN_MAX]!r}"
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        message = f"cannot {doing}: {error.strerror}"
        write_record(directory, "error.json", {"code": "worker", "message": message}, sync=False)
    return 127


def _limit_open_files(count: int) -> None:
    """The soft limit that the daemon was started with, not the one it gave itself."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if count > 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
