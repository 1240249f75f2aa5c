"""Logs through the client: over rotations, with what is gone said in its place."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.conftest import Daemon, until, zenos
from zenos.cli.main import app
from zenos.cli.output import put_log
from zenos.client import Client
from zenos.core.output import Output
from zenos.core.task import Outcome

LIMIT = 1000
NOTICE = r"\[cannot show (\d+) bytes of output: the log keeps its end\]\n"


def lines(begin: int, end: int) -> str:
    return "".join(f"line {number:06d}\n" for number in range(begin, end))


class Log:
    """A task's log as its shim writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log"
        self._output = Output(str(folder), LIMIT)

    def say(self, text: str | bytes) -> None:
        os.write(self._output.writer, text.encode() if isinstance(text, str) else text)
        self._output.take()

    def close(self) -> None:
        self._output.leave()
        os.close(self._output.end)
        os.close(self._output._log)


@pytest.fixture
def log(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    (tmp_path / "run").mkdir()
    made = Log(tmp_path / "run")
    monkeypatch.setattr(daemon.double, "log_path", lambda task, generation=None: made.path)
    yield made
    made.close()


def started(daemon: Daemon, client: Client) -> str:
    task = client.submit(["work"]).id
    until(lambda: daemon.state(task) == "running")
    return task


def test_following_goes_on_over_rotations(daemon: Daemon, client: Client, log: Log) -> None:
    task = started(daemon, client)
    got: list[str] = []
    follower = threading.Thread(
        target=lambda: got.extend(client.task(task).log(follow=True)), daemon=True
    )
    follower.start()
    for begin in range(0, 400, 40):
        log.say(lines(begin, begin + 40))
        until(lambda end=begin + 40: "".join(got) == lines(0, end))
    daemon.end(task)
    follower.join(20)
    assert not follower.is_alive()
    assert "".join(got) == lines(0, 400)


def test_a_follower_that_is_overtaken_hears_what_it_missed(
    daemon: Daemon, client: Client, log: Log
) -> None:
    task = started(daemon, client)
    got: list[str] = []
    follower = threading.Thread(
        target=lambda: got.extend(client.task(task).log(follow=True)), daemon=True
    )
    log.say(lines(0, 40))
    follower.start()
    until(lambda: got)
    for begin in range(40, 2000, 40):
        log.say(lines(begin, begin + 40))
    daemon.end(task)
    follower.join(20)
    assert not follower.is_alive()
    whole, place = lines(0, 2000), 0
    first, *others = re.split(NOTICE, "".join(got))
    assert others
    for text, gap in zip([first, *others[1::2]], [*map(int, others[::2]), 0], strict=True):
        assert text == whole[place : place + len(text)]
        place += len(text) + gap
    assert place == len(whole)


def test_what_the_log_no_longer_holds_is_said(daemon: Daemon, client: Client, log: Log) -> None:
    task = started(daemon, client)
    for begin in range(0, 400, 40):
        log.say(lines(begin, begin + 40))
    shown = zenos("logs", task).out
    told = re.match(NOTICE, shown)
    assert told is not None
    whole = lines(0, 400)
    assert shown[told.end() :] == whole[int(told[1]) :]
    # What was set aside as log.1 is shown too.
    assert len(whole) - int(told[1]) > log.path.stat().st_size
    # A follower that was away goes on where it stood, or is told.
    assert "".join(client.task(task).log(offset=len(whole) - 24)) == whole[-24:]
    handle = client.task(task)
    text = "".join(handle.log(offset=len(whole) - 12))
    assert (text, handle.log_offset) == (whole[-12:], len(whole))
    daemon.end(task)
    assert "".join(client.task(task).log(follow=True)) == shown


def test_what_is_followed_over_restarts_comes_once(daemon: Daemon, client: Client) -> None:
    """Also to who began before its first run; a character that one run left cut stays cut."""
    task = client.submit(["work"], retries=2)
    got: list[str] = []
    follower = threading.Thread(target=lambda: got.extend(task.log(follow=True)), daemon=True)
    follower.start()
    said = ""
    for run, raw in ((1, b"first \xe2\x82"), (2, b"second\n"), (3, b"third\n")):
        until(lambda run=run: daemon.double.view.tasks[task.id].generation == run)
        path = daemon.double.log_path(task.id, run)
        assert path is not None
        path.write_bytes(raw)
        said += raw.decode("utf-8", "ignore")
        until(lambda said=said: "".join(got).replace("\ufffd", "") == said)
        daemon.end(task.id, Outcome(exit_code=0 if run == 3 else 1))
    follower.join(20)
    assert not follower.is_alive()
    assert "".join(got) == "first \ufffdsecond\nthird\n"


RAW = b"\xff\xfe half \xc3\n\x1b]0;title\x07 bar\r\xf0\x9f\x98\x80 end\n"


def test_into_a_pipe_a_log_is_what_the_task_wrote(daemon: Daemon, client: Client, log: Log) -> None:
    task = started(daemon, client)
    log.say(RAW)
    for more in ((), ("--tail", "9")):
        assert CliRunner().invoke(app, ["logs", task, *more]).stdout_bytes == RAW
    assert "\ufffd\ufffd half" in zenos("logs", task, "--json").json["log"]


def test_on_a_terminal_a_log_cannot_drive_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    put_log(RAW.decode("utf-8", "surrogateescape"), screen)
    assert screen.getvalue() == (
        "\ufffd\ufffd half \ufffd\n\ufffd]0;title\ufffd bar\r\U0001f600 end\n"
    )
