"""SQLite as the store: crashes, full disks, other versions, damage."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa

from tests import disks
from tests.store.test_contract import event, task
from zenos.core.actions import Changes
from zenos.core.errors import StorageError
from zenos.store import rows, sqlite, tables
from zenos.store.sqlite import SqliteStore, refuse_network_file_system


def migrate(path: Path, revision: str) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(sqlite.MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)
    engine.dispose()


async def test_a_database_of_the_first_version_is_copied_and_goes_on(tmp_path: Path) -> None:
    path, copy = tmp_path / "db", tmp_path / f"db.before-{tables.REVISION}"
    migrate(path, "0001")
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        row = rows.task_row(task(7))
        record = json.loads(str(row["record"]))
        for later in ("start_failures", "saved_step"):  # fields that it didn't have yet
            del record[later]
        connection.execute(tables.tasks.insert(), {**row, "record": json.dumps(record)})
    engine.dispose()
    store = await SqliteStore.open(path)
    assert (await store.load()).tasks == {"t7": task(7)}
    assert await store.load_messages() == []
    await store.close()
    kept = sqlite3.connect(copy)
    assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert kept.execute("SELECT id FROM tasks").fetchall() == [("t7",)]
    kept.close()


async def test_the_migrations_make_the_same_tables_as_a_new_database(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "new")
    await store.close()
    migrate(tmp_path / "migrated", "head")

    def schema(name: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(tmp_path / name)
        found = []
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'"):
            found += [
                (table, *row[1:]) for row in connection.execute(f"PRAGMA table_info({table})")
            ]
        found += connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type='index'")
        found += connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.close()
        return sorted(found, key=repr)

    assert schema("new") == schema("migrated")


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    store = await SqliteStore.open(path)
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="newer zenos"):
        await SqliteStore.open(path)


@pytest.mark.parametrize("name", ["a b", "what?mode=ro", "#1", "100%41", "名前", "a:b@c"])
async def test_a_directory_may_be_called_anything(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "db"
    path.parent.mkdir()
    store = await SqliteStore.open(path)
    await store.commit(Changes(tasks={"t1": task(1)}))
    assert set((await store.load()).tasks) == {"t1"}
    await store.close()
    assert path.is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


async def test_a_damaged_database_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "db"
    store = await SqliteStore.open(path)
    await store.commit(Changes(tasks={f"t{n}": task(n) for n in range(1, 400)}))
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = 'no' WHERE name = 'clean'")
    connection.commit()
    connection.close()
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 8192 * 4096
    raw[middle : middle + 4096 * 4] = os.urandom(4096 * 4)
    path.write_bytes(raw)
    with pytest.raises(StorageError, match="cannot use the database"):
        await SqliteStore.open(path)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database, whatever its name says" * 200)
    with pytest.raises(StorageError, match="cannot use the database"):
        await SqliteStore.open(tmp_path / "db")


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.store.test_contract import event, task
from zenos.core.actions import Changes
from zenos.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    for n in range(1, 100000):
        await store.commit(Changes(tasks={f"t{n}": task(n)}, events=[event(n)], next_seq=n + 1))
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_committed_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    for until in (1, 7, 23):
        path = tmp_path / f"db{until}"  # a writer counts anew, and may have come far before
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = 0
            while said < until:
                said = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split())])
        store = await SqliteStore.open(path)
        snapshot = await store.load()
        assert {f"t{n}" for n in range(1, said + 1)} <= set(snapshot.tasks)
        assert len(await store.events(0, 10**6)) == len(snapshot.tasks) == snapshot.next_seq - 1
        await store.close()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with disks.small_disk(request.node, tmp_path / "disk", "1m") as disk:
        yield disk.path


async def test_a_full_disk_fails_the_commit_whole_and_it_can_be_done_again(
    small_disk: Path,
) -> None:
    store = await SqliteStore.open(small_disk / "db")
    await store.commit(Changes(tasks={"t1": task(1)}, next_task=2))
    (small_disk / "filler").write_bytes(b"x" * (small_disk.stat().st_blksize * 150))
    large = Changes(tasks={f"t{n}": task(n) for n in range(2, 900)}, next_task=900)
    with pytest.raises(StorageError, match="cannot use the database"):
        await store.commit(large)
    snapshot = await store.load()
    assert (list(snapshot.tasks), snapshot.next_task) == (["t1"], 2)
    (small_disk / "filler").unlink()
    small = Changes(tasks={f"t{n}": task(n) for n in range(2, 20)}, next_task=20)
    await store.commit(small)
    assert len((await store.load()).tasks) == 19
    await store.close()


async def test_a_clean_end_leaves_one_file(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    await store.commit(Changes(tasks={f"t{n}": task(n) for n in range(1, 400)}))
    assert (tmp_path / "db-wal").stat().st_size > 0
    await store.close()
    left = {entry.name: entry.stat().st_size for entry in tmp_path.iterdir()}
    assert left.pop("db") > 0
    assert not any(left.values()), left


async def test_it_is_durable_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "db"
    store = await SqliteStore.open(path)
    with store._write.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    await store.commit(Changes(events=[event(1)]))
    await store.close()
    assert not path.with_name("db-wal").exists()


def test_a_network_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /mnt/share rw - nfs4 server:/share rw\n"
    )
    with pytest.raises(StorageError, match="network file system"):
        refuse_network_file_system(Path("/mnt/share/home/db"), mounts)
    refuse_network_file_system(Path("/mnt/shared/db"), mounts)


def test_the_newest_revision_is_the_one_the_tables_name() -> None:
    files = sorted(p.stem for p in (sqlite.MIGRATIONS / "versions").glob("v*.py"))
    assert files[-1].startswith(f"v{tables.REVISION}_")
