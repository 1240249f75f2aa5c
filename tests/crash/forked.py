"""Daemons that start in a tenth of the time: forks of a process that has imported what they need.

Nothing else differs from `python -P -m zenos.daemon`: each is a process of its own, with an
environment, a working directory and a command line of its own, that really boots, and that signals
really end. Run by itself, this module is the process that forks them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from zenos.core import failpoints

# Of the forking process's command line: where each fork writes its own.
ROOM: Final = "." * 1024


class Start(msgspec.Struct, tag=True):
    """A daemon is to be started; the answer is its pid."""

    argv: list[str]
    environment: dict[str, str]
    directory: str


class Poll(msgspec.Struct, tag=True):
    """Has it ended? The answer is its exit code, as subprocess has it, or null."""

    pid: int


class Daemon:
    """A daemon's process, with what the tests use of `subprocess.Popen`."""

    def __init__(self, server: Server, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(Poll(self.pid))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            ended = os.pidfd_open(self.pid)
            try:
                select.select([ended], [], [], timeout)
            finally:
                os.close(ended)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("zenos.daemon", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks them, started when the first one is wanted."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one = threading.Lock()

    def start(self, *arguments: str, environment: dict[str, str]) -> Daemon:
        """A daemon with such arguments."""
        argv = [sys.executable, "-P", "-m", "zenos.daemon", *arguments]
        pid = self.ask(Start(argv, environment, str(Path.cwd())))
        assert pid is not None
        return Daemon(self, pid)

    def ask(self, request: Start | Poll) -> int | None:
        with self._one:
            process = self._process = self._process or self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
            return msgspec.json.decode(process.stdout.readline(), type=int | None)

    @staticmethod
    def _started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forked", ROOM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
            env={},  # it must not look like what belongs to a test
        )

    def close(self) -> None:
        """End it; daemons live on."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()


server = Server()  # of this test process; tests/conftest.py ends it


def call_itself(argv: list[str]) -> None:
    """Let the command line of this process be that one, for those that look for processes."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
    text = "".join(f"{item}\0" for item in argv).encode()
    assert len(text) < end - begin
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        memory.write(text.ljust(end - begin, b"\0"))


def run(request: Start) -> int:
    """In the fork: the daemon; its exit code."""
    from zenos import daemon

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.directory)
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]
    call_itself(request.argv)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    return daemon.main(request.argv[4:])


def serve() -> int:
    """Fork daemons, and tell of their ends; in a fork, its exit code."""
    from zenos import daemon as _  # noqa: F401 - what this process is there for

    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Start | Poll)
        answer: int | None
        if isinstance(request, Start):
            answer = os.fork()
            if answer == 0:
                return run(request)
        else:
            pid, status = os.waitpid(request.pid, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(msgspec.json.encode(answer).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
