"""The command's output: what cannot be written is told, what cannot be shown has a stand-in."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, until
from zenos.cli.streams import instead
from zenos.client import connect
from zenos.core.home import Home

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-m", "zenos"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **more}


def shell(line: str, *args: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """The command with its output led elsewhere: `line` is what stands behind it in a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$@" {line}', "sh", *PROGRAM, *args],
        env=environment(**more),
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "args",
    [
        ["run", "tiny", "-n", "3"],
        ["bus", "purge", "jobs/a"],
        ["bus", "send", "jobs/a", "-"],
        ["top"],
        ["ps"],
        ["train", "--model", "m"],
    ],
)
def test_a_closed_stream_is_as_if_it_led_nowhere(daemon: Daemon, args: list[str]) -> None:
    for closed, nowhere in (("<&-", "</dev/null"), ("2>&-", "2>/dev/null"), (">&-", ">/dev/null")):
        ran, like = shell(closed, *args), shell(nowhere, *args)
        assert (ran.returncode, ran.stderr) == (like.returncode, like.stderr), (closed, args)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["ps", "--help"],
        ["--version"],
        ["schema", "train"],
        ["ps"],
        ["status"],
        ["list"],
        ["logs", "t1"],
        ["logs", "-n", "1", "t1"],
        ["show", "tiny", "--plot"],
        ["run", "tiny", "hi"],
    ],
)
def test_a_full_disk_is_told_in_a_line(daemon: Daemon, args: list[str]) -> None:
    with connect() as client:
        client.submit(["work"])
    until(lambda: daemon.state("t1") == "running")
    (daemon.home.root / "t1-1.log").write_text("what it wrote\n")
    ran = shell(">/dev/full", *args)
    assert ran.stderr == b"zenos: cannot write the output: No space left on device\n"
    assert ran.returncode == 1


def test_with_json_it_is_told_as_json(daemon: Daemon) -> None:
    ran = shell(">/dev/full", "ps", "--json")
    assert json.loads(ran.stderr)["error"]["code"] == "storage"
    assert ran.returncode == 1


@pytest.mark.parametrize("args", [["--help"], ["schema", "train"], ["status"]])
def test_where_messages_cannot_be_written_either_the_exit_code_tells(
    daemon: Daemon, args: list[str]
) -> None:
    assert shell(">/dev/full 2>&1", *args).returncode == 1
    assert shell("2>/dev/full", "show", "nosuch").returncode == 3
    closed = shell("2>&-", "show", "nosuch")
    assert (closed.returncode, closed.stdout) == (3, b"")


@pytest.mark.parametrize("args", [["--help"], ["ps", "--help"], ["schema", "train"]])
def test_who_reads_no_further_is_told_nothing(home: Home, args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [*PROGRAM, *args], env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=120
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(
    "args", [["show", "tiny", "--plot"], ["ps"], ["ps", "--help"], ["plan"], ["list"]]
)
def test_where_only_ascii_can_be_written_that_is_enough(daemon: Daemon, args: list[str]) -> None:
    with connect() as client:
        client.submit(["train", "→", "…", "x" * 100], name="langsam")
    ran = shell("", *args, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    text = ran.stdout.decode("ascii")
    assert "?" not in text


def test_a_curve_of_ascii_tells_its_lines_apart(daemon: Daemon) -> None:
    text = shell("", "show", "tiny", "--plot", PYTHONIOENCODING="ascii").stdout.decode("ascii")
    assert "* training" in text
    assert "o held out" in text
    assert {line[0] for line in text.splitlines() if "+--" in line}
    dots = shell("", "show", "tiny", "--plot", PYTHONIOENCODING="utf-8").stdout.decode()
    assert any("\u2800" < letter <= "\u28ff" for letter in dots)


def test_json_loses_no_letter_where_only_ascii_can_be_written(daemon: Daemon) -> None:
    argv = ["grüße", "日本", "🦉", "\u2028"]
    with connect() as client:
        client.submit(argv)
    for encoding in ("ascii", "latin-1", "utf-8"):
        ran = shell("", "ps", "--json", PYTHONIOENCODING=encoding)
        assert json.loads(ran.stdout.decode(encoding))[0]["task"]["spec"]["work"]["argv"] == argv


def test_neither_does_a_line_of_json_of_a_stream(daemon: Daemon) -> None:
    with (
        subprocess.Popen(
            [*PROGRAM, "bus", "tail", "news", "--json"],
            env=environment(PYTHONIOENCODING="ascii"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        connect() as client,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"what happens on news" in process.stderr.readline()  # it listens
            client.bus.send("news", "grüße 🦉")
            line = process.stdout.readline().decode("ascii")
        finally:
            process.terminate()
    assert json.loads(line)["body"] == "grüße 🦉"


@pytest.mark.parametrize(
    ("more", "is_ascii"),
    [
        ({"LC_ALL": "C"}, True),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, False),
        ({"LANG": "C.UTF-8"}, False),
        ({}, False),
    ],
)
def test_a_terminal_of_the_plainest_locale_is_shown_ascii(
    daemon: Daemon, more: dict[str, str], is_ascii: bool
) -> None:
    with connect() as client:
        client.submit(["work"], name="x" * 60)
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm", **more)
    env["COLUMNS"] = "50"
    with subprocess.Popen([*PROGRAM, "ps"], env=env, stdout=theirs, stdin=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # so a terminal says that nobody writes any more
            pass
        os.close(ours)
        assert process.wait(120) == 0
    assert b"xx" in shown
    assert shown.isascii() == is_ascii
    assert ("…".encode() in shown) != is_ascii


def test_what_stands_in_is_as_wide() -> None:
    def ascii_of(text: str) -> str:
        return instead(UnicodeEncodeError("ascii", text, 0, len(text), ""))[0]

    assert ascii_of("█▌·") == "##."
    assert ascii_of("│─┤┐") == "|-++"
    assert ascii_of("\u280b\u2800") == "* "
    assert ascii_of("a→b…") == "a>b~"
    assert ascii_of("é日") == "???"
    assert ascii_of("e\u0301") == "e"
    assert ascii_of("\udc80") == "?"
