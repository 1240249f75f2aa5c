"""Durable topics over HTTP: kept before it is answered, looked at, replayed, dropped, watched."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.api.conftest import TOKEN, until
from tests.api.double import Double
from zenos.bus import topics as ev
from zenos.bus.topic import Delivery
from zenos.core import limits
from zenos.core.errors import StorageError

TOPIC = "jobs/resize"


async def send(http: httpx.AsyncClient, body: str = "x", **fields: Any) -> httpx.Response:
    key = fields.pop("key", None)
    headers = {"Idempotency-Key": key} if key else {}
    return await http.post(
        "/api/bus/messages", json={"topic": TOPIC, "body": body, **fields}, headers=headers
    )


async def receive(system: Double, lease_s: float = 30.0) -> Delivery:
    topics = system.topics
    event = ev.Receive(
        request=topics.next_request(), topic=TOPIC, receiver="worker", lease_s=lease_s
    )
    result = await topics.ask(event)
    assert isinstance(result, list)
    return result[0]


async def give_back(system: Double, given: Delivery, reason: str) -> None:
    topics = system.topics
    await topics.ask(
        ev.Nack(
            request=topics.next_request(),
            topic=TOPIC,
            delivery=given.number,
            id=given.message.id,
            reason=reason,
        )
    )


async def kill(system: Double, reason: str) -> str:
    """Receive the next message and fail, until it is given up; its id."""
    for _ in range(limits.DELIVERIES_MAX):
        given = await receive(system)
        await give_back(system, given, reason)
    return given.message.id


async def messages(http: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await http.get("/api/bus/messages", params={"topic": TOPIC, **params})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["messages"]
    return found


async def test_what_was_answered_is_in_the_store(http: httpx.AsyncClient, system: Double) -> None:
    answer = await send(http, "grüße", id="m1", headers={"a": "b"}, priority=75)
    assert (answer.status_code, answer.json()) == (201, {"id": "m1", "duplicate": False})
    (kept,) = await system.store.load_messages()
    assert (kept.topic, kept.body.decode(), kept.priority) == (TOPIC, "grüße", 75)
    (shown,) = await messages(http)
    assert (shown["body"], shown["headers"], shown["failures"]) == ("grüße", {"a": "b"}, 0)


async def test_headers_that_no_receiver_could_be_given_are_refused(
    http: httpx.AsyncClient, system: Double
) -> None:
    many = {f"name-{number}": "" for number in range(2000)}
    for headers in ({"a": "x" * 16_300}, {"a": "日" * 6000}, many):
        answer = await send(http, headers=headers)
        assert answer.status_code == 400, answer.text
        assert "put less into its headers" in answer.text
    assert await system.store.load_messages() == []
    assert (await send(http, headers={"a": "日" * 5000})).status_code == 201


async def test_the_same_id_or_key_is_one_message(http: httpx.AsyncClient) -> None:
    for given in ({"id": "m1"}, {"key": "k1"}):
        first, again = await send(http, **given), await send(http, **given)
        assert first.json()["id"] == again.json()["id"]
        assert (first.json()["duplicate"], again.json()["duplicate"]) == (False, True)
    assert [m["id"] for m in await messages(http)] == ["m1", "k1"]


async def test_bytes_come_back_as_they_were(http: httpx.AsyncClient) -> None:
    raw = bytes(range(256))
    body = {"topic": TOPIC, "body_base64": base64.b64encode(raw).decode()}
    assert (await http.post("/api/bus/messages", json=body)).status_code == 201
    (shown,) = await messages(http)
    assert shown["body"] is None
    assert base64.b64decode(shown["body_base64"]) == raw


async def test_topics_say_what_is_on_them(http: httpx.AsyncClient, system: Double) -> None:
    for number in range(3):
        await send(http, id=f"m{number}")
    given = await receive(system)
    assert given.message.id == "m0"
    (topic,) = (await http.get("/api/bus/topics")).json()["topics"]
    assert (topic["name"], topic["waiting"], topic["leased"], topic["dead"]) == (TOPIC, 2, 1, 0)
    assert topic["oldest_s"] >= 0
    assert topic["settings"]["deliveries"] == limits.DELIVERIES_MAX
    (leased,) = await messages(http, which="leased")
    assert (leased["id"], leased["receiver"]) == ("m0", "worker")
    figures = (await http.get("/metrics")).text
    assert f'zenos_messages{{state="waiting",topic="{TOPIC}"}} 2.0' in figures
    assert f'zenos_messages{{state="leased",topic="{TOPIC}"}} 1.0' in figures


async def test_pages_follow_each_other(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await send(http, id=f"m{number}")
    found: list[str] = []
    after = 0
    while page := await messages(http, after=after, limit=2):
        found += [message["id"] for message in page]
        after = page[-1]["number"]
    assert found == [f"m{number}" for number in range(5)]


async def test_dead_ones_say_why_and_can_be_delivered_again(
    http: httpx.AsyncClient, system: Double
) -> None:
    for number in range(2):
        await send(http, id=f"m{number}")
    first, second = await kill(system, "no such photo"), await kill(system, "no space")
    dead = await messages(http, which="dead")
    assert {m["id"]: m["reason"] for m in dead} == {first: "no such photo", second: "no space"}
    assert await messages(http) == []
    body: dict[str, Any] = {"topic": TOPIC, "ids": [second]}
    assert (await http.post("/api/bus/replay", json=body)).json() == {"count": 1}
    assert (await receive(system)).message.id == second
    assert (await http.post("/api/bus/replay", json={"topic": TOPIC})).json() == {"count": 1}
    assert (await receive(system)).message.id == first


async def test_purging_takes_what_waits_or_what_is_dead(
    http: httpx.AsyncClient, system: Double
) -> None:
    await send(http, id="dead")
    await kill(system, "broken")
    for number in range(3):
        await send(http, id=f"m{number}")
    given = await receive(system)
    answer = await http.post("/api/bus/purge", json={"topic": TOPIC})
    assert answer.json() == {"count": 2}
    assert [m["id"] for m in await messages(http, which="leased")] == [given.message.id]
    assert [m["id"] for m in await messages(http, which="dead")] == ["dead"]
    answer = await http.post("/api/bus/purge", json={"topic": TOPIC, "which": "dead"})
    assert answer.json() == {"count": 1}
    assert await messages(http, which="dead") == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"topic": "../etc", "body": "x"}, None),
        ({"topic": "a/b/c/d/e", "body": "x"}, None),
        ({"topic": TOPIC}, "body"),
        ({"topic": TOPIC, "body": "x", "body_base64": "eA=="}, "body"),
        ({"topic": TOPIC, "body_base64": "???"}, "body_base64"),
        ({"topic": TOPIC, "body": "x", "priority": 101}, "priority"),
        ({"topic": TOPIC, "body": "x", "delay_s": -1}, "delay_s"),
        ({"topic": TOPIC, "body": "x", "deadline_s": 1e9}, "deadline_s"),
        ({"topic": TOPIC, "body": "x", "id": ""}, "id"),
        ({"topic": TOPIC, "body": "x", "id": "a" * 129}, "id"),
        ({"topic": TOPIC, "body": "x" * (limits.MESSAGE_BYTES_MAX + 1)}, "body"),
        ({"topic": TOPIC, "body": "x", "prioriti": 5}, "prioriti"),
    ],
)
async def test_what_cannot_be_sent_is_refused(
    http: httpx.AsyncClient, system: Double, body: dict[str, Any], param: str | None
) -> None:
    answer = await http.post("/api/bus/messages", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("cannot ")
    assert error["param"] == param
    assert await system.store.load_messages() == []


@pytest.mark.parametrize("path", ["/api/bus/replay", "/api/bus/purge"])
async def test_of_a_topic_that_is_not_there(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={"topic": "jobs/none"})
    assert answer.status_code == 404
    answer = await http.get("/api/bus/messages", params={"topic": "jobs/none"})
    assert (answer.status_code, answer.json()) == (200, {"messages": []})
    await send(http)
    answer = await http.post(path, json={"topic": "jobs/resise"})
    assert answer.status_code == 404
    assert "did you mean 'jobs/resize'" in answer.json()["error"]["message"]


async def test_while_nothing_can_be_kept_nothing_is_accepted(
    http: httpx.AsyncClient, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(changes: Any) -> None:
        raise StorageError("cannot write the database: no space left on device")

    monkeypatch.setattr(system.store, "commit_messages", full)
    first = asyncio.ensure_future(send(http, id="m1"))
    await until(lambda: system.topics.storage_error is not None)
    again = await send(http, id="m2")
    assert again.status_code == 503
    assert "no space left" in again.json()["error"]["message"]
    assert int(again.headers["Retry-After"]) > 0
    assert not first.done()
    monkeypatch.undo()
    assert (await first).status_code == 201
    assert "m1" in {m.id for m in await system.store.load_messages()}


async def test_a_tail_tells_what_becomes_of_a_message(url: str, system: Double) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as http:
        async with http.stream("GET", "/api/bus/tail", params={"topic": TOPIC}) as stream:
            parts = stream.aiter_lines()
            assert (await anext(parts)).startswith(":")  # it listens
            await send(http, "hello", id="m1")
            await http.post("/api/bus/messages", json={"topic": "other", "body": "y"})
            given = await receive(system)
            await give_back(system, given, "not now")
            given = await receive(system)
            topics = system.topics
            await topics.ask(
                ev.Ack(request=topics.next_request(), topic=TOPIC, delivery=given.number, id="m1")
            )
            seen: list[tuple[str, dict[str, Any]]] = []
            kind = ""
            async with asyncio.timeout(10):
                async for line in parts:
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        seen.append((kind, json.loads(line.removeprefix("data: "))))
                        if kind == "acknowledged":
                            break
        whole = [event for event, _ in seen]
        assert whole == ["waiting", "delivered", "failed", "delivered", "acknowledged"]
        assert {message["id"] for _, message in seen} == {"m1"}
        assert seen[0][1]["body"] == "hello"
        assert seen[1][1]["receiver"] == "worker"


async def test_a_tail_that_is_not_read_is_cut_and_holds_nothing(
    system: Double, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOPIC_EVENTS_WAITING_MAX", 3)
    with system.topics.watch(TOPIC) as queue:
        for _ in range(5):
            await send(http)
        found = []
        with suppress(asyncio.QueueEmpty):
            while True:
                found.append(queue.get_nowait())
    assert found[-1] is None
    assert len(found) == 3
