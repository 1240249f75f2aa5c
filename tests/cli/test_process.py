"""The command as a process: signals, pipes, terminals, and the real daemon up and down."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.cli.conftest import LIMIT_S, Daemon, until
from tests.processes import mentioning
from zenos import __version__
from zenos.cli.daemon_process import running
from zenos.client import Client, connect
from zenos.client.address import start_time
from zenos.core.home import Home
from zenos.core.wire import Progress

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-m", "zenos"]
LAZY = ["--port", "0", "--set", "zygote=lazy"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def zenos(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], env=environment(), capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def up(home: Home) -> Iterator[Home]:
    """A real daemon, without a warm zygote: none of these tests trains."""
    ran = zenos("up", *LAZY)
    assert ran.returncode == 0, ran.stderr
    yield home
    found = running(home)
    if found is not None:
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: start_time(found.pid) is None)
        # What it could not remove any more, and the next daemon would have.
        shutil.rmtree(home.sockets, ignore_errors=True)


def test_a_closed_stdout_is_no_fault() -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "--version"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zenos.cli.main import app; sys.argv = ['zenos', '--help']\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    modules = set(
        msgspec.json.decode(ran.stdout.splitlines()[-1].replace("'", '"'), type=list[str])
    )
    heavy = {"torch", "httpx", "textual", "plotext", "matplotlib", "uvicorn", "sqlalchemy", "yaml"}
    assert "zenos" in modules
    assert not modules & heavy


def test_up_work_down(up: Home) -> None:
    again = zenos("up", "--json")
    assert json.loads(again.stdout)["started"] is False
    assert again.returncode == 0
    ran = zenos("submit", "--follow", "--name", "greet", "--", "sh", "-c", "echo hello; exit 3")
    assert (ran.returncode, ran.stdout) == (1, "hello\n")
    assert "exit code 3" in ran.stderr
    assert zenos("logs", "greet").stdout == "hello\n"
    status = json.loads(zenos("status", "--json").stdout)
    found = running(up)
    assert found is not None
    assert status["pid"] == found.pid
    assert (status["version"], status["tasks"]) == (__version__, {"failed": 1})
    assert 0 < status["uptime_s"] < LIMIT_S * 10
    (node,) = status["nodes"]
    assert node["node"]["capacity"]["cpu"] > 0
    assert node["used"] == {"cpu": 0, "gpu": 0, "memory": 0, "gpu_memory": 0}
    down = zenos("down", "--json")
    assert (down.returncode, json.loads(down.stdout)["stopped"]) == (0, True)
    assert start_time(found.pid) is None
    assert not up.daemon.exists()
    assert zenos("ps").returncode == 5


def test_work_that_is_left_goes_on_under_the_next_daemon(up: Home, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"while ! test -e {flag}; do sleep 0.05; done; echo done"
    zenos("submit", "--name", "long", "--", "sh", "-c", script)
    with connect() as client:
        until(lambda: client.task("long").task.state == "running")
    assert zenos("down", "--leave").returncode == 0
    assert zenos("up", *LAZY).returncode == 0
    with connect() as client:
        assert client.task("long").task.generation == 1
        flag.touch()
        assert client.task("long").wait(timeout_s=LIMIT_S).state == "succeeded"


def test_two_ups_at_once_are_one_daemon(home: Home) -> None:
    both = [
        subprocess.Popen(
            [*PROGRAM, "up", *LAZY, "--json"],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=120) for one in both]
    try:
        assert [one.returncode for one in both] == [0, 0], said
        assert len({json.loads(out)["pid"] for out, _ in said}) == 1
    finally:
        assert zenos("down").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", [("up", *LAZY), ("demo", "--quick")])
def test_who_interrupts_a_start_leaves_no_daemon(
    home: Home, tmp_path: Path, number: signal.Signals, command: tuple[str, ...]
) -> None:
    ran = subprocess.Popen(
        [*PROGRAM, *command],
        env={**environment(), "TMPDIR": str(tmp_path), "ZENOS_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def daemons() -> list[str]:
        there = mentioning(str(tmp_path)).values()
        return [line for line in there if "zenos.daemon" in line]

    until(daemons)
    ran.send_signal(number)
    _, said = ran.communicate(timeout=60)
    assert mentioning(str(tmp_path)) == {}
    assert "the daemon that was starting was ended" in said
    assert "Traceback" not in said
    as_told = -number if command[0] == "up" else 128 + number
    assert ran.returncode == (130 if number is signal.SIGINT else as_told)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("zenos-demo-")]


def test_up_says_why_it_could_not(home: Home, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = zenos("up", "--port", str(taken.getsockname()[1]))
    assert ran.returncode in (1, 4)
    assert "cannot listen on 127.0.0.1" in ran.stderr
    assert zenos("up", "--host", "0.0.0.0", "--port", "0").returncode == 4  # noqa: S104
    nobodys = zenos("up", "--host", "192.0.2.1", "--port", "0", "--i-know-this-is-public")
    assert nobodys.returncode == 2
    assert nobodys.stderr.endswith("this machine has no such address; choose another with --host\n")
    unknown = zenos("up", "--set", "prot=1")
    assert "did you mean 'port'?" in unknown.stderr
    for one in (ran, unknown, nobodys):
        assert "Traceback" not in one.stderr
        assert len(one.stderr.strip().splitlines()) == 1
    file = tmp_path / "file"
    file.touch()
    os.environ["ZENOS_HOME"] = str(file)  # the fixture puts it back
    ran = zenos("up")
    assert ran.returncode == 1
    assert "ZENOS_HOME" in ran.stderr


@pytest.mark.parametrize(
    ("flags", "status", "code"),
    [
        (["--port", "{taken}"], 1, "storage"),
        (["--set", "prot=1"], 2, "invalid"),
        (["--host", "0.0.0.0", "--port", "0"], 4, "refused"),  # noqa: S104
    ],
)
def test_the_foreground_tells_errors_as_the_background_does(
    home: Home, flags: list[str], status: int, code: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        behind, before = zenos("up", *given), zenos("up", "--foreground", *given)
        as_json = zenos("up", "--foreground", "--json", *given)
        behind_json = zenos("up", "--json", *given)
    assert before.stderr == behind.stderr
    assert before.stderr.startswith("zenos: cannot ")
    assert json.loads(as_json.stderr) == json.loads(behind_json.stderr)
    assert json.loads(as_json.stderr)["error"]["code"] == code
    assert {one.returncode for one in (behind, before, as_json, behind_json)} == {status}


@pytest.mark.parametrize(
    ("host", "asked", "another"),
    [
        ("0.0.0.0", "127.0.0.1", "127.0.0.2"),  # noqa: S104 - who listens there must be reachable
        pytest.param(
            "::",
            "[::1]",
            "127.0.0.2",
            marks=pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6"),
        ),
    ],
)
def test_who_listens_on_all_addresses_is_asked_at_one(
    home: Home, monkeypatch: pytest.MonkeyPatch, host: str, asked: str, another: str
) -> None:
    ran = zenos("up", *LAZY, "--host", host, "--i-know-this-is-public")
    try:
        assert ran.returncode == 0, ran.stderr
        found = running(home)
        assert found is not None
        assert found.url == f"http://{asked}:{found.port}"
        assert found.port != 0
        assert found.url in ran.stdout
        assert found.url in zenos("status").stdout
        # At each address on which one comes in, and not by the wildcard as a name.
        there = f"http://{another}:{found.port}/health"
        assert httpx.get(there, trust_env=False).status_code == 200
        by_wildcard = httpx.get(there, trust_env=False, headers={"Host": "0.0.0.0"})  # noqa: S104
        assert by_wildcard.status_code == 403
        # Who sets ZENOS_HOST to what the daemon was started with means the same.
        shown = f"[{host}]" if ":" in host else host
        monkeypatch.setenv("ZENOS_HOST", f"{shown}:{found.port}")
        assert zenos("status").returncode == 0
        monkeypatch.delenv("ZENOS_HOST")
    finally:
        down = zenos("down")
    assert (down.returncode, running(home)) == (0, None), down.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_foreground_ends_with_a_signal(home: Home, number: signal.Signals) -> None:
    daemon = subprocess.Popen(
        [*PROGRAM, "up", "--foreground", *LAZY],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with daemon:
        try:
            until(lambda: running(home))
            found = running(home)
            assert found is not None
            assert found.pid == daemon.pid
            # Its terminal hangs up: it goes on, and reads its settings again.
            daemon.send_signal(signal.SIGHUP)
            assert daemon.stderr is not None
            assert any("settings read again" in line for line in daemon.stderr)
            with connect() as client:
                assert client.status().pid == daemon.pid
            daemon.send_signal(number)
            daemon.communicate(timeout=60)
        finally:
            daemon.kill()
    assert daemon.returncode == 0
    assert not home.daemon.exists()


def test_ctrl_c_leaves_the_task_running(daemon: Daemon) -> None:
    ran = subprocess.Popen(
        [*PROGRAM, "submit", "--follow", "--", "work"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: "running" in {str(t.state) for t in daemon.double.view.tasks.values()})
    task = next(iter(daemon.double.view.tasks))
    path = daemon.double.log_path(task)
    assert path is not None
    path.write_text("begun\n")
    assert ran.stdout is not None
    assert ran.stdout.readline() == "begun\n"
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=LIMIT_S)
    assert ran.returncode == 130
    assert f"zenos cancel {task}" in err
    assert "Traceback" not in err
    assert daemon.state(task) == "running"


@pytest.mark.parametrize("args", [["status", "--json"], ["list"], ["--help"]])
def test_a_pipe_that_nobody_reads_is_no_error(daemon: Daemon, args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [*PROGRAM, *args],
        env=environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert ran.returncode in (1, 141)
    assert ran.stderr == ""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *args: str, program: list[str] = PROGRAM) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(  # noqa: S606 - no shell is wanted
                program[0], [*program, *args], {**environment(), "TERM": "xterm"}
            )
        self._unread = ""
        self.rest = ""  # what came after the last text that was waited for

    def until(self, text: str) -> str:
        """Read until the text has come; everything from the last call up to there."""
        end = time.monotonic() + LIMIT_S
        while text not in self._unread:
            assert time.monotonic() < end, f"{text!r} did not come: {self._unread!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self._unread += os.read(self._fd, 65536).decode("utf-8", "replace")
        before, found, self._unread = self._unread.partition(text)
        return before + found

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """The exit code."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            try:
                if select.select([self._fd], [], [], 0.05)[0]:
                    came = os.read(self._fd, 65536)
                    self._unread += came.decode("utf-8", "replace")
                    if not came:
                        break
            except OSError:
                break  # the other side has closed it
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        self.rest = self._unread
        return os.waitstatus_to_exitcode(status)


def test_a_chat_in_the_terminal(daemon: Daemon) -> None:
    daemon.double.words = ["a\x1b[2Jb", "!"]
    terminal = Terminal("run", "tiny", "--chat")
    terminal.until(">>> ")
    terminal.type("Hello\r")
    answer = terminal.until("!")
    assert "\x1b[2J" not in answer
    terminal.until(">>> ")
    terminal.type("And\r")
    terminal.until("!")
    terminal.until(">>> ")
    said = daemon.double.asked[-1][1].messages
    assert said is not None
    assert [m["role"] for m in said] == ["user", "assistant", "user"]
    terminal.type("/clear\r")
    terminal.until(">>> ")
    terminal.type("Again\r")
    terminal.until("!")
    terminal.until(">>> ")
    assert daemon.double.asked[-1][1].messages == [{"role": "user", "content": "Again"}]
    terminal.type("\x04")
    assert terminal.end() == 0


WATCHING = "import zenos\nprint('at last', zenos.connect().task('job').watch().state)"


def test_a_task_that_a_program_watches_is_drawn_again_in_its_place(
    daemon: Daemon, client: Client
) -> None:
    handle = client.submit(["work"], name="job")
    until(lambda: daemon.state(handle.id) == "running")
    terminal = Terminal("-c", WATCHING, program=[sys.executable])
    terminal.until("\x1b[?25l")  # the cursor is hidden
    for done in (3, 7):
        daemon.report(handle.id, Progress(stage="training", done=done, total=10, loss=2.5))
        drawn = terminal.until(f"{done}/10")
    # Between the two it went back to where the first stood: up, and the line is cleared.
    assert "\x1b[1A\x1b[2K" in drawn
    assert "training" in drawn
    daemon.end(handle.id)
    terminal.until("succeeded")
    drawn = terminal.until("at last succeeded")
    assert "\x1b[?25h" in drawn
    assert "training" not in drawn
    assert terminal.end() == 0


def test_the_live_screen_in_a_terminal(daemon: Daemon) -> None:
    terminal = Terminal("top", "--interval", "0.2")
    terminal.until("zenos test")
    terminal.type("q")
    assert terminal.end() == 0


# As a terminal is told to: the usual screen, a cursor, no events of a mouse.
GIVEN_BACK = ("\x1b[?1049l", "\x1b[?25h", "\x1b[?1000l")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_bar_that_is_told_to_end_gives_its_terminal_back(
    daemon: Daemon, number: signal.Signals
) -> None:
    terminal = Terminal("train", "--model", "m", "--arch", "llama-nano", "--data", "x", "--follow")
    terminal.until("\x1b[?25l")  # the cursor is hidden
    terminal.until("running")
    os.kill(terminal.pid, number)
    assert terminal.end() == -number
    assert "\x1b[?25h" in terminal.rest
    assert "Traceback" not in terminal.rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_live_screen_gives_its_terminal_back(daemon: Daemon, number: signal.Signals) -> None:
    terminal = Terminal("top", "--interval", "0.2")
    terminal.until("zenos test")
    os.kill(terminal.pid, number)
    assert terminal.end() == 0
    assert [sequence for sequence in GIVEN_BACK if sequence not in terminal.rest] == []
    assert "Traceback" not in terminal.rest


def hold_answers(daemon: Daemon) -> None:
    """Answers stop after their first word until their client has gone."""
    daemon.double.gate = daemon.do(asyncio.Event)


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(daemon: Daemon) -> None:
    hold_answers(daemon)
    terminal = Terminal("run", "tiny", "--chat")
    terminal.until(">>> ")
    terminal.type("Hello\r")
    terminal.until("Hello\r\n")  # typed
    terminal.until("Hello")  # answered
    assert daemon.double.open == 1
    terminal.type("\x03")
    terminal.until(">>> ")
    # Nobody makes the rest of it.
    until(lambda: (daemon.double.open, daemon.double.closed) == (0, 1))
    daemon.do(daemon.double.gate.set)
    terminal.type("And\r")
    terminal.until("rld")
    terminal.until(">>> ")
    # What had come of it belongs to what was said.
    assert daemon.double.asked[-1][1].messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And"},
    ]
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_answer_and_frees_its_slot(daemon: Daemon, number: signal.Signals) -> None:
    hold_answers(daemon)
    ran = subprocess.Popen(
        [*PROGRAM, "run", "tiny", "say"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with ran:
        assert ran.stdout is not None
        assert ran.stdout.read(5) == b"Hello"
        ran.send_signal(number)
        _, said = ran.communicate(timeout=60)
    assert ran.returncode == (130 if number is signal.SIGINT else -number)
    assert said == b""
    until(lambda: (daemon.double.open, daemon.double.closed) == (0, 1))


def completions(*words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    ran = subprocess.run(
        PROGRAM,
        env={
            **environment(),
            "_ZENOS_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(("zenos", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def test_the_shell_completes_commands_and_names(up: Home) -> None:
    assert zenos("submit", "--name", "nightly", "--", "true").returncode == 0
    assert completions("sub") == ["submit"]
    assert completions("logs", "nig") == ["nightly"]
    assert "--memory" in completions("submit", "--mem")
    assert completions("show", "no-such-mod") == []
    assert zenos("down").returncode == 0
    # Nobody is told by a shell that there is no daemon.
    assert completions("logs", "nig") == []
