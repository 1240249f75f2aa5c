"""What every store does, for each of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, node, spec
from zenos.core.actions import Changes, Snapshot
from zenos.core.arrays import Array, Indices
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.messages import Message, MessageChanges
from zenos.core.predictions import Estimate, Past
from zenos.core.quotas import Usage
from zenos.core.specs import DeploymentSpec
from zenos.core.task import (
    Allocation,
    ArrayPlace,
    Deployment,
    IdempotencyKey,
    Kind,
    Outcome,
    Principal,
    State,
    Task,
    TaskEvent,
    TaskSpec,
)
from zenos.store.base import Store
from zenos.store.memory import MemoryStore
from zenos.store.sqlite import SqliteStore


def task(number: int, state: State = State.QUEUED, name: str = "") -> Task:
    return Task(
        id=f"t{number}",
        spec=spec(TRAIN, name=name),
        principal=Principal(user="me"),
        submitted=1.5,
        kind=Kind.TRAIN,
        state=state,
        allocation=Allocation(node="n", resources=spec().resources, shares={1: 500}),
        outcome=Outcome(exit_code=3, log_tail="Ende \u4e2d\n"),
    )


def event(seq: int, of: str = "t1") -> TaskEvent:
    return TaskEvent(seq=seq, at=2.0, task=of, type="x", state=State.QUEUED, generation=1)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = (
        MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "db")
    )
    yield made
    await made.close()


async def test_an_empty_store_has_an_empty_snapshot(store: Store) -> None:
    assert await store.load() == Snapshot()
    assert await store.events(0, 10) == []


def estimate(signature: str) -> Estimate:
    past = [Past(predicted_s=600.0, source="default", took_s=7.4)]
    return Estimate(signature=signature, log_s=2.0, count=3, at=12.0, past=past)


def usage(account: str) -> Usage:
    return Usage(account=account, at=12.0, gpu_s=3.5, window_from=7.0, decayed_s=0.25)


async def test_all_that_was_committed_comes_back(store: Store) -> None:
    key = IdempotencyKey(user="me", key="k", fingerprint="f", subject="t1", at=3.0)
    deployment = Deployment(
        name="m", spec=DeploymentSpec(model="m"), principal=Principal(), created=1.0, used=2.0
    )
    changes = Changes(
        now=12.25,
        next_task=3,
        next_seq=4,
        tasks={"t1": task(1), "t2": task(2, name="zwei")},
        events=[event(1), event(2, "t2"), event(3)],
        deployments={"m": deployment},
        nodes={"local": node()},
        keys=[key],
        estimates={name: estimate(name) for name in ("run/a", "run/b")},
        usage={name: usage(name) for name in ("user/ann", "user/bob")},
    )
    await store.commit(changes)
    assert await store.load() == Snapshot(
        now=12.25,
        next_task=3,
        next_seq=4,
        tasks=changes.tasks,
        deployments=changes.deployments,
        nodes=changes.nodes,
        keys=[key],
        estimates=changes.estimates,
        usage=changes.usage,
    )
    gone = Changes(
        now=13,
        deleted_estimates=["run/a"],
        deleted_usage=["user/bob"],
        deleted_nodes=["local"],
    )
    await store.commit(gone)
    assert (await store.load()).nodes == {}
    assert (await store.load()).estimates == {"run/b": estimate("run/b")}
    assert (await store.load()).usage == {"user/ann": usage("user/ann")}
    assert await store.events(1, 10) == [event(2, "t2"), event(3)]
    assert await store.events(0, 1) == [event(1)]
    assert await store.events(0, 10, "t1") == [event(1), event(3)]


async def test_arrays_come_back_with_tasks_that_share_their_specification(store: Store) -> None:
    common = spec(name="sweep")
    array = Array(
        id="array-1",
        spec=common,
        indices=Indices(last=2, limit=1),
        principal=Principal(),
        submitted=1.0,
        start=1,
        forgotten={State.FAILED: 1},
    )

    def element(number: int, of: TaskSpec, *, own: bool = False) -> Task:
        place = ArrayPlace(id=array.id, index=number, count=3, limit=1, own=own)
        return replace(task(number), spec=of, kind=Kind.RUN, array=place)

    urgent = replace(common, priority=90)
    tasks = {"t2": element(2, common), "t3": element(3, urgent, own=True)}
    await store.commit(Changes(tasks=tasks, arrays={array.id: array}))
    found = await store.load()
    assert found.tasks == tasks
    assert found.arrays == {array.id: array}
    assert found.tasks["t2"].spec is found.arrays[array.id].spec
    await store.commit(Changes(deleted_tasks=["t2", "t3"], deleted_arrays=[array.id, "none"]))
    assert await store.load() == replace(Snapshot(), next_task=1)


def message(number: int, **fields: object) -> Message:
    body = bytes(range(256)) * number
    return Message(  # type: ignore[arg-type]
        **{"number": number, "topic": "a/b", "id": f"m{number}", "body": body, **fields}
    )


async def test_messages_come_back_as_they_are_by_number(store: Store) -> None:
    first = [message(3, headers={"ü": "\n"}), message(1, deadline=9.5), message(2, priority=7)]
    changes = MessageChanges(put={m.number: m for m in first}, now=12.5)
    await store.commit_messages(changes)
    await store.commit_messages(changes)
    assert await store.load_messages() == sorted(first, key=lambda m: m.number)
    assert (await store.load()).now == 12.5
    given_up = message(3, dead="why", failures=5, ended=13.0)
    done = message(2, body=b"", ended=13.0)
    await store.commit_messages(MessageChanges(put={3: given_up, 2: done}, deleted=[1], now=13))
    assert await store.load_messages() == [done, given_up]


async def test_the_time_that_is_remembered_never_goes_back(store: Store) -> None:
    await store.load()
    await store.commit(Changes(now=10.0))
    await store.commit_messages(MessageChanges(now=9.0))  # decided before, and committed after it
    assert (await store.load()).now == 10.0
    await store.commit_messages(MessageChanges(now=12.0))
    await store.commit(Changes(now=11.0))
    assert (await store.load()).now == 12.0


async def test_the_same_changes_may_be_committed_again(store: Store) -> None:
    changes = Changes(now=1.0, next_task=2, next_seq=2, tasks={"t1": task(1)}, events=[event(1)])
    await store.commit(changes)
    await store.commit(changes)
    assert (await store.load()).tasks == {"t1": task(1)}
    assert await store.events(0, 10) == [event(1)]


async def test_later_records_replace_earlier_ones_and_deleted_ones_go(store: Store) -> None:
    key = IdempotencyKey(user="me", key="k", fingerprint="f", subject="t1", at=3.0)
    first = Changes(tasks={"t1": task(1), "t2": task(2)}, keys=[key], events=[event(1), event(2)])
    await store.commit(first)
    await store.commit(
        Changes(
            tasks={"t1": task(1, State.RUNNING)},
            deleted_tasks=["t2", "t9"],
            deleted_keys=[("me", "k"), ("me", "none")],
            deleted_deployments=["none"],
            prune_events_before=2,
        )
    )
    snapshot = await store.load()
    assert snapshot.tasks == {"t1": task(1, State.RUNNING)}
    assert snapshot.keys == []
    assert await store.events(0, 10) == [event(2)]


numbers = st.integers(1, 6)
steps = st.builds(
    Changes,
    now=st.floats(0, 1e10),
    next_task=st.integers(1, 2**40),
    next_seq=st.integers(1, 2**40),
    tasks=st.dictionaries(numbers, st.sampled_from(State), max_size=3).map(
        lambda d: {f"t{n}": task(n, s) for n, s in d.items()}
    ),
    events=st.lists(numbers, max_size=3, unique=True).map(lambda ns: [event(n) for n in ns]),
    keys=st.lists(
        st.builds(
            IdempotencyKey,
            user=st.sampled_from("ab"),
            key=st.text(max_size=3),
            fingerprint=st.just("f"),
            subject=st.just("t1"),
            at=st.floats(0, 10),
        ),
        max_size=2,
    ),
    deleted_tasks=st.lists(numbers.map(lambda n: f"t{n}"), max_size=2),
    prune_events_before=st.integers(0, 6),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=4))
def test_any_sequence_of_changes_loads_alike_from_both(sequence: list[Changes]) -> None:
    async def compare() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "db"
            memory, sqlite = MemoryStore(), await SqliteStore.open(path)
            for changes in sequence:
                await memory.commit(changes)
                await sqlite.commit(changes)
            await sqlite.close()
            again = await SqliteStore.open(path)
            ours, theirs = await memory.load(), await again.load()
            for snapshot in (ours, theirs):
                snapshot.keys.sort(key=lambda k: (k.user, k.key))
            # A store's time is that of its last commit in SQLite; never earlier in memory.
            theirs.now = ours.now
            assert ours == theirs
            assert await memory.events(0, 99) == await again.events(0, 99)
            await again.close()

    asyncio.run(compare())


def row(number: int, user: str = "me", **fields: object) -> AuditRow:
    return AuditRow(  # type: ignore[arg-type]
        **{"number": number, "at": float(number), "principal": Principal(user), **fields}
    )


def test_rows_of_before_there_was_a_token_are_read() -> None:
    older = b'{"number":1,"at":1.0,"principal":{"user":"ann","project":"x"},"action":"cancel"}'
    read = msgspec.json.decode(older, type=AuditRow)
    assert (read.token, read.principal.user) == ("", "ann")


async def test_rows_of_who_did_what_are_chosen_and_forgotten(store: Store) -> None:
    rows = [
        row(1, action="submit", subject="t1"),
        row(2, "you", action="cancel", subject="t1", accepted=False, reason="cannot"),
        row(3, action="remove", subject="m:1", via="signal", key="k", token="laptop"),
    ]
    changes = Changes(now=3.0, next_audit=4, audit=rows)
    await store.commit(changes)
    await store.commit(changes)
    assert (await store.load()).next_audit == 4
    for query, numbers in (
        (AuditQuery(), [3, 2, 1]),
        (AuditQuery(limit=1), [3]),
        (AuditQuery(before=3), [2, 1]),
        (AuditQuery(action="cancel"), [2]),
        (AuditQuery(user="me"), [3, 1]),
        (AuditQuery(subject="t1", since=2.0), [2]),
    ):
        assert await store.audit(query) == [rows[number - 1] for number in numbers], query
    await store.commit(Changes(now=4.0, next_audit=4, prune_audit_before=3))
    assert await store.audit(AuditQuery()) == rows[2:]
