"""The door of a host stays open, whatever a program or the daemon says. Without any host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus import harness
from tests.bus.harness import Station, station
from tests.processes import until
from zenos.bus import operations
from zenos.bus.bodies import Encoded
from zenos.bus.operations import Sending
from zenos.calls import door
from zenos.calls.door import Door
from zenos.core.errors import DeadlineError, UnavailableError
from zenos.core.names import calls_topic

TOPIC = calls_topic("t1")


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    monkeypatch.setattr(harness, "GRANTS", {("t1", TOPIC)})
    with station(tmp_path / "bus") as made:
        monkeypatch.setattr(door, "connect", lambda: made.connect("t1"))
        yield made


@pytest.fixture
def opened(broker: Station) -> Iterator[Door]:
    made = Door(lambda: None)
    made.start()
    try:
        yield made
    finally:
        made.close()
        for link in made.arrived:
            link.close()


def come_in(broker: Station, fd: int, timeout_s: float = 30) -> None:
    """As a program does; the descriptor goes along."""
    bus = broker.connect()
    how = Sending(timeout_s=timeout_s)
    bus.run(operations.call(bus.session, TOPIC, Encoded(b"", descriptors=(fd,)), how))


def knock(broker: Station, opened: Door, timeout_s: float = 30) -> None:
    """Come in with one end of a socket, and see the other arrive."""
    ours, theirs = socket.socketpair()
    with ours:
        come_in(broker, theirs.detach(), timeout_s)
        until(lambda: opened.arrived)


def test_what_is_no_socket_keeps_nobody_else_out(broker: Station, opened: Door) -> None:
    with pytest.raises(UnavailableError, match="cannot answer"):
        come_in(broker, os.open(os.devnull, os.O_RDONLY))
    knock(broker, opened)


def test_a_daemon_that_says_no_is_asked_again(
    broker: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not know the task yet."""
    monkeypatch.setattr(harness, "GRANTS", set())
    made = Door(lambda: None)
    made.start()
    try:
        with pytest.raises(DeadlineError):  # and so the door has heard it, too
            knock(broker, made, 0.5)
        monkeypatch.setattr(harness, "GRANTS", {("t1", TOPIC)})
        knock(broker, made)
    finally:
        made.close()
        for link in made.arrived:
            link.close()
