"""Where calls run: a program finds its host, or has one started, and gets a socket to it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from zenos.bus import address, operations
from zenos.bus.bodies import Encoded
from zenos.bus.operations import Sending
from zenos.bus.sync import Bus
from zenos.calls import wire
from zenos.core import limits
from zenos.core.errors import (
    DeadlineError,
    NoDaemonError,
    StorageError,
    UnavailableError,
    WorkerError,
    from_code,
)
from zenos.core.home import Home
from zenos.core.names import calls_topic
from zenos.core.resources import parse_share
from zenos.core.specs import CallSpec
from zenos.core.task import State, Task, TaskSpec
from zenos.threads.allocation import lanes_for

if TYPE_CHECKING:
    from zenos.client import Client

LOCK_S: Final = 10.0  # for another program that looks for its host, too
LOCK_LOOK_S: Final = 0.005  # between two looks whether it is done
LOOK_S: Final = 2.0  # between two looks at a host that doesn't answer
GREET_S: Final = 60.0
PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
HOLDING: Final = "queued,starting,running,pausing,paused,suspending"


class Wanted(msgspec.Struct, frozen=True):
    """What a program wants of a host, as people write it: see TaskOptions."""

    cpu: float
    gpu: float
    memory: str | int | None
    lanes: int | None
    priority: int | str | None
    keep_alive_s: float

    @property
    def lanes_or_default(self) -> int:
        """So many as were asked for, else one for each core."""
        if self.lanes is not None:
            return self.lanes
        return lanes_for(parse_share(self.cpu, "cpu", limits.CPU_MILLI_MAX) / 1000)

    def spec(self) -> TaskSpec:
        """The host, as a task. It is shared by who has the same interpreter, path and folder.

        InvalidError for what no host could be.
        """
        from zenos.client import build

        given = {"cpu": self.cpu, "gpu": self.gpu, "memory": self.memory, "priority": self.priority}
        options = build.options({"name": "calls", **given})
        fields = {
            "lanes": self.lanes_or_default,
            "keep_alive_s": self.keep_alive_s,
            "python": sys.executable,
            "cwd": str(Path.cwd()),
        }
        work = build.convert(fields, CallSpec)
        work.check()
        here = [wire.BUILD, sys.executable, paths(), str(Path.cwd())]
        said = json.dumps([here, msgspec.to_builtins(self), work.lanes]).encode()
        spec = options.task(replace(work, key=hashlib.sha256(said).hexdigest()[:24]))
        spec.check()
        return spec


def paths() -> list[str]:
    """This program's sys.path, as it means the same elsewhere."""
    return [path or str(Path.cwd()) for path in sys.path]


def home_of() -> Home:
    """The home whose daemon is used. NoDaemonError where none runs on it."""
    from zenos.client.address import find

    home = Home.default()
    find(home=home.root)
    return home


def come_in(
    home: Home, spec: TaskSpec, caller: bytes, gave_up: Callable[[], bool]
) -> socket.socket:
    """A connection to the host, which is started if there is none.

    Waits while the host waits for room. WorkerError when it can't be started, UnfittableError, what
    it says against this program, UnavailableError when `gave_up`, or when another program that
    looks for its host doesn't come to an end.
    """
    while not gave_up():
        try:
            link = _reach(home, spec, gave_up)
        except OSError as error:
            if error.errno not in PASSING:
                raise
            raise UnavailableError(f"cannot reach the host of calls: {error.strerror}") from error
        if link is None:
            continue
        try:
            _greet(link, caller)
        except (OSError, EOFError):
            link.close()
            continue
        except BaseException:
            link.close()
            raise
        return link
    raise UnavailableError("cannot reach the host of calls: the program ends")


def _reach(home: Home, spec: TaskSpec, gave_up: Callable[[], bool]) -> socket.socket | None:
    """A connection to the host that there is; None when that has ended by now."""
    task = _host(home, spec, gave_up)
    link = _ask(home, task, gave_up)
    if link is None:
        ended = _look(home, task)
        if ended.is_ended and ended.state is not State.SUCCEEDED:
            raise WorkerError(_why(ended))
    return link


def _why(task: Task) -> str:
    said = task.outcome.describe() if task.outcome is not None else str(task.state)
    return f"cannot run calls: their host {task.id} has ended ({said}); see 'zenos logs {task.id}'"


@contextmanager
def _client(home: Home) -> Iterator[Client]:
    """The HTTP client. It takes long to import, and only who looks for a host needs it."""
    from zenos.client import connect

    with connect(home=home.root, retry_s=1.0) as client:
        yield client


def _host(home: Home, spec: TaskSpec, gave_up: Callable[[], bool]) -> str:
    """The id of the task. Of several programs that look at once, one submits it."""
    assert isinstance(spec.work, CallSpec)  # noqa: S101 - it was made here
    home.calls.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(home.calls / "finding.lock", gave_up), _client(home) as client:
        for view in client.tasks(kind="call", state=HOLDING):
            task = view.task
            work = task.spec.work
            if isinstance(work, CallSpec) and work.key == spec.work.key and not task.stopping:
                return task.id
        return client.submit(spec).id


@contextmanager
def _alone(path: Path, gave_up: Callable[[], bool]) -> Iterator[None]:
    """Have the lock. UnavailableError when one other program keeps it for LOCK_S, as one that was
    stopped does, or when `gave_up`. Who has it leaves the time in the file, so that those who wait
    see that others have their turns."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
    try:
        had, end = os.fstat(lock).st_mtime_ns, time.monotonic() + LOCK_S
        while not _taken(lock, path):
            if gave_up():
                raise UnavailableError("cannot reach the host of calls: the program ends")
            if had != (has := os.fstat(lock).st_mtime_ns):
                had, end = has, time.monotonic() + LOCK_S
            if time.monotonic() > end:
                raise UnavailableError(
                    f"cannot look for a host of calls: another program has had {path} locked for "
                    f"{LOCK_S:g} s; end it, or have it go on if it was stopped ('fuser {path}' "
                    "tells which)"
                )
            time.sleep(LOCK_LOOK_S)
        with suppress(OSError):
            os.utime(lock)
        yield
    finally:
        os.close(lock)


def _taken(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # no locks left, or a file system that has none
        raise StorageError(f"cannot lock {path}: {error.strerror}") from error
    return True


def _look(home: Home, task: str) -> Task:
    with _client(home) as client:
        return client.task(task).task


def _ask(home: Home, task: str, gave_up: Callable[[], bool]) -> socket.socket | None:
    """Send the host one end of a socket; the other, or None when it has ended."""
    path, hello = address.find(home.root)  # as the user, also in a task
    with Bus(path, hello) as bus:
        while not gave_up():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            body = Encoded(b"", descriptors=(theirs.detach(),))
            try:
                bus.run(
                    operations.call(bus.session, calls_topic(task), body, Sending(timeout_s=LOOK_S))
                )
            except (DeadlineError, UnavailableError, NoDaemonError) as error:
                ours.close()
                with suppress(NoDaemonError):
                    if _look(home, task).is_ended:
                        return None
                if not isinstance(error, DeadlineError):
                    time.sleep(0.02)
            except BaseException:
                ours.close()
                raise
            else:
                return ours
    return None


def _greet(link: socket.socket, caller: bytes) -> None:
    """Say who this is, and hear that it may come in; what the host says next is left to be read."""
    link.settimeout(GREET_S)
    link.sendall(wire.frame(wire.Hello(wire.BUILD, caller, paths())))
    frames = wire.Frames(wire.from_host)
    head = _exactly(link, wire.LENGTH.size)
    frames.take(head)
    (message,) = frames.take(_exactly(link, wire.LENGTH.unpack(head)[0]))
    if isinstance(message, wire.Ready):
        link.settimeout(None)
        return
    if isinstance(message, wire.Refused):
        raise from_code(message.code, message.message)
    raise EOFError


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = link.recv(min(size - len(data), 65536))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
