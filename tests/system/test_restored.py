"""Another database than the one that the home's runs are of: from a backup, or none at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.processes import until
from tests.system.harness import System, family
from zenos.core.task import State


def put_back(system: System, backup: Path | None) -> None:
    """The database as it was then; None: there is none."""
    for path in system.home.root.glob(f"{system.home.database.name}*"):
        path.unlink()
    if backup is not None:
        shutil.copy(backup, system.home.database)


def log_of(system: System, task: str) -> str:
    return system.ask(lambda client: "".join(client.task(task).log()))


@pytest.mark.parametrize("is_there", [True, False], ids=["a backup", "none"])
def test_a_new_task_with_an_old_number_is_no_old_task(
    system: System, tmp_path: Path, is_there: bool
) -> None:
    system.start()
    system.submit(1, "echo first")
    system.finish()
    system.shut_down("suspend")
    backup = shutil.copy(system.home.database, tmp_path / "backup")
    system.start()
    old = system.submit(2, "echo old; exit 7")
    assert system.finish()["n2"].state is State.FAILED
    system.shut_down("suspend")
    put_back(system, backup if is_there else None)
    system.start()
    numbers = [3, 4][: 1 if is_there else 2]  # as many as bring the number back
    assert [system.submit(n, f"echo new {n}") for n in numbers][-1] == old
    ended = system.finish()
    for number in numbers:
        task = ended[f"n{number}"]
        assert task.state is State.SUCCEEDED
        assert system.lines()[number] == 1
        assert log_of(system, task.id) == f"new {number}\n"
    # What is left of the old one can be found, and the log says where.
    aside = system.home.runs / f"{old}.unknown"
    assert (aside / "1" / "log").read_text() == "old\n"
    assert str(aside) in system.log
    # A task that the database knows keeps its log; of others it doesn't matter whose.
    assert (system.home.runs / "t1.unknown").exists() is not is_there
    system.restart()
    assert (aside / "1" / "log").exists()  # nor does the next start remove it


def test_what_still_runs_of_an_unknown_task_is_ended(system: System) -> None:
    system.start()
    system.submit(1, system.hold)
    system.runs(1)
    system.kill()
    put_back(system, None)
    assert any("sleep" in said or "/bin/sh" in said for said in running(system))
    system.start()
    until(lambda: not running(system))
    assert system.tasks() == {}


@pytest.mark.parametrize("knows", [True, False], ids=["with its database", "without"])
def test_a_copy_of_a_home_leaves_the_first_one_s_tasks_alone(
    system: System, tmp_path: Path, knows: bool
) -> None:
    system.start()
    system.submit(1, system.hold)
    workers = system.runs(1)
    (tmp_path / "second").mkdir()
    copy = System(tmp_path / "second", "zygote=lazy")
    shutil.copytree(system.home.root, copy.home.root, dirs_exist_ok=True, symlinks=True)
    for name in ("daemon.json", "sockets"):
        (copy.home.root / name).unlink(missing_ok=True)
    if not knows:
        put_back(copy, None)
    try:
        copy.start()
        assert bool(copy.tasks()) is knows
        assert system.runs(1) == workers
    finally:
        system.released.touch()
        copy.close()
    assert system.finish()["n1"].state is State.SUCCEEDED


def running(system: System) -> list[str]:
    """Commands of tasks' processes."""
    found = []
    for pid in family(system.home):
        try:
            said = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if "/bin/sh" in said:
            found.append(said)
    return found


def test_several_lives_of_one_number_are_set_aside_each(system: System) -> None:
    for _ in range(3):
        system.start()
        system.submit(1)
        system.finish()
        system.shut_down("suspend")
        put_back(system, None)
    system.start()
    names = sorted(path.name for path in system.home.runs.iterdir())
    assert names == ["t1.unknown", "t1.unknown-2", "t1.unknown-3"]
