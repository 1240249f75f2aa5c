"""Finding the daemon by a home whose `daemon.json` is damaged, as after a power cut."""

from __future__ import annotations

import os

import pytest

from tests.cli.conftest import zenos
from zenos.cli.daemon_process import running
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
