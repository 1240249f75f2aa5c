"""Why tasks wait, and the plan, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.double import Double
from zenos.api import outlook
from zenos.core.task import Outcome, State


async def submit(http: httpx.AsyncClient, **more: Any) -> str:
    body = {"work": {"type": "program", "argv": ["true"]}, **more}
    answer = await http.post("/api/tasks", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_why_a_task_waits_and_the_plan(http: httpx.AsyncClient, system: Double) -> None:
    first = await submit(http, name="first", resources={"cpu": 3000}, expected_s=100.0)
    await system.until(lambda: system.view.tasks[first].state is State.RUNNING)
    second = await submit(http, name="second", resources={"cpu": 3000}, expected_s=10.0)
    made = (await http.get("/api/tasks/second/why")).json()
    assert (made["task"], made["state"], made["ahead"]) == (second, "queued", 0)
    assert made["reason"] == "it waits for 2 CPU more on local"
    assert made["lacks"][0]["holders"][0]["task"] == first
    kinds = {remedy["kind"]: remedy for remedy in made["remedies"]}
    assert kinds["end"]["tasks"] == [first]
    assert 0 < made["starts_at"] - made["at"] <= 100
    plan = (await http.get("/api/plan")).json()
    assert [(s["task"], s["ends"]) for s in plan["segments"]] == [
        (first, "finished"),
        (second, "finished"),
    ]
    assert plan["complete"]
    near = (await http.get("/api/plan", params={"ahead_s": 1})).json()
    assert not near["complete"]
    assert near["never"] == [second]
    running = (await http.get("/api/tasks/first/why")).json()
    assert running["stay"]["node"] == "local"
    assert running["because"] == ""
    system.end(first, 1, Outcome(exit_code=3))
    await system.until(lambda: system.view.tasks[first].is_ended)
    over = (await http.get(f"/api/tasks/{first}/why")).json()
    assert over["reason"] == "failed: cannot finish: the program ended with exit code 3"


async def test_what_its_history_says(http: httpx.AsyncClient, system: Double) -> None:
    task = await submit(http)
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    await http.post(f"/api/tasks/{task}/pause")
    await system.until(lambda: system.view.tasks[task].state is State.PAUSED)
    made = (await http.get(f"/api/tasks/{task}/why")).json()
    assert made["because"] == "pausing: by local"
    assert [remedy["kind"] for remedy in made["remedies"]] == ["resume"]


async def test_all_of_its_history(http: httpx.AsyncClient, system: Double) -> None:
    task = await submit(http, retries=1)
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    system.end(task, 1, Outcome(signal=9))
    await system.until(lambda: system.view.tasks[task].generation == 2)
    await submit(http, name="other")
    made = (await http.get(f"/api/tasks/{task}/history")).json()
    told = [(event["type"], event["generation"]) for event in made["events"]]
    assert told[:4] == [("submitted", 0), ("starting", 1), ("running", 1), ("restarting", 1)]
    assert {event["task"] for event in made["events"]} == {task}
    assert "signal 9" in made["events"][3]["detail"]
    assert made["left_out"] == 0
    assert (await http.get("/api/tasks/t99/history")).status_code == 404


async def test_of_a_long_history_the_end(
    http: httpx.AsyncClient, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "HISTORY_MAX", 2)
    monkeypatch.setattr(outlook, "_PAGE", 1)
    task = await submit(http)
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    made = (await http.get(f"/api/tasks/{task}/history")).json()
    assert [event["type"] for event in made["events"]] == ["starting", "running"]
    assert made["left_out"] == 1


@pytest.mark.parametrize("ahead", ["nan", "0", "-1", "1e300", "inf", "x"])
async def test_a_plan_of_no_time(http: httpx.AsyncClient, system: Double, ahead: str) -> None:
    answer = await http.get("/api/plan", params={"ahead_s": ahead})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("cannot ")


async def test_a_parameter_that_there_is_not(http: httpx.AsyncClient, system: Double) -> None:
    answer = await http.get("/api/plan", params={"ahead": "60"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ahead")


async def test_why_of_a_task_that_is_not_there(http: httpx.AsyncClient, system: Double) -> None:
    assert (await http.get("/api/tasks/t99/why")).status_code == 404
