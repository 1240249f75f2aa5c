"""Durable writes: the old or the new, whole, and nothing else left, whatever fails when."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zenos.core import durable, failpoints

POINTS = ["durable.write", "durable.fsync", "durable.rename"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order; random parts of names are written as `*`."""
    said: list[str] = []
    fsync, fdatasync, rename = os.fsync, os.fdatasync, os.rename

    def say(what: str, path: Path) -> None:
        shown = os.path.relpath(path, tmp_path)
        said.append(f"{what} {re.sub('[.]tmp-[0-9]+-[0-9a-f]+', '*', shown)}")

    def opened(fd: int) -> Path:
        return Path(f"/proc/self/fd/{fd}").readlink()

    def fsync_said(fd: int) -> None:
        path = opened(fd)
        say(f"fsync {path.stat().st_size} bytes of" if path.is_file() else "fsync", path)
        fsync(fd)

    def fdatasync_said(fd: int) -> None:
        say(f"fdatasync {os.fstat(fd).st_size} bytes of", opened(fd))
        fdatasync(fd)

    def rename_said(old: Path, new: Path) -> None:
        say("rename to", new)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync_said)
    monkeypatch.setattr(os, "fdatasync", fdatasync_said)
    monkeypatch.setattr(os, "rename", rename_said)
    monkeypatch.setattr(os, "replace", rename_said)
    return said


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    durable.write_file(path, b"old")
    durable.write_file(path, b"new" * 100_000)
    assert path.read_bytes() == b"new" * 100_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["f"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_afterwards(
    tmp_path: Path, asked: list[str]
) -> None:
    durable.write_file(tmp_path / "f", b"new")
    assert asked == ["fsync 3 bytes of *-f", "rename to f", "fsync ."]


def test_all_of_a_directory_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, asked: list[str]
) -> None:
    with durable.new_directory(tmp_path / "d") as directory:
        (directory / "sub").mkdir()
        for name in ("a", "sub/b"):
            (directory / name).write_text("x")
    *before, renamed, last = asked
    assert (renamed, last) == ("rename to d", "fsync .")
    assert sorted(before) == [
        "fsync *-d",
        "fsync *-d/sub",
        "fsync 1 bytes of *-d/a",
        "fsync 1 bytes of *-d/sub/b",
    ]


def test_what_others_wrote_and_what_is_appended_is_synced_itself(
    tmp_path: Path, asked: list[str]
) -> None:
    (tmp_path / "f").write_text("x")
    durable.sync_file(tmp_path / "f")
    with (tmp_path / "log").open("ab") as log:
        durable.append(log.fileno(), b"line")
        assert asked == ["fsync 1 bytes of f"]
        durable.sync(log.fileno())
    assert asked == ["fsync 1 bytes of f", "fdatasync 4 bytes of log"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["raise", "enospc"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, point: str, action: str
) -> None:
    path = tmp_path / "f"
    durable.write_file(path, b"old")
    failpoints.arm(f"{point}={action}@1")
    with pytest.raises(OSError, match="failpoint"):
        durable.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("point", ["durable.fsync", "durable.rename"])
def test_a_failed_directory_is_not_there(tmp_path: Path, point: str) -> None:
    failpoints.arm(f"{point}=raise@1")
    with (
        pytest.raises(OSError, match="failpoint"),
        durable.new_directory(tmp_path / "d") as directory,
    ):
        (directory / "a").write_text("x")
    assert names(tmp_path) == []


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    with durable.new_directory(tmp_path / "d") as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("x")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d" / "sub" / "a").read_text() == "x"


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path, point: str) -> None:
    path = tmp_path / "f"
    durable.write_file(path, b"old")
    code = (
        "import sys; from pathlib import Path; from zenos.core import durable;"
        "durable.write_file(Path(sys.argv[1]), b'new')"
    )
    environment = {**os.environ, failpoints.VARIABLE: f"{point}=kill@1"}
    ended = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_unknown_failpoints_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown label"):
        failpoints.arm("nonsense=kill@1")
