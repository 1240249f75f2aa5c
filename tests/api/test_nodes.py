"""Cordon, drain and uncordon over HTTP."""

from __future__ import annotations

import httpx
import pytest
from msgspec.structs import replace

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


@pytest.mark.parametrize("verb", ["cordon", "drain", "uncordon"])
async def test_a_word_for_a_node_that_has_gone_is_answered_as_before(
    http: httpx.AsyncClient, system: Double, verb: str
) -> None:
    await http.post("/api/nodes/local/cordon")
    key = {"Idempotency-Key": "k"}
    first = await http.post(f"/api/nodes/local/{verb}", headers=key)
    assert first.status_code == 200
    # As by the daemon's next start under another name.
    nodes = dict(system.view.nodes)
    system.view.nodes = {}
    again = await http.post(f"/api/nodes/local/{verb}", headers=key)
    assert (again.status_code, again.json()) == (200, first.json())
    system.view.nodes = nodes


async def test_a_key_that_an_older_daemon_kept_means_its_node(
    http: httpx.AsyncClient, system: Double
) -> None:
    key = {"Idempotency-Key": "k"}
    await http.post("/api/nodes/local/cordon", headers=key)
    [known] = [k for k in system.kernel.state.keys.values() if k.key == "k"]
    system.kernel.state.put_key(replace(known, subject="local"))
    again = await http.post("/api/nodes/local/cordon", headers=key)
    assert (again.status_code, again.json()["node"]["name"]) == (200, "local")
    system.kernel.state.put_key(replace(known, subject="gone"))
    gone = await http.post("/api/nodes/local/cordon", headers=key)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


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
