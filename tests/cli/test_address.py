"""Finding the daemon: by a home whose `daemon.json` is damaged, and where there is no home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.api.conftest import TOKEN
from tests.cli.conftest import Daemon, zenos
from zenos.cli.daemon_process import running
from zenos.cli.errors import REFUSED, USAGE
from zenos.core.home import Home
from zenos.daemon import claim

DAMAGED = (b"", b"\0" * 64, b"\xff{}", b'{"pid": 1')


@pytest.mark.parametrize("content", DAMAGED)
def test_with_a_damaged_file_and_no_daemon_none_runs(home: Home, content: bytes) -> None:
    home.daemon.write_bytes(content)
    assert running(home) is None  # so `up` starts one, which writes it anew
    ran = zenos("status")
    assert ran.code == 5
    assert "none runs on" in ran.err
    assert zenos("down").code == 0


def test_with_a_damaged_file_and_a_daemon_its_process_is_named(home: Home) -> None:
    home.daemon.write_bytes(b"")
    with claim(home):
        ran = zenos("status")
    assert ran.code == 1
    assert f"kill {os.getpid()}" in ran.err


def test_without_a_directory_for_the_home_nothing_is_made(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As root every directory can be made, and a service's user often has /nonexistent."""
    nowhere = tmp_path / "nonexistent"
    monkeypatch.setenv("HOME", str(nowhere))
    monkeypatch.delenv("ZENOS_HOME")
    for command in ("up", "status", "ps"):
        ran = zenos(command)
        assert ran.code == USAGE
        assert ran.err.startswith(f"zenos: cannot use HOME={nowhere}: there is no such directory; ")
        assert "set ZENOS_HOME" in ran.err
    # Where the daemon is elsewhere, nobody needs a home.
    monkeypatch.setenv("ZENOS_HOST", daemon.url)
    monkeypatch.setenv("ZENOS_TOKEN", TOKEN)
    assert zenos("ps").code == 0
    assert not nowhere.exists()


@pytest.mark.parametrize("user", ["nonexistent", "file", ""])
def test_who_has_neither_a_home_nor_a_token_is_told_what_to_set(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / user) if user else "")
    monkeypatch.setenv("ZENOS_HOST", daemon.url)
    monkeypatch.delenv("ZENOS_HOME")
    monkeypatch.delenv("ZENOS_TOKEN", raising=False)
    ran = zenos("ps")
    assert ran.code == REFUSED
    assert ran.err.startswith("zenos: cannot find the token: set ZENOS_TOKEN")
