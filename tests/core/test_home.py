"""Where things are, whoever asks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from zenos.core.home import Home


def test_sockets_are_where_the_first_daemon_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    short = Path("/tmp") / f"zt-{home.id[:8]}"
    try:
        (short / "run").mkdir(parents=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "run"))
        home.write_sockets()
        place = home.bus
        assert place.is_relative_to(short / "run")
        # A worker's environment is scrubbed, and the next daemon may come from another session.
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert home.bus == place
        home.write_sockets()
        assert home.bus == place
        # The session has ended, and its folder has gone with it.
        (short / "run").rmdir()
        home.write_sockets()
        assert home.bus != place
    finally:
        shutil.rmtree(short)


def test_a_copy_of_a_home_has_sockets_of_its_own(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    home.write_sockets()
    shutil.copytree(home.root, tmp_path / "copy")
    assert Home(tmp_path / "copy").bus != home.bus
