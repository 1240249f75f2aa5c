"""A daemon that is there and doesn't answer is told of, one that takes its time is not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest

from tests.cli.conftest import until
from zenos.cli import common, patience
from zenos.client.address import start_time
from zenos.core.errors import ZenosError
from zenos.core.home import Home

HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Slow:
    """A daemon that leaves all requests open; answers: whether it says that it is there."""

    def __init__(self, home: Home, *, answers: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self._open: list[socket.socket] = []
        self.probes = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        pid = os.getpid()
        record = {"pid": pid, "start_time": start_time(pid), "url": self.url}
        home.daemon.write_bytes(msgspec.json.encode(record))
        home.token.write_text("x" * 32)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(accepted)
            if accepted.recv(1 << 16).startswith(b"GET /health"):
                self.probes += 1
                if self._answers:
                    accepted.sendall(HEALTHY)

    def close(self) -> None:
        """Cut who still waits."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)
        for accepted in self._open:
            accepted.close()


@pytest.fixture
def asking(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Slow, list[str]]]]:
    """Has a command ask such a daemon; gives that and what is said meanwhile."""
    said: list[str] = []
    monkeypatch.setattr(patience, "say", said.append)
    monkeypatch.setattr(patience, "AFTER_S", 0.01)
    made: list[tuple[Slow, threading.Thread]] = []

    def ask() -> None:
        with suppress(ZenosError), common.client() as client:
            client.retry_s = 0
            client.status()

    def start(*, answers: bool) -> tuple[Slow, list[str]]:
        monkeypatch.setattr(patience, "PROBE_S", 30.0 if answers else 0.05)
        daemon, thread = Slow(home, answers=answers), threading.Thread(target=ask)
        thread.start()
        made.append((daemon, thread))
        return daemon, said

    yield start
    for daemon, thread in made:
        daemon.close()
        thread.join(20)
        assert not thread.is_alive()


def test_a_daemon_that_does_not_answer_is_told_of(
    asking: Callable[..., tuple[Slow, list[str]]],
) -> None:
    daemon, said = asking(answers=False)
    until(lambda: said)
    assert said == [
        f"the daemon (process {os.getpid()}) at {daemon.url} does not answer; waiting for it"
    ]


def test_one_that_takes_its_time_for_an_answer_is_not(
    asking: Callable[..., tuple[Slow, list[str]]],
) -> None:
    daemon, said = asking(answers=True)
    until(lambda: daemon.probes >= 3)
    assert said == []
