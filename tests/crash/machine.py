"""A daemon that can be killed, and started again on the same home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

from tests.crash import forked
from tests.processes import mentioning, until
from zenos.client import Client, connect
from zenos.core import failpoints, shim
from zenos.core.errors import NoDaemonError, UnavailableError
from zenos.core.home import Home
from zenos.core.task import HOLDING, Task

T = TypeVar("T")
AWAY = (httpx.TransportError, NoDaemonError, UnavailableError)


class Machine:
    """One home and, mostly, a daemon on it. `ran` is where tasks write their line."""

    def __init__(self, root: Path, *settings: str) -> None:
        self.home = Home(root / "home")
        self.home.root.mkdir()
        self.ran = root / "ran"
        self.ran.touch()
        self._settings = settings
        self.process: subprocess.Popen[bytes] | forked.Daemon | None = None
        self._one = threading.RLock()  # several threads ask, one of them starts

    def start(self, plan: str = "", *, afresh: bool = False) -> None:
        """Start a daemon, with failpoints armed. It may be dead when this returns.

        afresh: by its command, not as a fork of what has imported it already (forked.py).
        """
        assert self.process is None or self.process.poll() is not None
        set_ = [item for setting in self._settings for item in ("--set", setting)]
        arguments = ["--home", str(self.home.root), "--port", "0", *set_]
        environment = {**os.environ, failpoints.VARIABLE: plan}
        if afresh:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "zenos.daemon", *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        else:
            self.process = forked.server.start(*arguments, environment=environment)
        process = self.process
        until(lambda: process.poll() is not None or self.answers())

    def answers(self) -> bool:
        """Whether the daemon that was started last answers."""
        assert self.process is not None
        try:
            with connect(home=self.home.root, retry_s=0) as client:
                return client.status().pid == self.process.pid
        except AWAY:
            return False

    @property
    def dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """The power goes off, for the daemon alone."""
        with self._one:
            assert self.process is not None
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """Kill the daemon and start another."""
        with self._one:
            self.kill()
            self.start()

    def ask(self, question: Callable[[Client], T]) -> T:
        """Ask until there is an answer; a daemon that is dead is started again."""
        while True:
            with self._one:
                if self.dead:
                    self.start()
            try:
                with connect(home=self.home.root, retry_s=0) as client:
                    return question(client)
            except AWAY:
                continue

    def submit(self, number: int, script: str = "true", **options: object) -> str:
        """A task that writes its number into `ran`, and then does something. Its id."""
        line = f"echo {number} >> {self.ran}; {script}"
        return self.ask(
            lambda client: (
                client.submit(
                    ["/bin/sh", "-c", line],
                    key=f"k{number}",
                    **{"name": f"n{number}", "cpu": 0.1, "memory": "64MiB", **options},
                ).id
            )
        )

    def tasks(self) -> dict[str, Task]:
        """All tasks by name."""
        views = self.ask(lambda client: client.tasks(limit=1000))
        return {view.task.name: view.task for view in views}

    def finish(self) -> dict[str, Task]:
        """All tasks, once they have ended."""
        try:
            until(lambda: all(task.is_ended for task in self.tasks().values()), 120)
        except AssertionError as error:
            left = [task for task in self.tasks().values() if not task.is_ended]
            said = "\n".join(f"{task.id} {task.name}: {task}" for task in left)
            log = self.home.daemon_log.read_text()[-8000:]
            raise AssertionError(f"these have not ended:\n{said}\n{log}") from error
        return self.tasks()

    def lines(self) -> Counter[int]:
        """How often each task began."""
        return Counter(map(int, self.ran.read_text().split()))

    def pids(self, record: str) -> list[int]:
        """Live processes of tasks that hold resources: of the `shim`s or of the workers."""
        found = []
        for task in self.tasks().values():
            said = shim.read_record(str(self.home.run(task.id, task.generation)), record)
            if task.state in HOLDING and said is not None:
                pid = int(said["pid"])
                if shim.start_time(pid) == int(said["start_time"]):
                    found.append(pid)
        return found

    def ended(self) -> int:
        """How many tasks have ended."""
        return sum(task.is_ended for task in self.tasks().values())

    def server(self, name: str) -> int | None:
        """A fork server: the oldest of those that look like it, since shims are forked from it."""
        found = [
            pid for pid, said in mentioning(str(self.home.root)).items() if f".{name} " in said
        ]
        return min(found, key=shim.start_time, default=None)

    def close(self) -> None:
        """End everything by id; nothing of this home may be left."""
        if not self.dead:
            assert self.process is not None
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        for pid in mentioning(str(self.home.root)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not mentioning(str(self.home.root)))
        # What a daemon that was killed cannot remove, and the next one would have.
        shutil.rmtree(self.home.sockets, ignore_errors=True)
