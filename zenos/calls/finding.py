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
    InvalidError,
    NoDaemonError,
    StorageError,
    UnauthorizedError,
    UnavailableError,
    WorkerError,
    from_code,
)
from zenos.core.home import Home, given
from zenos.core.inside import bearer, inside, secret
from zenos.core.names import calls_topic
from zenos.core.resources import parse_share
from zenos.core.specs import CallSpec
from zenos.core.task import Principal, State, Task, TaskSpec
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
        """The host, as a task. It is shared by who has the same interpreter, path and folder, and
        asks on the same user's behalf.

        InvalidError for what no host could be.
        """
        from zenos.client import build

        here = folder()
        if not here:
            raise InvalidError(
                "cannot call from a folder that was removed: change to another one first"
            )
        given = {"cpu": self.cpu, "gpu": self.gpu, "memory": self.memory, "priority": self.priority}
        options = build.options({"name": "calls", **given})
        fields = {
            "lanes": self.lanes_or_default,
            "keep_alive_s": self.keep_alive_s,
            "python": sys.executable,
            "cwd": here,
        }
        work = build.convert(fields, CallSpec)
        work.check()
        spec = options.task(work)
        spec.check()
        where = [wire.BUILD, sys.executable, paths(), here]
        said = json.dumps([where, msgspec.to_builtins(self), work.lanes]).encode()
        return replace(spec, work=replace(work, key=_digest(said)))


def paths() -> list[str]:
    """This program's sys.path, as it means the same elsewhere."""
    return [path or folder() for path in sys.path]


def folder() -> str:
    """The working directory; nothing where it was removed: who has a host in it goes on."""
    try:
        return os.getcwd()  # noqa: PTH109 - once for each call
    except FileNotFoundError:
        return ""


class Place(msgspec.Struct, frozen=True):
    """The home whose daemon is used, and on whose behalf: as the client and the command do.

    token: what ZENOS_TOKEN said as the program called; without, the task's in which this runs, else
    the home's.
    """

    home: Home
    token: str | None = None

    @classmethod
    def here(cls) -> Place:
        """As the environment says now. NoDaemonError where no daemon runs there."""
        from zenos.client.address import find

        place = cls(Home.default(), given("ZENOS_TOKEN"))
        find(home=place.home.root)
        return place

    def asks_with(self) -> str:
        """The token for the daemon. UnauthorizedError without one."""
        if self.token is not None:
            return self.token
        who = inside(self.home)
        if who is None:
            return address.find(self.home.root)[1].token
        try:
            return bearer(who, secret(self.home, *who))
        except FileNotFoundError:
            raise UnauthorizedError(
                f"cannot call for task {who.task}: it is not known any more on {self.home.root}"
            ) from None


def come_in(
    place: Place, spec: TaskSpec, caller: bytes, gave_up: Callable[[], bool]
) -> socket.socket:
    """A connection to the host, which is started if there is none.

    Waits while the host waits for room. WorkerError when it can't be started, UnfittableError, what
    it says against this program, UnavailableError when `gave_up`, or when another program that
    looks for its host doesn't come to an end.
    """
    while not gave_up():
        try:
            link = _reach(place, spec, gave_up)
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


def _reach(place: Place, spec: TaskSpec, gave_up: Callable[[], bool]) -> socket.socket | None:
    """A connection to the host that there is; None when that has ended by now."""
    task = _host(place, spec, gave_up)
    link = _ask(place, task, gave_up)
    if link is None:
        ended = _look(place, task)
        if ended.is_ended and ended.state is not State.SUCCEEDED:
            raise WorkerError(_why(ended))
    return link


def _why(task: Task) -> str:
    said = task.outcome.describe() if task.outcome is not None else str(task.state)
    return f"cannot run calls: their host {task.id} has ended ({said}); see 'zenos logs {task.id}'"


@contextmanager
def _client(place: Place) -> Iterator[Client]:
    """The HTTP client. It takes long to import, and only who looks for a host needs it."""
    from zenos.client import connect

    with connect(home=place.home.root, token=place.asks_with(), retry_s=1.0) as client:
        yield client


def _host(place: Place, spec: TaskSpec, gave_up: Callable[[], bool]) -> str:
    """The id of the task. Of several programs that look at once, one submits it.

    It is of whom this asks for, never another's: what it holds counts as theirs.
    """
    place.home.calls.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(place.home.calls / "finding.lock", gave_up), _client(place) as client:
        status = client.status()
        who = Principal(user=status.user, project=status.project)
        spec = _of(who, spec)
        for view in client.tasks(kind="call", state=HOLDING):
            task = view.task
            if task.principal == who and _key(task.spec) == _key(spec) and not task.stopping:
                return task.id
        return client.submit(spec).id


def _key(spec: TaskSpec) -> str:
    return spec.work.key if isinstance(spec.work, CallSpec) else ""


def _of(who: Principal, spec: TaskSpec) -> TaskSpec:
    """That user's host: with a journal of its own, so that none takes over what another's left."""
    assert isinstance(spec.work, CallSpec)  # noqa: S101 - it was made here
    if who.is_operator:
        return spec
    said = json.dumps([spec.work.key, who.user, who.project]).encode()
    return replace(spec, work=replace(spec.work, key=_digest(said)))


def _digest(said: bytes) -> str:
    return hashlib.sha256(said).hexdigest()[:24]


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


def _look(place: Place, task: str) -> Task:
    with _client(place) as client:
        return client.task(task).task


def _ask(place: Place, task: str, gave_up: Callable[[], bool]) -> socket.socket | None:
    """Send the host one end of a socket; the other, or None when it has ended."""
    path, hello = address.find(place.home.root)  # as a program outside any task
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
                    if _look(place, task).is_ended:
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
