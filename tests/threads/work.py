"""Functions that the tests run on lanes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from zenos.threads import cancelled, report

BURN_S = 0.05


def square(x: int) -> int:
    return x * x


def fail_at_five(x: int) -> int:
    if x == 5:
        raise ValueError("five is refused")
    return x


def until_told(begun: str) -> str:
    """Run until told to end; `begun` is written when it has begun."""
    Path(begun).touch()
    while not cancelled():
        time.sleep(0.001)
    return "it was told"


def deaf(begun: str) -> None:
    """Never ends by itself."""
    Path(begun).touch()
    while True:
        time.sleep(60)


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.001)
    return path


def half_way(begun: str, go_on: str) -> None:
    end = time.thread_time() + BURN_S
    while time.thread_time() < end:
        pass
    report(0.5)
    Path(begun).touch()
    wait_for(go_on)


def die_once(marks: str) -> str:
    """Dies by SIGKILL the first time, and goes on the second."""
    mark = Path(marks)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def fail_twice(marks: str) -> int:
    """Fails twice; how often it was called."""
    with Path(marks).open("a") as file:
        file.write("x")
    calls = len(Path(marks).read_text())
    if calls < 3:
        raise OSError(f"failure {calls}")
    return calls


def note_and_fail(marks: str, item: int) -> int:
    """Writes down each call; item 3 fails the first time."""
    with Path(marks).open("a") as file:
        file.write(f"{item} ")
    if item == 3 and Path(marks).read_text().split().count("3") == 1:
        raise OSError("once")
    return item


def lock() -> object:
    return threading.Lock()


class OddError(Exception):
    """Pickles, but can't be made again from what was pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def odd() -> None:
    raise OddError("this", "that")


def leave() -> None:
    raise SystemExit(3)


def slow_once(marks: str) -> str:
    """Runs until it is told to end, the first time."""
    mark = Path(marks)
    if mark.exists():
        return "whole"
    mark.touch()
    while not cancelled():
        time.sleep(0.001)
    return "cut short"
