"""`daemon.json`, removed or damaged under a live daemon: it is found again, and only that one."""

from __future__ import annotations

import pytest

from tests.cli.conftest import zenos
from tests.processes import until
from tests.system.harness import System
from zenos.cli.daemon_process import running


@pytest.fixture
def up(system: System, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setenv("ZENOS_HOME", str(system.home.root))
    for name in ("ZENOS_HOST", "ZENOS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    system.start()
    return system


def test_up_finds_a_daemon_whose_file_was_removed(up: System) -> None:
    found = running(up.home)
    assert found is not None
    up.home.daemon.unlink()
    ran = zenos("up")
    assert ran.code == 0, ran.err
    assert f"at {found.url} (process {found.pid}" in ran.out
    assert running(up.home) == found
    assert "daemon.json was gone or damaged: written anew" in up.log


def test_down_ends_a_daemon_whose_file_is_damaged_and_leaves_none(up: System) -> None:
    up.home.daemon.write_bytes(b'{"pid": 1')
    ran = zenos("down")
    assert ran.code == 0, ran.err
    assert "zenos is down (suspend)" in ran.err
    assert up.gone() == 0
    assert not up.home.daemon.exists()
    until(lambda: "none runs on" in zenos("status").err)
