"""What the daemon does when it is told something, or cannot go on."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import disks
from tests.crash.machine import Machine
from tests.processes import mentioning, until
from zenos.client import Client, connect
from zenos.core.errors import ZenosError
from zenos.core.task import State


def start(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end at once."""
    argv = [sys.executable, "-P", "-m", "zenos.daemon", "--home", str(home), "--port", "0"]
    return subprocess.run([*argv, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_is_told_to_end_ends_well(machine: Machine, number: signal.Signals) -> None:
    machine.start()
    release = machine.ran.with_name("release")
    machine.submit(1, f"while [ ! -e {release} ]; do sleep 0.01; done")
    until(lambda: machine.lines()[1])
    assert machine.process is not None
    machine.process.send_signal(number)
    assert machine.process.wait(30) == 0
    assert not machine.home.daemon.exists()
    # A program cannot be suspended: it goes on, and the next daemon finds it.
    machine.start()
    release.touch()
    assert machine.finish()["n1"].state is State.SUCCEEDED
    assert machine.lines()[1] == 1


def test_hangup_reads_the_settings_again(machine: Machine) -> None:
    machine.start()
    (machine.home.config).write_text("log_level: debug\n")
    assert machine.process is not None
    machine.process.send_signal(signal.SIGHUP)
    log = machine.home.daemon_log
    until(lambda: "settings read again: log_level debug" in log.read_text())
    # A grace time that no program outlives any more, and what needs a restart by name.
    machine.submit(2, "trap '' TERM; echo up; while :; do sleep 1; done")
    until(lambda: machine.lines()[2] == 1)
    machine.home.config.write_text("log_level: debug\ncancel_grace_s: 0.5\nnode: other\n")
    machine.process.send_signal(signal.SIGHUP)
    until(lambda: "settings read again: cancel_grace_s 0.5" in log.read_text())
    assert "needs a restart: node" in log.read_text()
    assert "restart: zygote" not in log.read_text()  # flags still win
    machine.ask(lambda client: client.cancel("n2"))
    until(lambda: "grace 0.5 s" in log.read_text())
    assert machine.finish()["n2"].state is State.CANCELLED
    machine.home.config.write_text("log_level: nonsense\n")
    machine.process.send_signal(signal.SIGHUP)
    until(lambda: "going on with the old settings" in log.read_text())
    machine.submit(1)
    assert machine.finish()["n1"].state is State.SUCCEEDED


def test_a_second_daemon_on_a_home_is_refused_and_the_first_is_unharmed(machine: Machine) -> None:
    machine.start()
    second = start(machine.home.root)
    assert second.returncode == 1
    assert "cannot start: a daemon (process" in second.stderr
    assert machine.answers()
    machine.submit(1)
    assert machine.finish()["n1"].state is State.SUCCEEDED


def test_a_taken_port_is_said(machine: Machine, tmp_path: Path) -> None:
    machine.start()
    with connect(home=machine.home.root) as client:
        port = client.address.url.rpartition(":")[2]
    other = start(tmp_path / "other", "--port", port)
    assert other.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in other.stderr
    assert "choose another with --port" in other.stderr


def test_a_database_of_a_newer_version_is_left_alone(machine: Machine) -> None:
    machine.start()
    machine.submit(1)
    machine.finish()
    machine.close()
    with sqlite3.connect(machine.home.database) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9999'")
    database.close()
    before = machine.home.database.read_bytes()
    refused = start(machine.home.root)
    assert refused.returncode != 0
    assert "cannot" in refused.stderr
    assert "newer" in refused.stderr
    assert machine.home.database.read_bytes() == before


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with disks.small_disk(request.node, tmp_path / "disk", "8m") as disk:
        yield disk.path


def fill(path: Path) -> None:
    """Write until there is no space left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def submit_many(client: Client) -> None:
    """More than fits into what a database keeps in hand."""
    for number in range(2, 200):
        client.submit(["true"], name=f"n{number}", key=f"k{number}", cpu=0.1)


def test_a_full_disk_refuses_tasks_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    machine = Machine(small_disk, "zygote=lazy")
    machine.ran = tmp_path / "ran"
    machine.ran.touch()
    try:
        machine.start()
        machine.submit(1)
        machine.finish()
        filler = small_disk / "filler"
        fill(filler)
        with connect(home=machine.home.root, retry_s=0) as client:
            with pytest.raises(ZenosError, match="cannot"):
                submit_many(client)
            assert client.status().pid
        filler.unlink()
        until(lambda: machine.submit(1000))
        tasks = machine.finish()
        assert tasks["n1000"].state is State.SUCCEEDED
        assert tasks["n1"].state is State.SUCCEEDED
    finally:
        machine.close()
    assert not mentioning(str(small_disk))


def test_a_home_that_is_read_only_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused = start(blocked / "home")
    assert refused.returncode == 1
    assert "cannot use the home" in refused.stderr
