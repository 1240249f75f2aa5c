"""Peers that talk much, and what is to be known of their direct sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.bus.harness import Station, in_thread
from tests.processes import until
from zenos.bus.sync import Bus
from zenos.core import limits

LONG_S = 60.0

# Serves `work`: writes down each body before it is done; `hang` never is.
SERVER = """
import os, sys, time
from pathlib import Path
from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus
where, done = sys.argv[1:]
bus = Bus(Path(where), Hello(task="", generation=0, token="x", program=True), timeout_s=60)
fd = os.open(done, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def work(body):
    os.write(fd, f"{body}\\n".encode())
    while body == "hang":
        time.sleep(600)
    return body
print("ready", flush=True)
bus.topic("work").serve(work)
"""

# Calls `work` until that goes directly, says so, and calls once more when it is told to.
CALLER = """
import sys
import threading
from pathlib import Path
from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus
bus = Bus(Path(sys.argv[1]), Hello(task="", generation=0, token="x", program=True), timeout_s=60)
topic = bus.topic("work")
while not bus.session.direct.callers:
    topic.call("talk")
print("direct", flush=True)
sys.stdin.readline()
topic.call("last", timeout_s=600)
"""


class Counter:
    """Serves `work`; what is called while it is held ends when it is opened.

    begun: bodies, in the order in which they were begun.
    """

    def __init__(self, bus: Bus, threads: int = 1) -> None:
        self.bus = bus
        self.begun: list[Any] = []
        self._gate = threading.Event()
        self._gate.set()
        self.serving = [in_thread(bus.topic("work").serve, self._work) for _ in range(threads)]

    def _work(self, body: Any) -> Any:
        gate = self._gate
        self.begun.append(body)
        gate.wait(LONG_S)
        return body

    def hold(self, topic: Any) -> Future[Any]:
        """A call, which is begun."""
        self._gate = threading.Event()
        count = len(self.begun)
        calling = in_thread(lambda: topic.call("held", timeout_s=LONG_S))
        until(lambda: len(self.begun) > count)
        return calling

    def open(self) -> None:
        """Nothing is held any more."""
        self._gate.set()

    def close(self) -> None:
        self.open()
        self.bus.close()
        for one in self.serving:
            one.result(LONG_S)


def is_direct(bus: Bus, topic: str = "work") -> bool:
    """Whether calls from there go over a direct socket."""
    return topic in bus.session.direct.callers


def talk(bus: Bus, topic: str = "work", times: int = 40 * limits.DIRECT_CALLS) -> None:
    """Call until there is a direct socket."""
    for _ in range(times):
        if is_direct(bus, topic):
            return
        bus.topic(topic).call("talk", timeout_s=LONG_S)
    raise AssertionError("no direct socket came")


def chat(bus: Bus, topic: str = "work") -> None:
    """Call as often as would be enough for a direct socket."""
    for _ in range(3 * limits.DIRECT_CALLS):
        bus.topic(topic).call("talk", timeout_s=LONG_S)


def unread(bus: Bus, topic: str = "work") -> int:
    """How many direct sockets bring something there that nobody has read, since all are busy."""
    desk, found = bus.session.direct.desks[topic], 0
    for end in list(desk.ends.values()):
        with suppress(BlockingIOError):
            found += len(end.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return found


def meetings(bus: Station) -> int:
    """How many direct sockets the broker knows of, counted at each end."""
    return bus.do(lambda: sum(len(peer.meetings) for peer in bus.broker._peers))


def sockets() -> int:
    """How many sockets and memory files this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(entry.readlink()).startswith(("socket:", "/memfd:"))
    return found


def garbage(end: Any) -> None:
    """Send over a direct socket what is no frame."""
    end.socket.send(b"\xff" * 64, socket.MSG_DONTWAIT)


@contextmanager
def program(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, killed at the end."""
    argv = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[bytes], line: bytes) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == line + b"\n"


def tell(process: subprocess.Popen[bytes]) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
