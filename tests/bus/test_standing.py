"""The bus's socket: removed under a live daemon, and moved while none is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.crash.test_training import WORDS, step, train
from tests.processes import until
from tests.system.harness import System
from zenos.bus.channel import Channel
from zenos.workers import runs


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Makes runtime directories, short as they must be, and has new daemons use them."""
    root = Path(mkdtemp(prefix="zt-", dir="/tmp"))

    def make(name: str) -> Path:
        (root / name).mkdir(exist_ok=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(root / name))
        return root / name

    yield make
    shutil.rmtree(root)


@pytest.fixture
def system(tmp_path: Path, runtime: Callable[[str], Path]) -> Iterator[System]:
    runtime("one")
    made = System(tmp_path, "zygote=lazy")
    yield made
    made.close()


@pytest.fixture
def channel(system: System) -> Iterator[Channel]:
    """The bus, as a worker of a program that goes on has it."""
    system.start()
    task = system.submit(1, system.hold)
    system.runs(1)
    token = runs.read_token(system.home, task, 1)
    assert token is not None
    made = Channel(lambda: system.home.bus, task, 1, token)
    until(lambda: made.connected)
    yield made
    made.close()
    system.released.touch()
    system.finish()


def cut(channel: Channel) -> None:
    channel._cut(channel._socket)


def test_a_socket_that_is_removed_is_made_again(system: System, channel: Channel) -> None:
    place = system.home.sockets
    shutil.rmtree(place)
    until(lambda: system.home.bus.is_socket())
    assert channel.connected  # whoever was there has noticed nothing
    cut(channel)
    until(lambda: channel.connected)
    assert system.home.sockets == place
    assert "WARNING zenos.bus.standing: the bus's socket" in system.log
    # Another's in its place is not ours.
    system.home.bus.unlink()
    system.home.bus.touch()
    until(lambda: system.home.bus.is_socket())


def test_without_its_runtime_directory_it_moves(
    system: System, channel: Channel, runtime: Callable[[str], Path]
) -> None:
    old = system.home.sockets
    shutil.rmtree(old.parent)
    until(lambda: system.home.sockets != old and system.home.bus.is_socket())
    cut(channel)
    until(lambda: channel.connected)


def test_when_somebody_else_has_taken_its_directory_it_moves(
    system: System, channel: Channel
) -> None:
    old = system.home.sockets
    shutil.rmtree(old)
    old.touch()
    until(lambda: system.home.sockets != old and system.home.bus.is_socket())
    cut(channel)
    until(lambda: channel.connected)


def test_an_adopted_worker_finds_the_place_to_which_it_has_moved(
    system: System, runtime: Callable[[str], Path], tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "1.txt").write_text(" ".join(WORDS * 300))
    system.start()
    task = train(system, text, "moved", steps=100_000)
    until(lambda: step(system, task) >= 5, 120)
    old = system.home.sockets
    system.kill()
    shutil.rmtree(old.parent)
    runtime("two")
    system.start()
    assert system.home.sockets.parent.name == "two"
    # It reports to the daemon that it never met.
    until(lambda: step(system, task) >= 5, 60)
    assert system.tasks()["moved"].generation == 1
    system.ask(lambda client: client.cancel(task))
    assert system.finish()["moved"].generation == 1
