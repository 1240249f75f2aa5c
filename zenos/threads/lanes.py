"""Lanes, from the pool's side: an OS thread that runs threads itself, or through its process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import OrderedDict
from contextlib import suppress
from typing import Any, Final, Protocol

from zenos.core import limits
from zenos.core.errors import InvalidError, LaneError, WorkerError
from zenos.threads import codec, starting
from zenos.threads.codec import Header
from zenos.threads.current import Board, Flag, Ran, run
from zenos.threads.job import Function, Job

END_WAIT_S: Final = 5.0


class RemoteTraceback(Exception):  # noqa: N818 - it is a cause, as concurrent.futures has it
    """Where an error was raised in a lane's process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class UnstartedError(LaneError):
    """cannot run the thread: its lane's process was gone before"""


class Lane(Protocol):
    """What runs one thread at a time. `open`, `run` and `close` by one OS thread."""

    pid: int

    def open(self) -> None:
        """Make it ready. LaneError when it can't be."""
        ...

    def begin(self, job: Job) -> None:
        """The job that `run` is called with next: from now on `stop` means that one."""
        ...

    def run(self, job: Job) -> Ran:
        """Run what is left of a job.

        LaneError when the lane has died of it, UnstartedError when it had died before.
        """
        ...

    def stop(self) -> None:
        """Tell what runs to end."""
        ...

    def kill(self) -> None:
        """End the lane with what runs on it."""
        ...

    def close(self) -> None:
        """End it, and leave nothing."""
        ...

    def forget(self) -> None:
        """In a fork: let the parent's be."""
        ...

    def cpu_s(self) -> float:
        """CPU time so far, in seconds; 0 when it can't be told."""
        ...

    def progress(self) -> tuple[int, float]:
        """Items done of the present attempt, and the fraction of the next."""
        ...


class OsLane:
    """Runs threads in the OS thread that drives it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._flag = Flag()
        self._clock: int | None = None

    def open(self) -> None:
        with suppress(OSError, AttributeError):  # macOS has no such clocks
            self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def begin(self, job: Job) -> None:
        self._flag = job.flag

    def run(self, job: Job) -> Ran:
        ran = run(job.function.caller(), job.rest, job.flag)
        if ran.error is not None and not isinstance(ran.error, Exception):
            said = traceback.format_exception_only(ran.error)[-1].strip()
            told = WorkerError(f"cannot finish the thread: its function raised {said}")
            told.__cause__ = ran.error
            ran.error = told
        return ran

    def stop(self) -> None:
        self._flag.stop = True

    def kill(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._clock = None

    forget = close

    def cpu_s(self) -> float:
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def progress(self) -> tuple[int, float]:
        return self._flag.progress()


class ProcessLane:
    """Runs threads in a process of its own, started once and kept warm.

    environment: what its process has beside the pool's own. The process must be started by the OS
    thread that drives it: the system ends it when that thread ends, not only when we do.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.pid = 0
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._board: Board | None = None
        self._serial = 0
        self._known: OrderedDict[int, None] = OrderedDict()

    def open(self) -> None:
        made = starting.start("zenos.threads.lane", socket.SOCK_STREAM, self._environment)
        made.theirs.close()
        ours = self._link = made.link
        self._process, self._board = made.process, made.board
        self.pid = made.process.pid
        ours.settimeout(limits.LANE_START_TIMEOUT_S)
        try:
            paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109
            codec.send(ours, Header(kind="hello", text=json.dumps(paths)))
            answer = codec.receive(ours)
        except (OSError, InvalidError) as error:
            raise LaneError(f"cannot start a lane's process: {error}") from error
        if answer is None or answer[0].kind != "ready":
            raise LaneError(f"cannot start a lane's process: {self._end()}; stderr says why")
        ours.settimeout(None)

    def begin(self, job: Job) -> None:
        self._serial += 1
        if self._board is not None:
            self._board.advance(0, 0.0)
            self._board.begin(self._serial)

    def run(self, job: Job) -> Ran:
        link, process = self._link, self._process
        if link is None or process is None or process.poll() is not None:
            raise UnstartedError(f"cannot run {job.name}: its lane's process {self._end()}")
        try:
            self._teach(link, job.function)
            try:
                parts = job.parts or pickled(job)
                job.parts = None
                codec.check(parts)
            except Exception as error:  # noqa: BLE001 - whatever pickling raises
                told = InvalidError(
                    f"cannot send the arguments of {job.name} to a process: {error}; "
                    "use a pool of kind='thread', or give something that can be pickled"
                )
                told.__cause__ = error
                return Ran([], error=told, lasting=True)
            kind = "call" if job.function.single else "map"
            header = Header(kind="run", serial=self._serial, key=job.function.key, text=kind)
            job.sent_bytes = codec.send(link, header, parts)
            del parts
            answer = codec.receive(link)
        except (OSError, codec.FrameError, MemoryError) as error:
            raise LaneError(
                f"cannot finish {job.name}: its process {self._end()} ({error})"
            ) from error
        if answer is None or answer[0].kind != "ended" or answer[0].serial != self._serial:
            raise LaneError(f"cannot finish {job.name}: its process {self._end()}")
        return self._read(answer[1], job.name)

    def _teach(self, link: socket.socket, function: Function) -> None:
        """The lane has a function once; the one that was longest unused is forgotten."""
        if function.key in self._known:
            self._known.move_to_end(function.key)
            return
        codec.send(link, Header(kind="function", key=function.key), function.parts)
        self._known[function.key] = None
        if len(self._known) > limits.LANE_FUNCTIONS_MAX:
            key, _ = self._known.popitem(last=False)
            codec.send(link, Header(kind="forget", key=key))

    def _read(self, parts: list[codec.Buffer], name: str) -> Ran:
        try:
            results, error, text, seconds, stopped, lasting = codec.load(parts)
        except Exception as reason:  # noqa: BLE001 - whatever unpickling raises
            told = InvalidError(f"cannot read the result of {name} here: {reason}")
            told.__cause__ = reason
            return Ran([], error=told, lasting=True)
        if error is not None and text:
            error.__cause__ = RemoteTraceback(text)
        return Ran(results, error, text, seconds, stopped, lasting)

    def stop(self) -> None:
        if self._board is not None:
            self._board.stop()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self._end()
        if self._board is not None:
            self._board.close()
            self._board = None

    def forget(self) -> None:
        if self._link is not None:
            self._link.close()  # the descriptor here; to shut the socket down would be the parent's
            self._link = None
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._process is not None:
            self._process.returncode = 0  # it is no child of this one, which so can't wait for it
            self._process = None

    def _end(self) -> str:
        """Wait for the process's end, for a while; how it has ended, in words."""
        process = self._process
        if process is None:
            return "was not started"
        if self._link is not None:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
        try:
            code = process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return starting.how_ended(code)

    def cpu_s(self) -> float:
        return starting.cpu_s(self.pid)

    def progress(self) -> tuple[int, float]:
        return (0, 0.0) if self._board is None else self._board.progress()


def pickled(job: Job) -> list[codec.Buffer]:
    """What is left of a job, as it is sent: large bytes beside the pickle."""
    if not job.function.single:
        return codec.dump(codec.aside(job.rest))
    calls = [
        (codec.aside(arguments), dict(zip(named, codec.aside(list(named.values())), strict=True)))
        for arguments, named in job.rest
    ]
    return codec.dump(calls)


def make(kind: str, environment: dict[str, str]) -> Lane:
    """A lane of that kind, not opened yet."""
    lane: Any = OsLane() if kind == "thread" else ProcessLane(environment)
    made: Lane = lane
    return made
