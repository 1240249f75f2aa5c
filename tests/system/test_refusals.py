"""Where a daemon cannot start: it says why in a line, and changes nothing."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.api.double import publish
from tests.processes import until
from tests.system.harness import System, family, popen, refused
from zenos.client import connect
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, UnfittableError
from zenos.core.home import Home
from zenos.core.specs import TrainSpec
from zenos.core.task import Kind, State
from zenos.models.registry import Registry

# What a daemon that is refused may still write: why.
LOGS = ("daemon.log",)


def content(home: Home) -> dict[str, str]:
    """Every file of a home with a digest of what is in it."""
    return {
        str(path.relative_to(home.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.root.rglob("*")
        if path.is_file() and path.name not in LOGS
    }


def besides_database(home: Home) -> dict[str, str]:
    """The same without the database, into which a daemon that runs writes what it measures."""
    own = home.database.name
    return {name: digest for name, digest in content(home).items() if not name.startswith(own)}


def test_of_daemons_that_start_at_once_one_wins_and_is_unharmed(system: System) -> None:
    processes = [popen(system.home.root) for _ in range(4)]
    try:
        until(lambda: sum(process.poll() is None for process in processes) == 1)
        (winner,) = (process for process in processes if process.poll() is None)
        for process in processes:
            if process is not winner:
                _, said = process.communicate()
                assert process.returncode == 1
                assert "cannot start: a daemon " in said
        until(system.home.daemon.exists)
        with connect(home=system.home.root) as client:
            assert client.status().pid == winner.pid
            assert client.submit(["true"], cpu=0.1).wait(30).state is State.SUCCEEDED
        winner.terminate()
        winner.communicate(timeout=60)
        assert winner.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_second_daemon_changes_nothing_of_the_first(system: System) -> None:
    system.start()
    system.submit(1, system.hold)
    workers = system.runs(1)
    before = besides_database(system.home)
    assert "'zenos status' shows it" in refused(system.home.root)
    assert besides_database(system.home) == before
    assert system.answers()
    assert system.pids("started") == workers
    system.released.touch()
    assert system.finish()["n1"].state is State.SUCCEEDED


def test_a_taken_port_changes_nothing_of_the_home(system: System) -> None:
    system.start()
    with connect(home=system.home.root) as client:
        port = client.address.url.rpartition(":")[2]
    place = system.home.root.with_name("other")
    place.mkdir()
    other = System(place, "zygote=lazy")
    other.start()
    other.submit(1)
    other.finish()
    assert other.shut_down("leave") == 0
    before = content(other.home)
    said = refused(other.home.root, "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another" in said
    assert content(other.home) == before
    other.start()
    assert other.task(1).state is State.SUCCEEDED
    other.close()


@pytest.fixture
def read_only(system: System) -> Iterator[System]:
    """A system that has run, whose home can only be read now, also by root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    system.start()
    system.submit(1)
    system.finish()
    assert system.shut_down("leave") == 0
    path = str(system.home.root)
    mounted = subprocess.run(["mount", "--bind", path, path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine doesn't mount")
    try:
        remount = ["mount", "-o", "remount,bind,ro", path]
        if subprocess.run(remount, capture_output=True).returncode:
            pytest.skip("this machine doesn't mount read-only")
        yield system
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_home_that_can_only_be_read_is_said(read_only: System) -> None:
    before = content(read_only.home)
    said = refused(read_only.home.root)
    assert f"cannot use the home {read_only.home.root}: Read-only file system" in said
    assert "ZENOS_HOME" in said
    assert content(read_only.home) == before


@pytest.mark.parametrize("name", ["", "runs", "models"])
def test_a_file_in_the_way_is_said(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home")
    path = home.root / name if name else home.root
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    assert f"cannot use the home {home.root}" in refused(home.root)
    assert path.read_text() == "precious"


def set_revision(home: Home, revision: str) -> str:
    """Let another version have written the database; which it was before."""
    with closing(sqlite3.connect(home.database)) as database, database:
        (before,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    return str(before)


def test_a_newer_database_is_refused_untouched_and_its_own_version_goes_on(system: System) -> None:
    system.start()
    system.submit(1, system.hold)
    workers = system.runs(1)
    # Not ended in order: so it isn't known to be whole, and must not be called so by us.
    system.kill()
    revision = set_revision(system.home, "v9999")
    before = content(system.home)
    said = refused(system.home.root)
    assert "it was written by a newer zenos" in said
    assert "install that version" in said
    assert refused(system.home.root) == said
    assert content(system.home) == before
    assert set_revision(system.home, revision) == "v9999"
    system.start()
    assert system.pids("started") == workers
    system.released.touch()
    assert system.finish()["n1"].state is State.SUCCEEDED
    assert system.lines() == {1: 1}


def test_a_damaged_database_is_refused_every_time(system: System) -> None:
    system.start()
    for number in range(30):
        system.submit(number)
    system.finish()
    system.kill()
    with closing(sqlite3.connect(system.home.database)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = database.execute("PRAGMA page_size").fetchone()
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'tasks'"
            " AND sql IS NOT NULL"
        ).fetchone()
    # An index's page with other entries than its table: only a check finds that.
    with system.home.database.open("r+b") as file:
        file.seek((root - 1) * page + 64)
        file.write(b"\xff" * (page - 64))
    for _ in range(2):
        said = refused(system.home.root)
        assert "it is damaged" in said or "malformed" in said
    assert not family(system.home)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "zygot=lazy"], "did you mean 'zygote'?"),
        (["--set", "zygote=often"], "zygote"),
        (["--set", "cpus=nan"], "cpus"),
        (["--memory", "-1"], "-1"),
        (["--port", "70000"], "65535"),
    ],
)
def test_a_wrong_setting_is_said_before_anything_is_made(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    home = Home(tmp_path / "home")
    assert said in refused(home.root, *arguments)
    assert not home.root.exists()


def test_a_misspelt_architecture_is_refused_at_once(system: System) -> None:
    system.start()
    for arch in ("llama-nanno", "lama-micro", "bert-mino"):
        with pytest.raises(InvalidError, match=f"cannot build '{arch}'.* did you mean"):
            system.ask(lambda client, arch=arch: client.create("m", arch))  # type: ignore[misc]
        with pytest.raises(InvalidError, match=f"cannot build '{arch}'.* did you mean"):
            system.ask(
                lambda client, arch=arch: client.train(model="m", arch=arch, data="x")  # type: ignore[misc]
            )
    for arch in ("resnet", "whisper"):  # which transformers has, for pictures and for speech
        with pytest.raises(InvalidError, match=f"cannot build '{arch}': it is no language model"):
            system.ask(lambda client, arch=arch: client.create("m", arch))  # type: ignore[misc]
    assert system.tasks() == {}


def test_a_model_that_cannot_be_served_is_refused_before_anything_is_started(
    system: System,
) -> None:
    system.start()
    made = system.ask(lambda client: client.create("reader", "bert-nano").wait(60))
    assert made.state is State.SUCCEEDED, made
    says = "cannot serve reader:1: a bert model doesn't generate text"
    with pytest.raises(InvalidError, match=says):
        system.ask(lambda client: client.generate("reader", "hello", max_tokens=1).text())
    with pytest.raises(InvalidError, match=says):
        system.ask(lambda client: client.serve("reader"))
    system.ask(lambda client: client.create("mute", "llama-nano").wait(60))
    with pytest.raises(InvalidError, match="it has no tokenizer"):
        system.ask(lambda client: client.serve("mute"))
    assert not system.ask(lambda client: client.deployments())
    assert [task.kind for task in system.tasks().values() if task.kind is Kind.SERVE] == []


def test_a_request_for_a_model_that_never_fits_is_refused_at_once_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    system = System(tmp_path, "zygote=lazy", "memory=600MiB", "cpus=2")
    (tmp_path / "source").mkdir()
    publish(Registry(system.home.models), tmp_path / "source", "tiny")
    try:
        system.start()
        fits = "cannot ever fit: wants 1 GiB of memory, the largest node has 600 MiB"
        with pytest.raises(UnfittableError, match=fits):
            system.ask(lambda client: client.generate("tiny", "hello", max_tokens=1).text())
        assert not system.ask(lambda client: client.deployments())
        assert not system.tasks()
    finally:
        system.close()


def test_a_task_that_its_node_came_back_too_small_for_says_so(tmp_path: Path) -> None:
    system = System(tmp_path, "zygote=lazy", "cpus=1")
    try:
        system.start()
        system.submit(1, system.hold, cpu=1)
        system.submit(2, cpu=1)
        assert system.shut_down("leave") == 0
        with popen(system.home.root, "--cpus", "0.5") as smaller:
            until(system.home.daemon.exists)
            with connect(home=system.home.root) as client:
                # What the last daemon remembered of the node holds until this one has looked.
                until(lambda: client.look("n2").waits != "waits for 1 CPU (1 of 1 in use)")
                waiting = client.look("n2").waits
            smaller.terminate()
            smaller.communicate(timeout=60)
        assert waiting == "cannot ever fit: wants 1 CPU, the largest node has 0.5"
        system.released.touch()
        assert system.finish()["n2"].state is State.SUCCEEDED
    finally:
        system.close()


def test_a_training_s_models_are_those_of_its_submission_and_stay_till_its_end(
    system: System, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 500)
    system.start()
    system.ask(lambda client: client.create("m", "llama-nano").wait(60))
    (cpus,) = (node.node.capacity.cpu for node in system.ask(lambda client: client.nodes()))
    with pytest.raises(NotFoundError, match="cannot find the model 'mm'"):
        system.ask(lambda client: client.train(model="x", base="mm", data=str(text)))
    system.submit(1, system.hold, cpu=cpus / 1000)
    waiting = system.ask(lambda client: client.train(model="x", base="m", data=str(text)).id)
    system.ask(lambda client: client.create("m", "llama-nano", seed=2).id)
    work = next(t.spec.work for t in system.tasks().values() if t.id == waiting)
    assert isinstance(work, TrainSpec)
    assert work.base == "m:1"
    with pytest.raises(ConflictError, match=rf"cannot remove m:1: .*\(zenos cancel {waiting}\)"):
        system.ask(lambda client: client.remove("m:1"))
    system.ask(lambda client: client.cancel(waiting))
    until(lambda: system.ask(lambda client: client.look(waiting)).task.is_ended)
    system.ask(lambda client: client.remove("m:1"))
    system.released.touch()
    system.finish()
