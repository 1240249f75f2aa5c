"""Runs what a page tells its reader to type, and compares what the page says will be shown.

A fence is run when the line `<!-- run -->` stands before it; `<!-- file: NAME -->` writes it into a
file. In a `console` fence a line that begins with `$ ` is a command, `> ` goes on with it, and what
follows is what both of its outputs show:

- a line `…` stands for any lines, `…` inside a line for any text;
- numbers, with their units, stand for numbers (ids, ports, times and losses differ), and runs of
  spaces for one;
- a command that fails is one whose last line begins with `zenos: `; every other one ends with 0.

A `python` fence is run by the same interpreter as the tests. All of a page runs in one shell.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

COMMAND_TIMEOUT_S = 120.0
_MARK = re.compile(r"^<!-- (run|file: (?P<file>\S+)) -->$")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
_CLOCK = re.compile(r"\b\d+(?::\d\d)+\b")
# Units change with the number before them: 950 ms or 1.2 s, 900 KiB or 1.1 MiB.
_UNIT = re.compile(r"# (?:s|ms|min|h|B|KiB|MiB|GiB|M|k)\b")


class Step(NamedTuple):
    """One thing to do: `kind` is `command`, `python` or `file` (then `text` is its content)."""

    line: int
    kind: str
    text: str
    shown: list[str]
    name: str = ""


def steps(page: Path) -> list[Step]:
    """All steps of a page in order. Fails on a mark without a fence."""
    found: list[Step] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        mark = _MARK.match(lines[at].strip())
        at += 1
        if mark is None:
            continue
        begin = at
        assert lines[at].strip().startswith("```"), f"{page.name}:{at}: a mark without a fence"
        language = lines[at].strip().removeprefix("```")
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
        body = lines[at + 1 : end]
        if mark["file"]:
            found.append(Step(begin, "file", "\n".join(body) + "\n", [], mark["file"]))
        elif language == "python":
            found.append(Step(begin, "python", "\n".join(body) + "\n", []))
        else:
            found += _commands(body, begin + 2)
        at = end + 1
    return found


def _commands(body: list[str], first: int) -> list[Step]:
    found: list[Step] = []
    for offset, line in enumerate(body):
        if line.startswith("$ "):
            found.append(Step(first + offset, "command", line[2:], []))
        elif line.startswith("> ") and found and not found[-1].shown:
            last = found[-1]
            found[-1] = last._replace(text=f"{last.text}\n{line[2:]}")
        else:
            found[-1].shown.append(line)
    return found


# What a command says only where it takes long: a page needn't show it.
PASSING = frozenset({"waiting for running work; Ctrl-C goes away, the daemon ends by itself"})


def matches(shown: list[str], said: str) -> bool:
    """Whether `said` is what a page shows; see the module's words for how it is compared."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else _line_pattern(line) + r"\n" for line in shown
    )
    lines = [line for line in said.splitlines() if line in shown or line not in PASSING]
    normal = "".join(f"{_normal(line)}\n" for line in lines)
    return re.fullmatch(pattern, normal) is not None


def _line_pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in _normal(line).split("…"))


def _normal(line: str) -> str:
    text = _CLOCK.sub("#", " ".join(line.split()))
    return _UNIT.sub("#", _NUMBER.sub("#", text))


class Shell:
    """One bash for a whole page, in a directory of its own with an environment of its own."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self._script = directory.parent / "step"
        self._output = directory.parent / "output"
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, step: Step) -> tuple[int, str]:
        """The exit code, and both outputs in the order in which they came."""
        if step.kind == "file":
            path = self.directory / step.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            return 0, ""
        text = step.text
        if step.kind == "python":
            program = self.directory.parent / "program.py"
            program.write_text(step.text, encoding="utf-8")
            text = shlex.join([sys.executable, str(program)])
        self._script.write_text(f"{text}\n", encoding="utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f". {self._script} >{self._output} 2>&1 </dev/null; echo $?\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        answer = _read_line(self._process.stdout.fileno(), COMMAND_TIMEOUT_S)
        return int(answer), self._output.read_text(encoding="utf-8")


def _read_line(fd: int, timeout_s: float) -> str:
    end = time.monotonic() + timeout_s
    read = b""
    while not read.endswith(b"\n"):
        assert select.select([fd], [], [], max(end - time.monotonic(), 0))[0], "it takes too long"
        part = os.read(fd, 64)
        assert part, "the shell has ended"
        read += part
    return read.decode()
