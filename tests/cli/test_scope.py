"""A systemd scope for the daemon, by a systemd-run of our own making."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import mentioning, until
from zenos.cli import daemon_process, scope
from zenos.core.home import Home

GOOD = 'echo "$@" >> "$CALLS"\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The prefix on a machine with version 2 whose groups are not ours."""
    for folder in ("bin", "linger", "cg"):
        (tmp_path / folder).mkdir()
    own = tmp_path / "cg"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = tmp_path / "cg" / line.removeprefix("0::/")
    own.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cg" / "cgroup.controllers").write_text("cpu memory")
    (own / "cgroup.controllers").write_text("cpu memory")
    (own / "cgroup.subtree_control").touch()  # without cgroup.procs it is nobody's group
    (tmp_path / "linger" / getpass.getuser()).touch()
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def prefix(script: str = GOOD, enforcement: str = "auto") -> list[str]:
        program = tmp_path / "bin" / "systemd-run"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return scope.prefix(enforcement, tmp_path / "cg", tmp_path / "linger")

    return prefix


def test_where_systemd_makes_a_scope_the_daemon_gets_one(
    place: Callable[..., list[str]], tmp_path: Path
) -> None:
    found = place()
    assert found[0] == str(tmp_path / "bin" / "systemd-run")
    assert {"--user", "--scope", "Delegate=yes"} <= set(found)
    # The process that was started becomes the program: whoever waits for it has its pid.
    with subprocess.Popen([*found, "sh", "-c", "echo $$"], stdout=subprocess.PIPE) as process:
        assert process.communicate()[0] == b"%d\n" % process.pid


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 600", "exec /nowhere"])
def test_where_it_does_not_the_daemon_is_started_as_it_is(
    script: str, place: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "PROBE_S_MAX", 0.5)
    assert place(script) == []


def test_a_scope_without_memory_is_of_no_use(
    place: Callable[..., list[str]], tmp_path: Path
) -> None:
    for path in tmp_path.glob("cg/**/cgroup.controllers"):
        path.write_text("pids")
    assert place() == []


def test_a_daemon_that_would_end_with_the_session_gets_none(
    place: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "linger" / getpass.getuser()).unlink()
    assert place() == []
    assert not (tmp_path / "calls").exists()


def test_whoever_wants_the_watchdog_gets_no_scope(place: Callable[..., list[str]]) -> None:
    assert place(enforcement="watchdog") == []
    assert scope.enforcement_of(["--port=0", "--set=enforcement=watchdog"]) == "watchdog"
    assert scope.enforcement_of(["--port=0"]) == "auto"


def test_whose_own_groups_can_be_written_gets_no_scope(
    place: Callable[..., list[str]], tmp_path: Path
) -> None:
    for path in tmp_path.glob("cg/**/cgroup.subtree_control"):
        (path.parent / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert place() == []


def test_the_daemon_is_started_through_it(
    place: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place()
    monkeypatch.setattr(scope, "prefix", lambda enforcement: found)
    home = Home(tmp_path / "home")
    daemon = daemon_process.start(home, ["--port=0", "--set=zygote=lazy"])
    try:
        called = (tmp_path / "calls").read_text().splitlines()[-1]
        assert f"-m zenos.daemon --home {home.root}" in called
        assert daemon.is_alive
    finally:
        os.kill(daemon.pid, signal.SIGTERM)
        until(lambda: daemon_process._exit_code(daemon.pid) is not None)
    until(lambda: not mentioning(str(home.root)))
