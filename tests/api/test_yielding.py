"""Pause, suspend, resume and nice over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.double import Double
from zenos.core.task import Outcome, State


async def running(http: httpx.AsyncClient, system: Double, **work: Any) -> str:
    body = {"work": {"type": "program", "argv": ["true"], **work}, "name": "job"}
    task: str = (await http.post("/api/tasks", json=body)).json()["id"]
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    return task


async def test_pause_and_resume(http: httpx.AsyncClient, system: Double) -> None:
    task = await running(http, system)
    paused = await http.post("/api/tasks/job/pause")
    assert (paused.status_code, paused.json()["state"]) == (200, "pausing")
    await system.until(lambda: system.view.tasks[task].state is State.PAUSED)
    view = (await http.get(f"/api/tasks/{task}")).json()
    assert view["waits"] == f"paused; zenos resume {task}"
    assert (view["task"]["held"], view["task"]["running"]) == ("pause", None)
    again = await http.post(f"/api/tasks/{task}/pause")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    refused = await http.post(f"/api/tasks/{task}/suspend")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "refused")
    resumed = await http.post(f"/api/tasks/{task}/resume", json={})
    assert resumed.status_code == 200
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    assert (await http.get(f"/api/tasks/{task}")).json()["waits"] is None
    types = [event.type for event in await system.events(0, 100, task)]
    wanted = ["submitted", "starting", "running", "pausing", "paused", "resuming", "resumed"]
    assert types == wanted
    assert (await http.post(f"/api/tasks/{task}/resume", json={})).status_code == 409
    inexact = await http.post(f"/api/tasks/{task}/resume", json={"inexact": True})
    assert inexact.status_code == 400


async def test_suspend_is_held_until_resumed(http: httpx.AsyncClient, system: Double) -> None:
    task = await running(http, system, yields="helper")
    system.end = lambda *_: None  # type: ignore[method-assign]
    assert (await http.post(f"/api/tasks/{task}/suspend")).json()["state"] == "suspending"
    Double.end(system, task, 1, Outcome(exit_code=75))
    await system.until(lambda: system.view.tasks[task].state is State.QUEUED)
    view = (await http.get(f"/api/tasks/{task}")).json()
    assert view["waits"] == f"held: suspended; zenos resume {task}"
    await http.post(f"/api/tasks/{task}/resume", json={})
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    assert system.view.tasks[task].generation == 2


@pytest.mark.parametrize(
    "body",
    ['{"priority": NaN}', '{"priority": 1.5}', '{"priority": -1}', '{"priority": 101}', "{}"],
)
async def test_a_priority_that_is_none(http: httpx.AsyncClient, system: Double, body: str) -> None:
    task = await running(http, system)
    answer = await http.post(
        f"/api/tasks/{task}/nice", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith("cannot ")
    assert system.view.tasks[task].spec.priority == 50
    right = await http.post(f"/api/tasks/{task}/nice", json={"priority": 7})
    assert right.json()["spec"]["priority"] == 7


async def test_unknown_tasks_and_ways_to_yield(http: httpx.AsyncClient, system: Double) -> None:
    for verb, body in (
        ("pause", None),
        ("suspend", None),
        ("resume", {}),
        ("nice", {"priority": 1}),
    ):
        assert (await http.post(f"/api/tasks/t9/{verb}", json=body)).status_code == 404, verb
    work = {"type": "program", "argv": ["true"], "yields": "maybe"}
    assert (await http.post("/api/tasks", json={"work": work})).status_code == 400
