"""Processes that hold shared memory until they are killed, forked from one that is warm.

`python -m tests.bus.memory_peers FD`: each packet on the socket FD is a role, with the peer's own
socket; the answer is the pid. Ends, with all its peers, when FD closes.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zenos.bus import parcel
from zenos.bus.memory import Pool
from zenos.bus.view import View
from zenos.core import limits
from zenos.core.errors import ZenosError

SEED = 20_261
WAIT_S = 120.0


def held() -> int:
    """Descriptors of this process, and its mappings of segments."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:zenos")
    return len(list(Path("/proc/self/fd").iterdir())) + maps


def segments() -> int:
    """Descriptors and mappings of segments in this process."""
    count = Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:zenos")
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += "memfd:zenos" in str(link.readlink())
    return count


def fork() -> int:
    """os.fork. Newer Pythons warn of the threads of who runs the tests; no child here uses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_fork(work: Callable[[], object]) -> int:
    """How a fork of this process ends that does that: its exit code, or less 0 the signal."""
    pid = fork()
    if pid == 0:
        code = 1
        faulthandler.disable()
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = 0 if work() in (None, True) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read(link: socket.socket, chance: random.Random) -> None:
    """Take what comes; hold some of it, as views and as parcels; say so."""
    holding: deque[object] = deque(maxlen=5)
    while (got := parcel.receive(link, timeout_s=WAIT_S)) is not None:
        view = View(got)
        holding.append(view.memory() if chance.random() < 0.5 else got)
        link.send(bytes(view.memory()[:1]))


def relay(link: socket.socket, chance: random.Random) -> None:
    """Keep what comes in a socket that nobody reads."""
    inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with inner, outer:
        while (got := parcel.receive(link, timeout_s=WAIT_S)) is not None:
            with got:
                parcel.send(inner, got, timeout_s=0)
            link.send(b"r")


def own(link: socket.socket, chance: random.Random) -> None:
    """Give memory out for ever; keep some buffers half written."""
    pool = Pool(8 * limits.MIB)
    half: deque[object] = deque(maxlen=3)
    while True:
        buffer = pool.allocate(chance.randrange(1, 200_000), wait_s=WAIT_S)
        buffer.memory[:1] = b"o"
        half.append(pool.allocate(10, wait_s=WAIT_S))
        with buffer.lend() as given:
            parcel.send(link, given, timeout_s=WAIT_S)


ROLES = {"read": read, "relay": relay, "own": own}


class Peers:
    """Makes them, and kills them."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    @contextmanager
    def peer(self, role: str) -> Iterator[tuple[int, socket.socket]]:
        """One of them and the socket to it; it is killed in the end, if not before."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                socket.send_fds(self.control, [role.encode()], [theirs.fileno()])
                pid = int(self.control.recv(32))
            try:
                yield pid, ours
            finally:
                kill(pid)


def kill(pid: int) -> None:
    """kill -9."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def started() -> Iterator[Peers]:
    """The warm process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bus.memory_peers", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            yield Peers(ours)
        finally:
            ours.close()
            process.wait(WAIT_S)


def serve(control: socket.socket) -> None:
    """Fork peers on request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are reaped by the system
    for number in range(10**9):
        role, descriptors, _, _ = socket.recv_fds(control, 32, 1)
        if not role:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            with suppress(OSError, ZenosError):
                link = socket.socket(fileno=descriptors[0])
                ROLES[role.decode()](link, random.Random(SEED + number))  # noqa: S311
            os._exit(0)
        os.close(descriptors[0])
        control.send(str(pid).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
