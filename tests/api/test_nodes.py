"""Cordon, drain and uncordon over HTTP."""

from __future__ import annotations

import httpx

from tests.api.double import Double
from tests.api.test_yielding import running
from zenos.core.task import State

BODY = {"work": {"type": "program", "argv": ["true"]}}


async def test_cordon_and_uncordon(http: httpx.AsyncClient, system: Double) -> None:
    runs = await running(http, system)
    said = await http.post("/api/nodes/local/cordon")
    assert (said.status_code, said.json()["node"]["cordon"]) == (200, "cordon")
    assert said.json()["used"]["cpu"] == 1000
    assert (await http.get("/api/nodes")).json()["nodes"][0]["node"]["cordon"] == "cordon"
    assert 'zenos_node_takes_work{node="local"} 0.0' in (await http.get("/metrics")).text
    task = (await http.post("/api/tasks", json=BODY)).json()["id"]
    assert (await http.get(f"/api/tasks/{task}")).json()["waits"] == "node local is cordoned"
    why = (await http.get(f"/api/tasks/{task}/why")).json()
    assert why["reason"] == "it waits until a node takes it: node local is cordoned"
    assert [remedy["kind"] for remedy in why["remedies"]] == ["uncordon"]
    assert system.view.tasks[runs].state is State.RUNNING
    assert (await http.post("/api/nodes/local/uncordon")).json()["node"]["cordon"] is None
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)


async def test_a_drain_is_done_once_under_its_key_and_written_down(
    http: httpx.AsyncClient, system: Double
) -> None:
    task = await running(http, system, yields="signals")
    key = {"Idempotency-Key": "drain"}
    drained = await http.post("/api/nodes/local/drain", headers=key)
    assert drained.json()["node"]["cordon"] == "drain"
    await system.until(lambda: system.view.tasks[task].generation == 1)
    await http.post("/api/nodes/local/uncordon")
    again = await http.post("/api/nodes/local/drain", headers=key)
    assert (again.status_code, again.json()["node"]["cordon"]) == (200, None)
    other = await http.post("/api/nodes/local/cordon", headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    unknown = await http.post("/api/nodes/locl/drain")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert "did you mean 'local'" in unknown.json()["error"]["message"]
    rows = (await http.get("/api/audit")).json()["rows"]
    told = [(r["action"], r["subject"], r["accepted"]) for r in reversed(rows)][1:]
    assert told == [("drain", "local", True), ("uncordon", "local", True), ("drain", "locl", False)]
