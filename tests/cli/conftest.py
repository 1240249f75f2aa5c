"""A daemon for clients: the real API, kernel and loop in a thread, over a real socket and a home.

Workers, engine and registry are the API tests' doubles (tests/api/double.py).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

from tests.api.conftest import TOKEN, serving
from tests.api.double import Double, running
from zenos.api.app import create_app
from zenos.cli.main import app
from zenos.client import Client, connect
from zenos.client.address import start_time
from zenos.core.config import Config
from zenos.core.home import Home
from zenos.core.task import Outcome, TaskEvent
from zenos.core.wire import Progress

LIMIT_S = 20.0


def until(true: Callable[[], Any], within_s: float = LIMIT_S) -> Any:
    """Poll until it is true, with a deadline; gives what it was."""
    end = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen in time"
        threading.Event().wait(0.01)
    return value


class Daemon:
    """The API in a thread of its own. `double` is only to be touched through `do`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.url = ""
        self.double: Double
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with (
            running(self.home.root, Config()) as self.double,
            serving(create_app(self.double, Config(), TOKEN)) as self.url,
        ):
            self._ready.set()
            await self._stop.wait()

    def start(self) -> None:
        self._ready.clear()
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        self.publish(self.url)

    def publish(self, url: str) -> None:
        """Write where clients find it."""
        pid = os.getpid()
        record = {"pid": pid, "start_time": start_time(pid), "url": url, "version": "test"}
        self.home.daemon.write_bytes(msgspec.json.encode(record))
        self.home.token.write_text(TOKEN)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(LIMIT_S)
            assert not self._thread.is_alive()

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it in the daemon's thread."""

        async def call() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(LIMIT_S)

    def end(self, task: str, outcome: Outcome | None = None) -> None:
        """The task's worker ends."""
        generation = self.double.view.tasks[task].generation
        self.do(self.double.end, task, generation, outcome or Outcome(exit_code=0))

    def report(self, task: str, progress: Progress) -> None:
        """The task's worker reports."""
        self.do(self.double.view.report, task, progress)

    def state(self, task: str) -> str:
        return str(self.double.view.tasks[task].state)

    def history(self, task: str) -> list[TaskEvent]:
        future = asyncio.run_coroutine_threadsafe(self.double.events(0, 1000, task), self._loop)
        return future.result(LIMIT_S)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home that the environment names, and nothing else of it."""
    root = tmp_path / "home"
    root.mkdir()
    monkeypatch.setenv("ZENOS_HOME", str(root))
    for name in ("ZENOS_HOST", "ZENOS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Home(root)


@pytest.fixture
def daemon(home: Home) -> Iterator[Daemon]:
    made = Daemon(home)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with connect() as made:
        yield made


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def zenos(*args: str, stdin: str | None = None) -> Ran:
    """The command in this process."""
    result = CliRunner().invoke(app, list(args), input=stdin, prog_name="zenos")
    return Ran(result.exit_code, result.stdout, result.stderr)
