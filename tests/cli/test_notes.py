"""Programs and directories that aren't there are told of when they are submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, zenos

FAILS = "if that stays so, the task will fail"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with a program, and with a file that is none."""
    directory = tmp_path / "programs"
    directory.mkdir()
    (directory / "good").write_text("#!/bin/sh\n")
    (directory / "good").chmod(0o755)
    (directory / "plain").write_text("text")
    (directory / "plain").chmod(0o644)
    return directory


def test_what_is_there_is_not_spoken_of(daemon: Daemon, programs: Path) -> None:
    where = ("--cwd", str(programs))
    for args in (["sh"], ["/bin/sh"], [*where, "./good"], ["--env", f"PATH={programs}", "good"]):
        ran = zenos("submit", *args)
        assert ran.code == 0
        assert "note" not in ran.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["no-such-program-anywhere"],
            "there is no program 'no-such-program-anywhere' in the PATH",
        ),
        (["--cwd", "{}/nowhere", "sh"], "there is no directory {}/nowhere"),
        (["--cwd", "{}", "./missing"], "there is no program {}/missing"),
        (["--cwd", "{}", "./plain"], "{}/plain may not be executed"),
        (["--env", "PATH={}", "sh"], "there is no program 'sh' in the PATH"),
    ],
)
def test_what_is_missing_is_said_and_the_task_accepted(
    daemon: Daemon, programs: Path, args: list[str], says: str
) -> None:
    given = [arg.format(programs) for arg in args]
    ran = zenos("submit", *given)
    assert (ran.code, ran.out) == (0, "t1\n")
    assert f"note: {says.format(programs)}" in ran.err
    assert FAILS in ran.err
    assert zenos("submit", "--array", "0-1", *given).err.count(FAILS) == 1
    assert zenos("submit", "--json", *given).err == ""


def test_of_a_name_as_long_as_a_book_the_beginning_is_shown(daemon: Daemon) -> None:
    said = zenos("submit", "x" * 50_000).err
    assert "note: there is no program 'xxx" in said
    assert FAILS in said
    assert len(said) < 1000


def test_of_a_file_of_tasks_each_is_told_once(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    argvs = ["none-1", "none-1", *(f"none-{n}" for n in range(2, 9)), "sh"]
    entries = (f"  n{n}: {{run: [{argv}]}}\n" for n, argv in enumerate(argvs))
    file.write_text("tasks:\n" + "".join(entries))
    ran = zenos("submit", str(file))
    assert ran.code == 0, ran.err
    assert ran.err.count(FAILS) == 5
    assert "note: 3 more like these" in ran.err


def test_another_machine_s_files_are_not_guessed_at(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENOS_HOST", daemon.url)
    monkeypatch.setenv("ZENOS_TOKEN", daemon.home.token.read_text())
    ran = zenos("submit", "no-such-program-anywhere")
    assert ran.code == 0, ran.err
    assert "note" not in ran.err
