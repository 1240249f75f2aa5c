"""The stream of events: ids, resuming, filters, heartbeats, the end of slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from tests.api.conftest import TOKEN, serving, until
from tests.api.double import Double
from tests.api.test_tasks import submit
from zenos.core import limits
from zenos.core.errors import StorageError
from zenos.core.task import State, TaskEvent
from zenos.core.wire import Progress


class Reading:
    """What has come on one stream, by frame."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False

    @property
    def frames(self) -> list[dict[str, str]]:
        found = []
        for block in self.text.split("\n\n")[:-1]:
            lines = [line.partition(":") for line in block.split("\n")]
            found.append({name: value.strip() for name, _, value in lines})
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [
            {"id": frame.get("id"), **msgspec.json.decode(frame["data"])}
            for frame in self.frames
            if frame.get("event") == kind
        ]


@asynccontextmanager
async def reading(url: str, after: int | None = None, **params: str) -> AsyncIterator[Reading]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    made = Reading()

    async def read(answer: httpx.Response) -> None:
        async for text in answer.aiter_text():
            made.text += text
        made.ended = True

    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client,
        client.stream("GET", "/api/events", params=params) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        task = asyncio.ensure_future(read(answer))
        await until(lambda: made.text != "")
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_live_and_stored_events_make_one_line_without_holes(
    url: str, http: httpx.AsyncClient, system: Double
) -> None:
    async with reading(url) as live:
        first = await submit(http)
        await system.until(lambda: system.view.tasks[first["id"]].state is State.RUNNING)
        await until(lambda: len(live.of("task")) >= 3)
        seen = live.of("task")
    assert [event["type"] for event in seen[:1]] == ["submitted"]
    assert [int(event["id"]) for event in seen] == [event["seq"] for event in seen]
    async with reading(url, after=0) as resumed:
        second = await submit(http)
        await system.until(lambda: system.view.tasks[second["id"]].state is State.RUNNING)
        await until(lambda: len(resumed.of("task")) >= len(seen) + 3)
        ids = [int(event["id"]) for event in resumed.of("task")]
    assert ids == list(range(1, len(ids) + 1))
    async with reading(url, after=ids[-2]) as last:
        await until(lambda: len(last.of("task")) == 1)
        assert int(last.of("task")[0]["id"]) == ids[-1]


async def test_the_stream_opens_with_the_id_from_which_it_listens(
    url: str, http: httpx.AsyncClient, system: Double
) -> None:
    async with reading(url) as events:
        assert events.frames == [{"": "zenos", "id": "0"}]
    made = await submit(http)
    await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
    newest = (await system.events(0, 100))[-1].seq
    async with reading(url) as events, reading(url, after=1) as older:
        assert events.frames == [{"": "zenos", "id": str(newest)}]
        # What is still to come from the store must not be left out by a reader that is cut.
        assert older.frames[0] == {"": "zenos", "id": "1"}


async def test_what_happens_between_subscribing_and_reading_comes_once(
    url: str, http: httpx.AsyncClient, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = system.events

    async def slow(after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        made = await submit(http)
        await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
        return await stored(after_seq, limit, task)

    monkeypatch.setattr(system, "events", slow)
    async with reading(url, after=0) as events:
        await until(lambda: len(events.of("task")) >= 3)
        await submit(http)
        await until(lambda: len(events.of("task")) >= 5)
        ids = [int(event["id"]) for event in events.of("task")]
    assert ids == list(range(1, len(ids) + 1))


async def test_of_one_task(url: str, http: httpx.AsyncClient, system: Double) -> None:
    first, second = await submit(http, name="one"), await submit(http, name="two")
    await system.until(lambda: system.view.tasks[second["id"]].state is State.RUNNING)
    async with reading(url, after=0, task="two") as events:
        system.view.report(first["id"], Progress(stage="training", done=1))
        figures = {"loss": 2.5, "learning_rate": 2.5e-4, "tokens_per_s": 1234.0, "left_s": 65.0}
        system.view.report(second["id"], Progress(stage="training", done=2, total=4, **figures))
        await until(lambda: len(events.of("progress")) == 1)
        assert {event["task"] for event in events.of("task")} == {second["id"]}
        [progress] = events.of("progress")
        assert progress["id"] is None
        told = {"stage": "training", "done": 2, "total": 4, **figures}
        assert told.items() <= progress["progress"].items()
    missing = await http.get("/api/events", params={"task": "three"})
    assert missing.status_code == 404


async def test_many_stored_events_come_in_pages(
    url: str, http: httpx.AsyncClient, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenos.api.events.PAGE", 2)
    made = await submit(http)
    await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
    async with reading(url, after=0) as events:
        await until(lambda: len(events.of("task")) == 3)


async def test_a_heartbeat_comes_when_nothing_happens(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EVENT_HEARTBEAT_S", 0.02)
    async with reading(url) as events:
        await until(lambda: events.text.count("\n:\n\n") >= 2)
        assert events.of("task") == []


async def test_a_reader_that_is_too_slow_is_cut(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenos.kernel.control.SUBSCRIBER_EVENTS_MAX", 10)
    async with reading(url) as events:
        for done in range(50):
            system.view.report("t1", Progress(stage="x", done=done))
        await until(lambda: events.ended)
    assert system.view._subscribers == set()


async def test_a_client_that_leaves_is_forgotten(url: str, system: Double) -> None:
    async with reading(url):
        assert len(system.view._subscribers) == 1
    await until(lambda: not system.view._subscribers)


async def test_going_down_ends_the_streams(app: FastAPI, system: Double) -> None:
    async with serving(app) as url, reading(url) as events:
        app.state.closing.set()
        await until(lambda: events.ended)


async def test_a_store_that_fails_is_told(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(after_seq: int, limit: int, task: str | None = None) -> Any:
        raise StorageError("cannot read events: the disk is gone")

    monkeypatch.setattr(system, "events", broken)
    async with reading(url, after=0) as events:
        await until(lambda: events.ended)
        [error] = events.of("error")
        assert error["error"]["code"] == "storage"


@pytest.mark.parametrize("last", ["-1", "x", "1e3", str(2**80)])
async def test_bad_ids(http: httpx.AsyncClient, last: str) -> None:
    answer = await http.get("/api/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


async def test_a_task_filter_takes_what_other_paths_take(http: httpx.AsyncClient) -> None:
    """Also the longest name of an array's task; and nothing without end."""
    name = "x" * limits.NAME_CHARS_MAX + "[9999]"
    for task, status in ((name, 404), ("x" * 100, 400), ("", 400)):
        answer = await http.get("/api/events", params={"task": task})
        assert answer.status_code == status
