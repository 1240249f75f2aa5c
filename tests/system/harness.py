"""A whole system in a home of its own: what the tests here ask of it beyond `Machine`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.crash.machine import Machine
from tests.processes import mentioning, until
from zenos.client.calls import Mode
from zenos.core import failpoints, shim
from zenos.core.home import Home
from zenos.core.task import Task


def popen(home: Path, *arguments: str, plan: str = "") -> subprocess.Popen[str]:
    """A daemon that nobody waits for yet; what it says is in its pipes."""
    argv = [sys.executable, "-P", "-m", "zenos.daemon", "--home", str(home), "--port", "0"]
    return subprocess.Popen(
        [*argv, "--set", "zygote=lazy", *arguments],
        env={**os.environ, failpoints.VARIABLE: plan},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(home: Path, *arguments: str) -> str:
    """What a daemon says that doesn't start: one line, and no process is left of it."""
    with popen(home, *arguments) as process:
        said, error = process.communicate(timeout=60)
    assert process.returncode in (1, 2), (process.returncode, error)
    assert said == ""
    assert error.startswith("cannot "), error
    assert error.count("\n") == 1, f"more than one line: {error}"
    return error


AT_REST = 2  # the daemon and its launcher are all that is left when no task runs


def family(home: Home) -> set[int]:
    """Every process of a home that is alive: the daemon, its fork servers, shims, sessions."""
    found = set(mentioning(str(home.root)))
    for record in home.runs.glob("*/*/shim"):
        said = shim.read_record(str(record.parent), "shim")
        if said is not None and said["boot_id"] == shim.boot_id():
            members = shim.session_members(int(said["pid"]))
            found |= {pid for pid in members if shim.start_time(pid) >= said["start_time"]}
    return found


class System(Machine):
    """A home with a daemon on it, mostly. Its end is part of each test: nothing may be left."""

    @property
    def log(self) -> str:
        """What the daemons have logged."""
        return self.home.daemon_log.read_text()

    @property
    def released(self) -> Path:
        """The file that programs wait for which `hold`."""
        return self.ran.with_name("released")

    @property
    def hold(self) -> str:
        """A script that goes on until `released` is there."""
        return f"while [ ! -e {self.released} ]; do sleep 0.01; done"

    def task(self, number: int) -> Task:
        """A task as the daemon knows it now."""
        return self.tasks()[f"n{number}"]

    def runs(self, *numbers: int) -> list[int]:
        """Wait until these tasks have begun; the pids of all workers that live."""
        until(lambda: all(self.lines()[number] for number in numbers))
        return sorted(self.pids("started"))

    def signal(self, number: signal.Signals) -> int:
        """Send the daemon a signal that ends it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def shut_down(self, mode: Mode) -> int:
        """Ask the daemon to go down and wait until it has; its exit code."""
        self.ask(lambda client: client.shut_down(mode))
        return self.gone()

    def gone(self) -> int:
        """Wait for the daemon's end; its exit code."""
        assert self.process is not None
        return self.process.wait(60)

    def close(self) -> None:
        """End all; fails if something is left that nobody has to end."""
        code = self.signal(signal.SIGTERM) if not self.dead else 0
        try:
            until(lambda: not family(self.home), 10)
        finally:
            for pid in family(self.home):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            super().close()
        assert code == 0, self.log
