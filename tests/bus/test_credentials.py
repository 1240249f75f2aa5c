"""The right token is not enough: the system says whose process is at the other end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.harness import Station, station
from tests.bus.memory_peers import in_fork
from zenos.bus.envelope import Hello
from zenos.bus.stream import greet

LONG_S = 60.0
NOBODY = 65534


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


def is_let_in(bus: Station, uid: int) -> bool:
    """Whether a process of that user, with the right token, is welcomed."""

    def enter() -> bool:
        os.chdir(bus.path.parent)  # the directories above may be closed to it
        os.setresuid(uid, uid, uid)
        hello = Hello(task="", generation=0, token="right", program=True)
        with greet(bus.path.name, hello, LONG_S) as connection:
            return bool(connection.recv(1))

    found = in_fork(enter)
    assert found in (0, 2), found
    return found == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_process_is_refused_though_it_knows_the_token(bus: Station) -> None:
    bus.path.parent.chmod(0o711)
    bus.path.chmod(0o666)
    assert is_let_in(bus, os.getuid())
    assert not is_let_in(bus, NOBODY)
