"""Who did what, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.api.double import Double, publish
from tests.api.test_tasks import program, submit


async def rows(http: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await http.get("/api/audit", params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rows"]
    return found


async def test_requests_have_rows_newest_first(http: httpx.AsyncClient) -> None:
    made = await submit(http, name="a")
    await http.post(f"/api/tasks/{made['id']}/cancel")
    await http.post("/api/tasks", json=program(resources={"gpu": 3000}))
    found = await rows(http)
    assert [(r["action"], r["accepted"]) for r in found] == [
        ("submit", False),
        ("cancel", True),
        ("submit", True),
    ]
    assert found[1]["principal"] == {"user": "local", "project": "default"}
    assert "cannot ever fit" in found[0]["reason"]
    assert await rows(http, action="cancel") == [found[1]]
    assert await rows(http, subject=made["id"]) == found[1:]
    assert await rows(http, limit=1, before=found[1]["number"]) == [found[2]]
    assert await rows(http, since=found[0]["at"] + 1000) == []
    assert await rows(http, user="nobody") == []


async def test_bad_filters_are_refused(http: httpx.AsyncClient) -> None:
    for params in ({"action": "cancle"}, {"limit": "0"}, {"before": "x"}, {"since": "-1"}):
        answer = await http.get("/api/audit", params=params)
        assert answer.status_code == 400, params
        assert answer.json()["error"]["param"] == next(iter(params))


async def test_without_the_token_nothing_is_told(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/audit", headers={"Authorization": "Bearer x"})
    assert answer.status_code == 401


async def test_the_registry_and_topics(
    http: httpx.AsyncClient, system: Double, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    publish(system.registry, directory, "base")
    copied = {"source": "base", "target": "taken"}
    for _ in range(2):
        answer = await http.post("/api/models/copy", json=copied, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 201, answer.text
    await http.post("/api/models/base/aliases", json={"alias": "best", "version": 1})
    await http.post("/api/models/base/aliases", json={"alias": "best", "version": 7})
    await http.delete("/api/models/taken")
    await http.post("/api/bus/messages", json={"topic": "q", "body": "x"})
    await http.post("/api/bus/purge", json={"topic": "q", "which": "waiting"})
    await http.post("/api/shutdown", json={"mode": "leave"})
    found = [(r["action"], r["subject"], r["accepted"]) for r in reversed(await rows(http))]
    assert found == [
        ("copy", "base to taken", True),
        ("alias", "base:best to 1", True),
        ("alias", "base:best to 7", False),
        ("remove", "taken:1", True),
        ("purge", "q", True),
        ("down", "leave", True),
    ]
