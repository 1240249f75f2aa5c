"""How a program finds its host while another one is in the way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from tests.system.harness import System
from zenos.calls import finding, link
from zenos.calls.finding import Place, Wanted
from zenos.core.errors import UnavailableError
from zenos.core.home import Home

WANTED = Wanted(1, 0, None, 1, None, 600)
STOPPED = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def stopped_program(home: Home) -> Iterator[None]:
    """One that has the lock, and does nothing more."""
    home.calls.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(home.calls / "finding.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
        yield
        program.kill()


def test_a_program_that_keeps_the_lock_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.setattr(finding, "LOCK_S", 0.02)
    with stopped_program(home), pytest.raises(UnavailableError) as caught:
        finding.come_in(Place(home), WANTED.spec(), b"me", lambda: False)
    assert f"another program has had {home.calls / 'finding.lock'} locked" in caught.value.message


def test_who_gives_up_waits_no_longer_for_the_lock(tmp_path: Path) -> None:
    home, looks = Home(tmp_path), iter([False, True])
    with stopped_program(home), pytest.raises(UnavailableError, match="the program ends"):
        finding._host(Place(home), WANTED.spec(), lambda: next(looks))


def test_who_waits_behind_many_is_not_told_of_one_that_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have their turns, however long that takes all together."""
    lock, turns, now = tmp_path / "finding.lock", 0, 0.0

    def by_another(*_: object) -> bool:
        nonlocal turns, now
        turns, now = turns + 1, now + finding.LOCK_S / 2
        os.utime(lock, ns=(turns, turns))
        return turns > 20

    monkeypatch.setattr(finding, "_taken", by_another)
    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(finding, "time", clock)
    with finding._alone(lock, lambda: False):
        assert turns == 21
        assert lock.stat().st_mtime_ns > 21, "who waits for this one sees that it has its turn"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each look at the lock says, from now on."""
    looks: list[bool] = []
    taken = finding._taken

    def look(lock: int, path: Path) -> bool:
        looks.append(taken(lock, path))
        return looks[-1]

    monkeypatch.setattr(finding, "_taken", look)
    return looks


def test_calls_wait_for_the_lock_and_end_with_an_error_if_it_stays(
    shared: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = shared.home.calls / "finding.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(finding, "LOCK_S", 0.02)
        looks = counted(monkeypatch)
        waiting = zenos.call(work.increment, 1, lanes=2)
        until(lambda: len(looks) > 10)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert waiting.result(60) == 2
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(link, "PATIENCE_S", 0.0)
        with pytest.raises(UnavailableError, match="another program has had"):
            zenos.call(work.increment, 1, lanes=3).result(60)
