"""Generations of a training as processes of their own, forked by one that has torch (child.py).

A process that says nothing for long hangs: the test that waits for it fails, and those after it at
once, instead of each waiting for as long.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from zenos.core.specs import TrainSpec

from .child import Request

SILENCE_S = 120.0  # a whole training here takes seconds


class HangError(AssertionError):
    """Nothing was said for too long."""


class Lines:
    """What is written into a pipe, line by line; "" is its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def read(self) -> str:
        """The next line. Raises HangError when it doesn't come in time."""
        end = time.monotonic() + SILENCE_S
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise HangError(f"nothing was said for {SILENCE_S:g} s")
            part = os.read(self._fd, 4096)
            if not part:
                return ""
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode() + "\n"


class Child:
    """One generation of the task, in a process of its own."""

    def __init__(self, nursery: Nursery, pid: int, pipe: Path) -> None:
        self.pid = pid
        self._nursery = nursery
        self._log = Path(f"{pipe}.log")
        # Not to wait here for its other end: it may never come.
        self._fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._said = Lines(self._fd)

    def until(self, stage: str, done: int) -> None:
        """Read its progress up to there, or to its end."""
        with self._nursery.waiting():
            while line := self._said.read():
                words = line.split()
                if words[0] == stage and int(words[1]) >= done:
                    return

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and its log."""
        with self._nursery.waiting():
            while self._said.read():
                pass
            code = int(self._nursery.answer())
        self._nursery.child = None
        self.close()
        return code, self._log.read_text()

    def close(self) -> None:
        os.close(self._fd)


class Nursery:
    """The process that forks them, one after the other."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._count = 0
        self._hung = False
        self.child: Child | None = None  # the one that nobody has seen end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.train.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        self._answers = Lines(self._process.stdout.fileno())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Remembers a hang, and ends what hangs."""
        try:
            yield
        except HangError:
            self._hung = True
            self._end_child()
            raise

    def answer(self) -> str:
        return self._answers.read()

    def start(
        self,
        home: Path,
        generation: int,
        work: TrainSpec,
        failpoints: str = "",
        armed: str = "",
        workers: int = 0,
    ) -> Child:
        assert not self._hung, "an earlier one has hung: see the first failure of this file"
        with self.waiting():
            self._end_child()  # a test that failed has left it
            self._count += 1
            pipe = self._scratch / f"pipe-{self._count}"
            os.mkfifo(pipe)
            request = Request(str(home), generation, work, str(pipe), failpoints, armed, workers)
            self._write(msgspec.json.encode(request) + b"\n")
            self.child = Child(self, int(self.answer()), pipe)
        return self.child

    def _write(self, request: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()

    def _end_child(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.send(signal.SIGKILL)
            self.answer()
            child.close()

    def close(self) -> None:
        self._end_child()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
