"""Functions that run on lanes."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import time
from pathlib import Path

import zenos
from zenos.threads import cancelled, report

BURN_S = 0.3


def increment(number: int) -> int:
    return number + 1


def pid_of(_: object) -> int:
    return os.getpid()


def note(path: str, line: str = "") -> None:
    """Append a line: that this ran is seen from outside."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def note_and_tell(path: str, line: str) -> str:
    note(path, line)
    return line


def note_and_wait(path: str, gate: str, line: str = "") -> str:
    """Say that it has begun, and go on once the gate is there."""
    note(path, line)
    while not Path(gate).exists() and not cancelled():
        time.sleep(0.005)
    return line


def note_wait_and_grow(path: str, gate: str, size: int) -> int:
    """Once the gate is there, want so many bytes, and have them until this is ended."""
    note(path, "begun")
    while not Path(gate).exists():
        time.sleep(0.005)
    kept = bytearray(size)
    while not cancelled():
        time.sleep(0.005)
    return len(kept)


def burn_half_way(gate: str) -> None:
    """Use some CPU time, say that half is done, and go on once the gate is there."""
    end = time.process_time() + BURN_S
    while time.process_time() < end:
        pass
    report(0.5)
    while not Path(gate).exists() and not cancelled():
        time.sleep(0.005)


def note_and_die(path: str) -> None:
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: str) -> str:
    """Die at the first time, succeed at the second."""
    first = not Path(path).exists()
    note(path)
    if first:
        os._exit(3)
    return "done"


def raise_value_error(text: str) -> None:
    raise ValueError(text)


def fail_at(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


def sleep_deaf(path: str) -> None:
    """Never look whether it should end."""
    note(path)
    time.sleep(600)


def fork() -> int:
    """Leave a child that returns, too."""
    return os.fork()


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def import_and_ask(name: str) -> object:
    """What a module says now that may be edited."""
    return importlib.import_module(name).answer()


def use_up_descriptors(size: int = 0) -> bytes:
    """No descriptor is left in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # it has those below
    return bytes(size)


def call_on(path: str) -> None:
    """Start a call, from within one."""
    zenos.call(note, path, "called", cpu=0.1, lanes=2, memory="64MiB").wait_accepted(60)


class OddError(Exception):
    """Pickles, but can't be made again from what was pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def odd() -> None:
    raise OddError("this", "that")
