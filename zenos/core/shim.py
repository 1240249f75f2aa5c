"""The shim: the parent of every worker. Standard library only, since the launcher has no more.

It is forked by the launcher for a program, and by the zygote for torch work; see forking.py. It
outlives the daemon and both of them, and writes down how its worker ended; so no task's status
depends on them. In the run directory it leaves, in this order:

    lock      held (flock) while the shim lives
    shim      its own pid, start time and boot id
    started   the worker's
    exit      how the worker ended, fsynced

For the fields of its spec see `RunSpec` in zenos/workers/runs.py. On a descriptor it writes a line
for each thing that happens, for a daemon that wants to know at once; nobody need listen.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from zenos.core.failpoints import passing
from zenos.core.output import LITTLE_BYTES, PAUSE_S, Output

Target = Callable[[dict[str, Any], str], int]

SAMPLE_S = 0.2
NAME_SHOWN_MAX = 200
DISK_FULL_S = 0.5
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


# -- processes


def boot_id() -> str:
    """This boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state first. Empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started; 0 when it is gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def session_members(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if len(fields) > 3 and int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(name))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if len(fields) > 1 and fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of processes together; pages that they share count for each."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * page
        except (OSError, IndexError):
            continue
    return total


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same pid."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


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
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


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
    write_record(temporary, "shim", identity(os.getpid()), sync=False)
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


# -- limits


class Limits:
    """The worker's memory limit, by cgroup where the spec names one, else by watching."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.limit = int(spec.get("memory_limit") or 0)
        self.groups: list[str] = list(spec.get("cgroups") or [])
        self.peak = 0
        self.exceeded = False
        self._kills = self._oom_kills()

    def enter(self) -> None:
        """Put this process (and all its children to come) under the limits."""
        for group in self.groups:
            with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

    def sample(self) -> bool:
        """Look; whether the limit has been exceeded, so that the worker must end."""
        if self.groups and self._memory_group():
            self.exceeded = self.exceeded or self._oom_kills() > self._kills
            self.peak = max(self.peak, self._group_peak())
        else:
            used = resident_bytes(descendants(os.getpid()))
            self.peak = max(self.peak, used)
            self.exceeded = self.exceeded or bool(self.limit and used > self.limit)
        return self.exceeded

    def kill_members(self) -> None:
        """End what is in the groups: also what has left the worker's process group and session."""
        for group in self.groups:
            for pid in self._members(group):
                _kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove the groups, which are empty by now; the daemon removes what is left."""
        for group in self.groups:
            for _ in range(20):
                try:
                    os.rmdir(group)
                except FileNotFoundError:
                    break
                except OSError:
                    self.kill_members()
                    time.sleep(0.01)
                else:
                    break

    def _memory_group(self) -> str | None:
        for group in self.groups:
            for name in ("memory.max", "memory.limit_in_bytes"):
                if os.path.exists(os.path.join(group, name)):
                    return group
        return None

    def _members(self, group: str) -> list[int]:
        try:
            with open(os.path.join(group, "cgroup.procs"), encoding="ascii") as file:
                return [int(line) for line in file]
        except OSError:
            return []

    def _group_peak(self) -> int:
        group = self._memory_group()
        for name in ("memory.peak", "memory.max_usage_in_bytes", "memory.current"):
            try:
                with open(os.path.join(group or "", name), encoding="ascii") as file:
                    return int(file.read())
            except (OSError, ValueError):
                continue
        return 0

    def _oom_kills(self) -> int:
        """How often the kernel has killed in the group: memory.events (v2), memory.oom_control."""
        group = self._memory_group()
        for name in ("memory.events", "memory.oom_control"):
            try:
                with open(os.path.join(group or "", name), encoding="ascii") as file:
                    for line in file:
                        key, _, value = line.partition(" ")
                        if key == "oom_kill":
                            return int(value)
            except (OSError, ValueError):
                continue
        return 0


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


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
    _say(notify, f"claimed {os.getpid()}")
    # Children that a worker leaves behind become ours, and end with it.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
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
    write_record(directory, "started", identity(worker), sync=False)
    passing("shim.started.after")
    _say(notify, f"started {worker}")
    try:
        os.write(go_write, b"g")
    except BrokenPipeError:
        _say(notify, "stopped before it began")
    os.close(go_write)
    code, usage = _wait(worker, output, limits)
    passing("shim.exit.before")
    _end_rest(limits)
    output.drain()
    record = {
        "exit_code": os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else None,
        "signal": os.WTERMSIG(code) if os.WIFSIGNALED(code) else None,
        "memory_peak": max(limits.peak, usage.ru_maxrss * 1024),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "oom": limits.exceeded,
        "limit": limits.limit,
    }
    _write_exit(directory, record)
    passing("shim.exit.after")
    limits.remove()


def _write_exit(directory: str, record: dict[str, Any]) -> None:
    """Write down how it ended: on a full disk as soon as there is space, else it would be lost."""
    while True:
        try:
            write_record(directory, "exit", record, sync=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            time.sleep(DISK_FULL_S)
        else:
            return


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
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
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


class Watch:
    """What the shim waits for: the worker's end, its output, the next look at its memory."""

    def __init__(self, worker: int, output: Output, limits: Limits) -> None:
        self._worker = worker
        self._output: Output | None = output
        self._limits = limits
        self._pidfd = os.pidfd_open(worker)
        self._wait_s = 0.01
        self._sample_at = time.monotonic() + self._wait_s
        self._listen_at = 0.0

    def until_end(self) -> None:
        """Return when the worker has ended; it is a zombie then."""
        while not self.turn():
            continue
        os.close(self._pidfd)

    def turn(self) -> bool:
        """Wait for one of them and do what is due; whether the worker has ended."""
        now = time.monotonic()
        if now >= self._sample_at:
            self._sample()
            now = time.monotonic()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        until = self._sample_at
        if self._output is not None:
            if now >= self._listen_at:
                poll.register(self._output.end, select.POLLIN)
            else:
                until = min(until, self._listen_at)
        ready = [fd for fd, _ in poll.poll(max(0.0, until - now) * 1000)]
        if self._output is not None and self._output.end in ready:
            moved = self._output.take()
            if moved is None:
                self._output = None  # nobody holds the other end: a program that closed its output
            elif moved < LITTLE_BYTES:
                self._listen_at = time.monotonic() + PAUSE_S
        return self._pidfd in ready

    def _sample(self) -> None:
        if self._limits.sample():
            _kill(-self._worker, signal.SIGKILL)
            self._limits.kill_members()
        self._wait_s = min(2 * self._wait_s, SAMPLE_S)
        self._sample_at = time.monotonic() + self._wait_s


def _wait(worker: int, output: Output, limits: Limits) -> tuple[int, Any]:
    """Wait for the worker's end, sampling memory and passing on its output meanwhile."""
    Watch(worker, output, limits).until_end()
    limits.sample()
    _, code, usage = os.wait4(worker, 0)
    _kill(-worker, signal.SIGKILL)  # what is left of its process group
    return code, usage


def _end_rest(limits: Limits) -> None:
    """End everything that the worker has left behind, and reap it."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return  # orphans become our children, so nobody is left
        for pid in descendants(os.getpid()):
            _kill(pid, signal.SIGKILL)
        limits.kill_members()
        time.sleep(0.002)
