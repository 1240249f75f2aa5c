"""Where things are, whoever asks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from zenos.core.errors import InvalidError
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


@pytest.mark.parametrize("user", ["/nonexistent", "", "/dev/null"])
def test_a_user_without_a_directory_gets_none_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str
) -> None:
    monkeypatch.setenv("HOME", user)
    monkeypatch.delenv("ZENOS_HOME", raising=False)
    with pytest.raises(InvalidError) as caught:
        Home.default()
    assert caught.value.message.startswith(f"cannot use HOME={user}: there is no such dir")
    assert "set ZENOS_HOME" in caught.value.message
    assert not Home.default(elsewhere=True).root.exists()
    # A home that somebody names is made, wherever it is.
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "new"))
    assert Home.default().root == tmp_path / "new"


def test_who_has_no_home_at_all_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("ZENOS_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a uid without an entry
    with pytest.raises(InvalidError, match="cannot use HOME=~: there is no such directory"):
        Home.default()


def test_the_home_is_in_the_users_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ZENOS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.default().root == tmp_path / ".zenos"
    monkeypatch.setenv("ZENOS_HOME", "~/other")
    assert Home.default().root == tmp_path / "other"
