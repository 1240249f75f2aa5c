"""Starting the daemon's process in the background, and waiting for its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from zenos.cli import interrupts, scope
from zenos.cli.errors import as_json
from zenos.cli.output import say
from zenos.client.address import DaemonFile, read_daemon_file
from zenos.core import limits
from zenos.core.errors import (
    DeadlineError,
    InvalidError,
    NoDaemonError,
    RefusedError,
    StorageError,
    UnavailableError,
    ZenosError,
)
from zenos.core.free import full
from zenos.core.holding import holder
from zenos.core.home import Home

if TYPE_CHECKING:
    from zenos.client import Client

START_TIMEOUT_S = 60.0
LOOK_S = 0.02
AWAY_LOOK_S = 0.5
PATIENCE_S = 2.0
OTHER_S = 3 * limits.SOCKET_LOOK_S
LOG_TAIL_BYTES = 64 * 1024
UNDO_S = 10.0


def running(home: Home) -> DaemonFile | None:
    """The daemon that runs on this home; None if none does."""
    daemon = read_daemon_file(home)
    return daemon if daemon is not None and daemon.is_alive else None


def arguments(home: Home, flags: Sequence[str]) -> list[str]:
    """The daemon's command. -P: a file called like a module in the working directory is no risk."""
    return [sys.executable, "-P", "-m", "zenos.daemon", "--home", str(home.root), *flags]


def replace_by_daemon(home: Home, flags: Sequence[str]) -> NoReturn:
    """Become the daemon, in the foreground. It tells errors as the command would have."""
    form = "json" if as_json.get() else "text"
    argv = arguments(home, [*flags, "--foreground", f"--errors={form}"])
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted


def start(home: Home, flags: Sequence[str]) -> DaemonFile:
    """Start it in a session of its own and wait until it answers.

    Raises what made it end, as it said itself; DeadlineError when it doesn't answer in time. Who is
    interrupted before it answers ends it again: nobody knows of it yet.
    """
    log, before = _open_log(home)
    pid = None
    try:
        command = [*scope.prefix(scope.enforcement_of(flags)), *arguments(home, flags)]
        with interrupts.held():  # from its beginning on it is known here
            pid = _spawn(command, log)
        return _answering(home, pid, before)
    except (KeyboardInterrupt, SystemExit):
        if pid is not None:
            _end_again(pid)
        raise
    finally:
        os.close(log)


def _answering(home: Home, pid: int, before: int) -> DaemonFile:
    """Wait until it does. before: the log's size when it began."""
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        code = _exit_code(pid)
        if code is not None:
            if (other := _other(home)) is not None:
                return other
            raise _why(home, before, code)
        daemon = running(home)
        if daemon is not None and daemon.pid == pid and _answers(daemon):
            return daemon
        time.sleep(LOOK_S)
    raise DeadlineError(
        f"cannot wait longer than {START_TIMEOUT_S:g} s for the daemon (process {pid}): "
        f"look into {home.daemon_log}"
    )


def _other(home: Home) -> DaemonFile | None:
    """Another daemon that has the home, as soon as it answers; None when it doesn't in time.

    It may have been faster, or have to write its `daemon.json` anew, which somebody has removed.
    """
    end = time.monotonic() + OTHER_S
    while True:
        daemon = running(home)
        if daemon is not None and _answers(daemon):
            return daemon
        if holder(home) is None or time.monotonic() > end:
            return None
        time.sleep(LOOK_S)


def wait_found(home: Home) -> None:
    """Until a daemon that has the home can be found, for a while; at once where none has it."""
    end = time.monotonic() + OTHER_S
    while running(home) is None and holder(home) is not None and time.monotonic() < end:
        time.sleep(LOOK_S)


def _end_again(pid: int) -> None:
    """Undo what has begun to start; work of an earlier daemon that it found runs on."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + UNDO_S
    while _exit_code(pid) is None:
        if time.monotonic() > end:
            say(f"the daemon that was starting (process {pid}) is still ending")
            return
        time.sleep(LOOK_S)
    say("the daemon that was starting was ended")


def _open_log(home: Home) -> tuple[int, int]:
    """The log, for what the daemon prints before and beside its own logging; its size so far."""
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(home.daemon_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot use the home {home.root}: {error.strerror}; choose another with ZENOS_HOME"
        ) from None
    return fd, os.fstat(fd).st_size


def _spawn(argv: list[str], log: int) -> int:
    """Its own session, no terminal, no descriptor of ours but the log.

    Those that whoever called us let us inherit (a lock, a pipe) would be held for ever otherwise.
    """
    descriptors = Path("/proc/self/fd")
    for entry in list(descriptors.iterdir()) if descriptors.is_dir() else []:
        if int(entry.name) > 2:
            with suppress(OSError):  # the listing's own is closed by now
                os.set_inheritable(int(entry.name), False)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    ]
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setsid=True)


def _exit_code(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 1
    return None if found == 0 else os.waitstatus_to_exitcode(status)


def _why(home: Home, before: int, code: int) -> ZenosError:
    """What the daemon said before it ended: its last line that begins with "cannot"."""
    try:
        with home.daemon_log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(before, size), size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    except OSError:
        lines = []
    # A line without an end is one for which the disk had no room.
    said = [line[:-1] for line in lines if line.startswith("cannot ") and line.endswith("\n")]
    if not said and (why := full(home.root)):
        return StorageError(f"cannot start the daemon with the home {home.root}: {why}")
    if not said:
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return UnavailableError(
            f"cannot start the daemon: it ended with {ended}; look into {home.daemon_log}"
        )
    # The daemon's exit codes are ours (errors.py).
    kinds: dict[int, type[ZenosError]] = {2: InvalidError, 4: RefusedError}
    return kinds.get(code, StorageError)(said[-1])


def _answers(daemon: DaemonFile) -> bool:
    import httpx

    from zenos.client.transport import without_authorities

    try:
        with httpx.Client(trust_env=False, timeout=5, verify=without_authorities()) as http:
            return http.get(f"{daemon.url}/health").is_success
    except httpx.HTTPError:
        return False


def wait_down(client: Client, timeout_s: float | None) -> None:
    """Until the daemon that was told to go down has ended."""
    if client.address.daemon is not None:
        wait_gone(client.address.daemon, timeout_s)
        return
    # On another machine its process cannot be seen, only that it no longer answers.
    end = _end(timeout_s)
    while True:
        try:
            client.health()
        except NoDaemonError:
            return
        _check(end, client.address.url)
        time.sleep(AWAY_LOOK_S)


def wait_gone(daemon: DaemonFile, timeout_s: float | None) -> None:
    """Until that very process has ended; DeadlineError when it takes longer."""
    end, started, said = _end(timeout_s), time.monotonic(), False
    while daemon.is_alive:
        _check(end, f"process {daemon.pid}")
        if not said and time.monotonic() - started > PATIENCE_S:
            said = True
            say("waiting for running work; Ctrl-C goes away, the daemon ends by itself")
        time.sleep(LOOK_S)


class _Down(msgspec.Struct):
    """What this module needs of `down.json`."""

    pid: int
    unsaved: list[str] = []
    failed: list[str] = []


def unsaved(home: Home, daemon: DaemonFile | None) -> dict[str, str]:
    """Tasks that were not saved as this daemon went down, and why not."""
    try:
        down = msgspec.json.decode(home.down.read_bytes(), type=_Down)
    except (OSError, msgspec.DecodeError):
        return {}
    if daemon is None or down.pid != daemon.pid:
        return {}
    return {
        task: f"was not saved: it could not write its state ('zenos logs {task}' says why)"
        if task in down.failed
        else "was not saved in time (suspend_grace_s)"
        for task in down.unsaved
    }


def _end(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _check(end: float | None, which: str) -> None:
    if end is not None and time.monotonic() > end:
        raise DeadlineError(
            f"cannot wait longer: the daemon ({which}) is still saving work; it ends by itself"
        )
