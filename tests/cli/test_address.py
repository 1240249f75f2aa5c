"""Finding the daemon: by a home whose `daemon.json` is damaged, and where there is no home."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import TOKEN
from tests.cli.conftest import Daemon, zenos
from zenos.cli import daemon_process
from zenos.cli.daemon_process import running
from zenos.cli.errors import NO_DAEMON, REFUSED, USAGE
from zenos.client import connect
from zenos.client.address import Address, DaemonFile
from zenos.client.transport import no_daemon
from zenos.core.errors import ConflictError, InvalidError
from zenos.core.holding import holder, write_holder
from zenos.core.home import Home
from zenos.core.processes import start_time
from zenos.core.wording import FieldError
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


@pytest.mark.parametrize("content", [None, *DAMAGED])
def test_with_no_file_or_a_damaged_one_and_a_daemon_its_process_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        home.daemon.write_bytes(content)
    monkeypatch.setattr(daemon_process, "OTHER_S", 0.0)
    with claim(home) as lock:
        write_holder(lock.fileno())
        for command in ("status", "down"):
            ran = zenos(command)
            assert ran.code == NO_DAEMON
            assert f"kill {os.getpid()}" in ran.err
            assert "zenos up" not in ran.err
        with pytest.raises(ConflictError, match=rf"a daemon \(process {os.getpid()}\) runs on"):
            claim(home)
    assert holder(home) is None
    assert "none runs on" in zenos("status").err


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


@pytest.mark.parametrize("variable", ["ZENOS_TOKEN", "ZENOS_HOST", "ZENOS_HOME"])
@pytest.mark.parametrize("value", ["", " "])
def test_what_a_script_failed_to_find_out_never_means_the_home_and_its_operator(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    ran = zenos("down")
    assert ran.code == USAGE
    assert ran.err.startswith(f"zenos: cannot use {variable}: it is set and empty; ")
    with pytest.raises(InvalidError, match=f"cannot use {variable}"):
        connect()


@pytest.mark.parametrize("what", ["host", "token"])
def test_an_empty_argument_never_means_another(daemon: Daemon, what: str) -> None:
    with pytest.raises(FieldError, match=f"cannot use an empty {what}") as caught:
        connect(**{what: ""})
    assert caught.value.param == what


TRAIN = ("train", "--model", "m", "--arch", "a", "--data")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("pull", "~nobody.here/x"), "cannot find ~nobody.here/x"),
        ((*TRAIN, "~nobody.here/x"), "'~nobody.here/x': nobody here is called so; write ./ before"),
        (("submit", "--cwd", "~nobody.here", "--", "x"), "'~nobody.here': nobody here is called"),
        (("export", "m", "~nobody.here/x"), "'~nobody.here/x': nobody here is called so"),
    ],
)
def test_whose_home_a_path_begins_with_is_there(
    daemon: Daemon, words: tuple[str, ...], says: str
) -> None:
    ran = zenos(*words)
    assert ran.code in (2, 3), ran.err
    assert says in ran.err


@pytest.mark.parametrize("words", [("pull", "."), (*TRAIN, "x"), ("submit", "--", "x")])
def test_who_types_in_a_directory_that_was_removed_is_told(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    ran = zenos(*words)
    assert ran.code == 2
    assert ran.err.endswith(": No such file or directory\n")
    assert "cannot use the path" in ran.err


def test_the_home_of_nobody_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENOS_HOME", "~nobody.here/zenos")
    ran = zenos("status")
    assert ran.code == USAGE
    assert "cannot use the home ~nobody.here/zenos: nobody here is called so" in ran.err


def test_of_a_daemon_that_is_just_dying_it_is_said_that_none_runs() -> None:
    """Its sockets are closed before it is gone."""
    with subprocess.Popen(["sleep", "600"]) as process:
        daemon = DaemonFile(
            pid=process.pid, start_time=start_time(process.pid), url="http://127.0.0.1:1"
        )
        address = Address(url=daemon.url, token="t", daemon=daemon, home="/home/you/.zenos")
        refused = OSError(111, "Connection refused")
        assert "at http://127.0.0.1:1 (" in no_daemon(address, refused).message
        process.kill()
        process.wait()
        says = "cannot reach a daemon: none runs on /home/you/.zenos; start it with 'zenos up'"
        assert no_daemon(address, refused).message == says
