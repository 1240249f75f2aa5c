"""As whom a program uses the bus, and of which home."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenos.bus import address
from zenos.core.errors import InvalidError, NoDaemonError
from zenos.core.home import Home
from zenos.core.specs import OWN_VARIABLES, ProgramSpec


@pytest.fixture
def task_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """This is a program in the first generation of the task t1."""
    home = Home(tmp_path / "daemon")
    (home.runs / "t1").mkdir(parents=True)
    (home.runs / "t1" / "1.json").write_text('{"token": "of the task"}')
    home.token.write_text("of the user")
    for name, value in {"HOME": home.root, "TASK_HOME": home.root, "TASK": "t1"}.items():
        monkeypatch.setenv(f"ZENOS_{name}", str(value))
    monkeypatch.setenv("ZENOS_GENERATION", "1")
    return home


def test_a_program_is_its_task_in_the_home_of_that_task(
    task_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, hello = address.find()
    assert (where(), hello.task, hello.token) == (task_home.bus, "t1", "of the task")
    (tmp_path / "link").symlink_to(task_home.root)
    monkeypatch.setenv("ZENOS_HOME", str(tmp_path / "link"))
    assert address.find()[1].task == "t1"
    monkeypatch.delenv("ZENOS_TASK_HOME")  # a worker of an older version
    monkeypatch.setenv("ZENOS_HOME", str(task_home.root))
    assert address.find()[1].task == "t1"


def test_in_a_home_of_its_own_it_is_the_user(
    task_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Home(tmp_path / "other")
    other.root.mkdir()
    monkeypatch.setenv("ZENOS_HOME", str(other.root))
    with pytest.raises(NoDaemonError, match="zenos up"):
        address.find()
    other.token.write_text("of the other")
    where, hello = address.find()
    assert (where(), hello.task, hello.token) == (other.bus, "", "of the other")


@pytest.mark.parametrize("name", [*OWN_VARIABLES, "ZENOS_X", "ZENOS_TOKEN", "ZENOS_"])
def test_what_tells_a_program_its_task_cannot_be_set(name: str) -> None:
    with pytest.raises(InvalidError, match=f"^cannot set {name} for a task"):
        ProgramSpec(argv=["true"], env={name: "x"}).check()
