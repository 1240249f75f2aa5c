"""The default store: SQLite in WAL mode, durable at every commit.

Exactly one connection writes and checkpoints (SQLite before 3.51.3 can corrupt a WAL database when
two do so at once), in one thread; readers open it read-only. The daemon's lock on its home keeps a
second writer out.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from zenos.core import durable, failpoints, limits
from zenos.core.actions import Changes, Snapshot
from zenos.core.arrays import Array
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.errors import StorageError
from zenos.core.free import full
from zenos.core.messages import Message, MessageChanges
from zenos.core.node import Node
from zenos.core.predictions import Estimate
from zenos.core.quotas import Usage
from zenos.core.task import Deployment, IdempotencyKey, Task, TaskEvent
from zenos.store import rows, shared, tables

T = TypeVar("T")

MIGRATIONS: Final = Path(__file__).parent / "migrations"
MESSAGES_AT_ONCE: Final = 64  # that one statement writes
_PUT_NOW: Final = (
    "INSERT INTO meta (name, value) VALUES ('now', ?) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
WAL_BYTES_MAX: Final = 64 * limits.MIB
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"}
)


def _engine(path: Path, *, read_only: bool) -> sa.Engine:
    # Quoted, as a home may be called anything: `?` and `#` mean something in an address.
    where = f"file:{urllib.parse.quote(str(path))}"
    mode = {"uri": "true", "mode": "ro" if read_only else "rwc"}
    engine = sa.create_engine(
        sa.URL.create("sqlite+pysqlite", database=where, query=mode),
        poolclass=sa.pool.StaticPool,
        connect_args=_ARGUMENTS,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        # The driver's own transactions are switched off: they begin late and deferred.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=5000")
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


_ARGUMENTS: Final[Mapping[str, Any]] = {"check_same_thread": False, "cached_statements": 256}


class SqliteStore:
    """A database file. Open it with `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = ThreadPoolExecutor(1, "store-write")
        self._reader = ThreadPoolExecutor(1, "store-read")
        self._prepared = False
        self._now = 0.0  # the latest kernel time of any commit; in the writer's thread
        self._write = _engine(path, read_only=False)
        self._read = _engine(path, read_only=True)

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open, make or migrate the database at `path`.

        Raises StorageError for a database that is damaged, of a newer version, on a network file
        system, or not to be read or written.
        """
        refuse_network_file_system(path)
        store = cls(path)
        try:
            await store._in_writer(store._prepare)
        except BaseException:
            await store.close()
            raise
        return store

    async def load(self) -> Snapshot:
        """Everything that is remembered of the kernel's state."""
        return await self._in_writer(self._load)

    async def commit(self, changes: Changes) -> None:
        """One transaction, on the disk when this returns."""
        await self._in_writer(lambda: self._commit(changes))

    async def load_messages(self) -> list[Message]:
        """All durable messages, in the order of their numbers."""
        return await self._in_writer(self._load_messages)

    async def commit_messages(self, changes: MessageChanges) -> None:
        """One transaction, on the disk when this returns."""
        await self._in_writer(lambda: self._commit_messages(changes))

    async def events(self, after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        """History lines, oldest first."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._events, after_seq, limit, task)

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Rows, the newest first."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._audit, query)

    async def close(self) -> None:
        """Checkpoint, mark the end as clean and close. What was refused stays as it is."""

        def finish() -> None:
            if not self._prepared:
                return
            with self._write.begin() as connection:
                _set_meta(connection, {"clean": "yes"})
            self._directly(
                lambda database: database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            )

        try:
            await self._in_writer(finish)
        except StorageError:
            pass  # the database is checked at the next start
        finally:
            await self._in_writer(self._write.dispose)
            await asyncio.get_running_loop().run_in_executor(self._reader, self._read.dispose)
            self._writer.shutdown()
            self._reader.shutdown()

    # -- in the writer's thread

    async def _in_writer(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except DBAPIError as error:
                said = f"{error.orig}{self._advice(str(error.orig))}"
                raise StorageError(f"cannot use the database {self._path}: {said}") from error
            except OSError as error:
                raise StorageError(f"cannot use the database {self._path}: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._writer, guarded)

    def _prepare(self) -> None:
        """Make, check or migrate.

        1. An empty file gets the tables as they are now.
        2. After an end that wasn't clean the whole file is checked.
        3. A newer revision is refused, an older one copied and migrated.
        """
        with self._write.connect() as connection:
            found = sa.inspect(connection).get_table_names()
        if not found:  # 1
            with self._write.begin() as connection:
                tables.metadata.create_all(connection)
                connection.exec_driver_sql(
                    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
                )
                connection.exec_driver_sql(
                    "INSERT INTO alembic_version VALUES (?)", (tables.REVISION,)
                )
        else:
            with self._write.connect() as connection:
                clean = "meta" in found and _get_meta(connection).get("clean") == "yes"
                if not clean:  # 2
                    self._check(connection)
                revision = connection.exec_driver_sql(
                    "SELECT version_num FROM alembic_version"
                ).scalar()
            self._migrate(str(revision))  # 3
        with self._write.begin() as connection:
            _set_meta(connection, {"clean": "no"})
        self._prepared = True

    def _check(self, connection: sa.Connection) -> None:
        said = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        if said != "ok":
            raise StorageError(
                f"cannot use the database {self._path}: it is damaged ({str(said)[:200]}); "
                "move it away and restore a copy"
            )

    def _migrate(self, revision: str) -> None:
        if revision == tables.REVISION:
            return
        if revision > tables.REVISION:
            raise StorageError(
                f"cannot read the database {self._path}: it was written by a newer zenos "
                f"(revision {revision}, this one knows {tables.REVISION}); install that version"
            )
        import alembic.command
        import alembic.config

        copy = self._path.with_name(f"{self._path.name}.before-{tables.REVISION}")
        self._copy(copy)
        config = alembic.config.Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._write.begin() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def _copy(self, path: Path) -> None:
        """Write the database as it is to another file, whole or not at all."""
        temporary = path.with_name(f"{durable.TEMPORARY_PREFIX}{path.name}")
        temporary.unlink(missing_ok=True)

        def backup(database: sqlite3.Connection) -> None:
            with contextlib.closing(sqlite3.connect(temporary)) as target:
                database.backup(target)

        self._directly(backup)
        durable.sync_file(temporary)
        temporary.replace(path)
        durable.sync_directory(path.parent)

    def _directly(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """What SQLite doesn't do inside a transaction, which the engine begins with its first
        statement, and what is done so often that the engine would take most of its time."""
        raw = self._write.raw_connection()
        try:
            work(cast("sqlite3.Connection", raw.driver_connection))
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot use the database {self._path}: {error}{self._advice(str(error))}"
            ) from error
        finally:
            raw.close()

    def _advice(self, said: str) -> str:
        """What to do about what SQLite says."""
        if "full" in said:
            return "; make room on its disk"
        if "not a database" in said or "malformed" in said:
            return "; it is damaged: move it away and restore a copy"
        # On a full disk it says "disk I/O error" as well, or that it is unable to open the file.
        why = full(self._path.parent)
        return f"; {why}" if why else ""

    def _load(self) -> Snapshot:
        with self._write.connect() as connection:
            counters = _get_meta(connection)

            def records(table: sa.Table, kind: type[T]) -> list[T]:
                stored = connection.execute(sa.select(table.c.record))
                decoder = msgspec.json.Decoder(kind)
                return [decoder.decode(row.record) for row in stored]

            try:
                self._now = float(counters.get("now", "0"))
                arrays = {array.id: array for array in records(tables.arrays, Array)}
                return Snapshot(
                    now=self._now,
                    next_task=int(counters.get("next_task", "1")),
                    next_seq=int(counters.get("next_seq", "1")),
                    next_audit=int(counters.get("next_audit", "1")),
                    tasks=shared.with_specs(records(tables.tasks, Task), arrays),
                    deployments={d.name: d for d in records(tables.deployments, Deployment)},
                    nodes={node.name: node for node in records(tables.nodes, Node)},
                    keys=records(tables.idempotency_keys, IdempotencyKey),
                    estimates={e.signature: e for e in records(tables.estimates, Estimate)},
                    arrays=arrays,
                    usage={u.account: u for u in records(tables.usage, Usage)},
                )
            except (msgspec.DecodeError, ValueError, KeyError) as error:
                raise StorageError(
                    f"cannot read the database {self._path}: a record is damaged ({error})"
                ) from error

    def _commit(self, changes: Changes) -> None:
        failpoints.passing("store.commit.before")
        with self._write.begin() as connection:
            _upsert(connection, tables.arrays, map(shared.row, changes.arrays.values()))
            _upsert(connection, tables.tasks, map(rows.task_row, changes.tasks.values()))
            _upsert(connection, tables.task_events, map(rows.event_row, changes.events))
            _upsert(connection, tables.nodes, map(rows.node_row, changes.nodes.values()))
            _upsert(
                connection,
                tables.deployments,
                map(rows.deployment_row, changes.deployments.values()),
            )
            _upsert(connection, tables.idempotency_keys, map(rows.key_row, changes.keys))
            _delete(connection, tables.tasks.c.id, changes.deleted_tasks)
            _delete(connection, tables.arrays.c.id, changes.deleted_arrays)
            _delete(connection, tables.deployments.c.name, changes.deleted_deployments)
            keys = tables.idempotency_keys
            for user, key in changes.deleted_keys:
                connection.execute(keys.delete().where(keys.c.user == user, keys.c.key == key))
            if changes.prune_events_before:
                events = tables.task_events
                connection.execute(
                    events.delete().where(events.c.seq < changes.prune_events_before)
                )
            _upsert(
                connection, tables.estimates, map(rows.estimate_row, changes.estimates.values())
            )
            _delete(connection, tables.estimates.c.signature, changes.deleted_estimates)
            _upsert(connection, tables.usage, map(rows.usage_row, changes.usage.values()))
            _delete(connection, tables.usage.c.account, changes.deleted_usage)
            _delete(connection, tables.nodes.c.name, changes.deleted_nodes)
            _upsert(connection, tables.audit, map(rows.audit_row, changes.audit))
            if changes.prune_audit_before:
                audit, before = tables.audit, changes.prune_audit_before
                connection.execute(audit.delete().where(audit.c.number < before))
            _set_meta(
                connection,
                {
                    "now": self._latest(changes.now),
                    "next_task": str(changes.next_task),
                    "next_seq": str(changes.next_seq),
                    "next_audit": str(changes.next_audit),
                },
            )
            failpoints.passing("store.commit.written")
        failpoints.passing("store.commit.after")

    def _load_messages(self) -> list[Message]:
        table, decoder = tables.messages, msgspec.json.Decoder(Message)
        with self._write.connect() as connection:
            stored = connection.execute(sa.select(table.c.record, table.c.body))
            try:
                found = [replace(decoder.decode(row.record), body=row.body) for row in stored]
            except (msgspec.DecodeError, ValueError) as error:
                raise StorageError(
                    f"cannot read the database {self._path}: a message is damaged ({error})"
                ) from error
        return sorted(found, key=lambda message: message.number)

    def _commit_messages(self, changes: MessageChanges) -> None:
        put = [rows.message_values(message) for message in changes.put.values()]

        def write(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            try:
                # Many rows in a statement: between two of them the writer has to wait for whoever
                # runs Python meanwhile.
                for start in range(0, len(put), MESSAGES_AT_ONCE):
                    some = put[start : start + MESSAGES_AT_ONCE]
                    values = itertools.chain.from_iterable(some)
                    database.execute(_put_messages(len(some)), tuple(values))
                deleted = changes.deleted
                for start in range(0, len(deleted), MESSAGES_AT_ONCE):
                    numbers = deleted[start : start + MESSAGES_AT_ONCE]
                    database.execute(_delete_messages(len(numbers)), numbers)
                database.execute(_PUT_NOW, (self._latest(changes.now),))
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

        self._directly(write)

    def _latest(self, now: float) -> str:
        """Kernel time never goes back: of kernel and topics the one may commit what is older."""
        self._now = max(self._now, now)
        return repr(self._now)

    def _events(self, after_seq: int, limit: int, task: str | None) -> list[TaskEvent]:
        events = tables.task_events
        query = sa.select(events.c.record).where(events.c.seq > after_seq)
        if task is not None:
            query = query.where(events.c.task == task)
        decoder = msgspec.json.Decoder(TaskEvent)
        try:
            with self._read.connect() as connection:
                stored = connection.execute(query.order_by(events.c.seq).limit(limit)).all()
        except DBAPIError as error:
            raise StorageError(f"cannot read the database {self._path}: {error.orig}") from error
        return [decoder.decode(row.record) for row in stored]

    def _audit(self, query: AuditQuery) -> list[AuditRow]:
        audit = tables.audit
        chosen = sa.select(audit.c.record).order_by(audit.c.number.desc()).limit(query.limit)
        for column, wanted in (
            (audit.c.action, query.action),
            (audit.c.user, query.user),
            (audit.c.subject, query.subject),
        ):
            if wanted is not None:
                chosen = chosen.where(column == wanted)
        if query.before is not None:
            chosen = chosen.where(audit.c.number < query.before)
        if query.since is not None:
            chosen = chosen.where(audit.c.at >= query.since)
        decoder = msgspec.json.Decoder(AuditRow)
        try:
            with self._read.connect() as connection:
                return [decoder.decode(row.record) for row in connection.execute(chosen)]
        except DBAPIError as error:
            raise StorageError(f"cannot read the database {self._path}: {error.orig}") from error


@functools.cache
def _put_messages(count: int) -> str:
    """The SQL that writes so many messages."""
    names = [column.name for column in tables.messages.c]
    assert names == list(rows.MESSAGE_COLUMNS)  # noqa: S101 - in the order of their values
    row = f"({', '.join('?' * len(names))})"
    changed = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    return (
        f"INSERT INTO messages ({', '.join(names)}) VALUES {', '.join([row] * count)} "  # noqa: S608
        f"ON CONFLICT (number) DO UPDATE SET {changed}"
    )


@functools.cache
def _delete_messages(count: int) -> str:
    return f"DELETE FROM messages WHERE number IN ({', '.join('?' * count)})"  # noqa: S608


def _upsert(
    connection: sa.Connection, table: sa.Table, made: Iterable[Mapping[str, object]]
) -> None:
    statement, order = _upsert_statement(table)
    values = [tuple(row[name] for name in order) for row in made]
    if values:
        connection.exec_driver_sql(statement, values)


@functools.cache
def _upsert_statement(table: sa.Table) -> tuple[str, tuple[str, ...]]:
    """The SQL, and the columns in the order of its parameters. Made once: for each row and commit
    it would take more time than SQLite needs to write it."""
    statement = insert(table)
    keys = {column.name for column in table.primary_key}
    changed = {c.name: statement.excluded[c.name] for c in table.c if c.name not in keys}
    made = statement.on_conflict_do_update(index_elements=sorted(keys), set_=changed)
    compiled = made.compile(dialect=sqlite_dialect())
    return str(compiled), tuple(compiled.positiontup or ())


def _delete(
    connection: sa.Connection, column: sa.Column[Any], values: Sequence[str] | Sequence[int]
) -> None:
    for start in range(0, len(values), 500):
        connection.execute(sa.delete(column.table).where(column.in_(values[start : start + 500])))


def _get_meta(connection: sa.Connection) -> dict[str, str]:
    return {row.name: row.value for row in connection.execute(sa.select(tables.meta))}


def _set_meta(connection: sa.Connection, values: Mapping[str, str]) -> None:
    _upsert(connection, tables.meta, [{"name": n, "value": v} for n, v in values.items()])


def refuse_network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises StorageError where SQLite's locks and shared memory don't work."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    best, kind = "", ""
    where = str(path.absolute())
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    if kind in NETWORK_FILE_SYSTEMS:
        raise StorageError(
            f"cannot keep a database on {best}: it is a network file system ({kind}), on which "
            "SQLite's locks don't hold; choose a home on a local disk with ZENOS_HOME"
        )
