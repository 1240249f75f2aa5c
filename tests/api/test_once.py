"""The same Idempotency-Key: what was asked for is done once, however often it is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.double import Double
from tests.api.test_audit import rows
from tests.api.test_bus import TOPIC, kill, messages, send
from tests.api.test_tasks import submit


async def post(
    http: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None, key: str = "k"
) -> httpx.Response:
    answer = await http.post(path, json=body or {}, headers={"Idempotency-Key": key})
    assert answer.status_code < 300, answer.text
    return answer


async def test_a_pause_that_is_sent_again_stops_nobody_who_goes_on(
    http: httpx.AsyncClient, system: Double
) -> None:
    task = (await submit(http, name="a"))["id"]
    await system.until(lambda: system.view.tasks[task].state == "running")
    await post(http, "/api/tasks/a/pause")
    await system.until(lambda: system.view.tasks[task].state == "paused")
    await post(http, f"/api/tasks/{task}/resume", key="r")
    await system.until(lambda: system.view.tasks[task].state == "running")
    assert (await post(http, "/api/tasks/a/pause")).json()["state"] == "running"
    assert system.view.tasks[task].held is None
    assert [r["action"] for r in await rows(http, subject=task)] == ["resume", "pause", "submit"]


async def test_a_key_means_the_task_that_it_was_sent_for(
    http: httpx.AsyncClient, system: Double
) -> None:
    first = (await submit(http, name="a"))["id"]
    assert (await post(http, "/api/tasks/a/cancel")).json()["id"] == first
    second = (await submit(http, name="a"))["id"]
    assert (await post(http, "/api/tasks/a/cancel")).json()["id"] == first
    assert system.view.tasks[second].stopping is None
    assert (await post(http, "/api/tasks/a/cancel", key="other")).json()["id"] == second


async def test_a_priority_that_is_sent_again_changes_no_later_one(http: httpx.AsyncClient) -> None:
    task = (await submit(http))["id"]
    await post(http, f"/api/tasks/{task}/nice", {"priority": 70})
    await post(http, f"/api/tasks/{task}/nice", {"priority": 20}, key="l")
    again = await post(http, f"/api/tasks/{task}/nice", {"priority": 70})
    assert again.json()["spec"]["priority"] == 20
    other = await http.post(
        f"/api/tasks/{task}/nice", json={"priority": 71}, headers={"Idempotency-Key": "k"}
    )
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


async def test_a_purge_and_a_replay_that_are_sent_again_take_nothing_that_came_later(
    http: httpx.AsyncClient, system: Double
) -> None:
    await send(http, id="m0")
    await kill(system, "no space")
    assert (await post(http, "/api/bus/replay", {"topic": TOPIC})).json() == {"count": 1}
    await kill(system, "no space")
    assert (await post(http, "/api/bus/replay", {"topic": TOPIC})).json() == {"count": 1}
    assert len(await messages(http, which="dead")) == 1
    purge = {"topic": TOPIC, "which": "dead"}
    assert (await post(http, "/api/bus/purge", purge, key="p")).json() == {"count": 1}
    await send(http, id="m1")
    await kill(system, "no space")
    assert (await post(http, "/api/bus/purge", purge, key="p")).json() == {"count": 1}
    assert len(await messages(http, which="dead")) == 1
    assert len(await rows(http, subject=TOPIC)) == 2


async def test_two_at_once_under_one_key_are_one(http: httpx.AsyncClient, system: Double) -> None:
    await send(http, id="m0")
    await kill(system, "no space")
    body = {"topic": TOPIC, "which": "dead"}
    answers = await asyncio.gather(*(post(http, "/api/bus/purge", body) for _ in range(5)))
    assert [answer.json() for answer in answers] == [{"count": 1}] * 5
    assert len(await rows(http, action="purge")) == 1


async def test_an_alias_that_is_sent_again_moves_nothing_back(http: httpx.AsyncClient) -> None:
    await post(http, "/api/models/copy", {"source": "other", "target": "tiny"}, key="c")
    await post(http, "/api/models/tiny/aliases", {"alias": "best", "version": 1})
    await post(http, "/api/models/tiny/aliases", {"alias": "best", "version": 2}, key="l")
    again = await post(http, "/api/models/tiny/aliases", {"alias": "best", "version": 1})
    assert again.json()["version"] == 1
    assert (await http.get("/api/models/tiny:best")).json()["version"] == 2


async def test_an_export_that_is_sent_again_writes_nothing(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    body = {"ref": "tiny", "path": str(tmp_path / "copy")}
    await post(http, "/api/models/export", body)
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert (await post(http, "/api/models/export", body)).json() == {"path": body["path"]}
    assert not (tmp_path / "copy").exists()


async def test_a_daemon_is_told_once_to_go_down(http: httpx.AsyncClient, system: Double) -> None:
    for _ in range(2):
        await post(http, "/api/shutdown", {"mode": "drain"})
    assert system.stopped == ["drain"]
    await post(http, "/api/shutdown", {"mode": "drain"}, key="later")
    assert system.stopped == ["drain", "drain"]


async def test_a_rollback_that_is_sent_again_goes_no_further(http: httpx.AsyncClient) -> None:
    await http.post("/api/deployments", json={"model": "tiny"})
    await post(http, "/api/deployments/tiny/rollback", {"to": 1})
    await post(http, "/api/deployments/tiny/rollback", {"to": 2}, key="l")
    again = await post(http, "/api/deployments/tiny/rollback", {"to": 1})
    assert again.json()["version"] == "tiny:2"


@pytest.mark.parametrize("key", ["", "x" * 129])
async def test_what_can_be_no_key_is_refused(http: httpx.AsyncClient, key: str) -> None:
    task = (await submit(http))["id"]
    answer = await http.post(f"/api/tasks/{task}/cancel", headers={"Idempotency-Key": key})
    assert answer.status_code == 400
