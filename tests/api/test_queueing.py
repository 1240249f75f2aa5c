"""What decides when a task may start, over HTTP: tasks before it, arrays, times, places."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.api.double import Double
from tests.api.test_tasks import program, submit
from zenos.core.task import Outcome, State


async def refused(http: httpx.AsyncClient, **more: Any) -> tuple[int, str]:
    answer = await http.post("/api/tasks", json=program(**more))
    return answer.status_code, answer.json()["error"]["message"]


async def test_after(http: httpx.AsyncClient, system: Double) -> None:
    first = await submit(http, name="first")
    child = await submit(http, after=["first"])
    later = await submit(http, after=[child["id"], "any:first"])
    assert (child["after"], later["after"]) == ([first["id"]], [child["id"], f"any:{first['id']}"])
    await system.until(lambda: system.view.tasks[first["id"]].state is State.RUNNING)
    view = (await http.get(f"/api/tasks/{child['id']}")).json()
    assert view["waits"] == "comes after first (running)"
    view = (await http.get(f"/api/tasks/{later['id']}")).json()
    assert view["waits"] == f"comes after {child['id']} (queued) and 1 more"
    system.end(first["id"], 1, Outcome(exit_code=3))
    await system.until(lambda: system.view.tasks[later["id"]].is_ended)
    view = (await http.get(f"/api/tasks/{later['id']}")).json()
    assert view["task"]["state"] == "cancelled"
    assert view["waits"] is None
    text = f"it comes after the success of {child['id']}, and {first['id']} has failed"
    assert view["task"]["outcome"]["error"] == f"cannot start: {text}"
    assert (await refused(http, after=["nobody"]))[0] == 404
    assert (await refused(http, after=["a b"]))[0] == 400
    assert (await refused(http, after="first"))[0] == 400


async def test_several_tasks_as_one(http: httpx.AsyncClient, system: Double) -> None:
    tasks = [program(name="last", after=["first", "any:middle"]), program(name="first")]
    tasks.append(program(name="middle", after=["first"]))
    headers = {"Idempotency-Key": "k"}
    made = await http.post("/api/batches", json={"tasks": tasks}, headers=headers)
    assert made.status_code == 201, made.text
    first, middle, last = made.json()["tasks"]
    assert [first["spec"]["name"], last["after"]] == ["first", [first["id"], f"any:{middle['id']}"]]
    again = await http.post("/api/batches", json={"tasks": tasks}, headers=headers)
    assert [t["id"] for t in again.json()["tasks"]] == [t["id"] for t in (first, middle, last)]
    other = await http.post("/api/batches", json={"tasks": tasks[1:]}, headers=headers)
    assert other.status_code == 409
    tasks[1]["after"] = ["last"]
    circle = await http.post("/api/batches", json={"tasks": tasks})
    assert circle.status_code == 400
    assert " → " in circle.json()["error"]["message"]
    assert len(system.view.tasks) == 3


async def test_arrays(http: httpx.AsyncClient, system: Double) -> None:
    body = {"task": program(name="sweep"), "indices": {"first": 0, "last": 9, "limit": 2}}
    headers = {"Idempotency-Key": "k"}
    made = await http.post("/api/arrays", json=body, headers=headers)
    assert made.status_code == 201, made.text
    array = made.json()["array"]["id"]
    again = await http.post("/api/arrays", json=body, headers=headers)
    assert again.json()["array"] == made.json()["array"]
    running = {"queued": 8, "running": 2}
    await system.until(lambda: system.view.arrays[array].states(system.view.tasks) == running)
    for name in (array, "sweep"):
        view = (await http.get(f"/api/arrays/{name}")).json()
        assert (view["array"]["id"], view["states"], view["waits"]) == (array, running, None)
    other = await submit(http, name="other")
    listed = (await http.get("/api/tasks?collapse=true")).json()
    assert [view["task"]["id"] for view in listed["tasks"]] == [other["id"]]
    assert [view["array"]["id"] for view in listed["arrays"]] == [array]
    assert (await http.get("/api/tasks?collapse=true&kind=train")).json()["arrays"] == []
    both = (await http.get("/api/tasks?collapse=true&kind=train,run")).json()
    assert [view["array"]["id"] for view in both["arrays"]] == [array]
    assert (await http.get("/api/tasks?collapse=true&state=failed")).json()["arrays"] == []
    plain = (await http.get("/api/tasks")).json()
    assert (len(plain["tasks"]), plain["arrays"]) == (11, [])
    inside = (await http.get("/api/tasks?array=sweep&state=queued")).json()["tasks"]
    assert len(inside) == 8
    one = (await http.get("/api/tasks/sweep[9]")).json()
    assert one["task"]["array"]["index"] == 9
    assert one["waits"] == f"waits for its turn: 2 of {array} at once"
    cancelled = await http.post(f"/api/arrays/{array}/cancel")
    assert cancelled.status_code == 200
    await system.until(lambda: not system.view.arrays[array].is_open(system.view.tasks))
    rows = (await http.get("/api/audit")).json()["rows"]
    assert [(r["action"], r["subject"]) for r in rows if r["subject"] == array] == [
        ("cancel", array),
        ("submit", array),
    ]


async def test_arrays_that_cannot_be(http: httpx.AsyncClient, system: Double) -> None:
    for indices, status in (
        ({"last": 9_999_999}, 413),
        ({"first": 5, "last": 4}, 400),
        ({"last": 9, "step": 0}, 400),
        ({"last": 9, "limit": 0}, 400),
        ({"last": -1}, 400),
        ({}, 400),
    ):
        answer = await http.post("/api/arrays", json={"task": program(), "indices": indices})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"].startswith("cannot ")
    for path in ("/api/arrays/array-9", "/api/tasks?array=nobody"):
        assert (await http.get(path)).status_code == 404
    assert (await http.post("/api/arrays/nobody/cancel")).status_code == 404
    assert system.view.tasks == {}


async def test_start_times_and_deadlines(http: httpx.AsyncClient, system: Double) -> None:
    made = await submit(http, start_at=4e9, deadline=5e9)
    assert made["state"] == "queued"
    assert (await http.get(f"/api/tasks/{made['id']}")).json()["waits"].startswith("starts in ")
    tight = await submit(http, expected_s=1e6, deadline=time.time() + 1000)
    assert tight["warning"].startswith("it is expected to run for 1000000 s, and its deadline")
    for more in (
        {"deadline": 1.0},
        {"start_at": -1.0},
        {"start_at": 1e300},
        {"start_at": 5e9, "deadline": 4e9},
        {"deadline": "18:00"},
    ):
        status, message = await refused(http, **more)
        assert (status, message[:7]) == (400, "cannot "), more


async def test_nodes_and_labels(http: httpx.AsyncClient, system: Double) -> None:
    made = await submit(http, node="local")
    await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
    assert system.view.tasks[made["id"]].allocation is not None
    status, message = await refused(http, labels={"disk": "fast"})
    assert (status, "no node has disk=fast" in message) == (422, True)
    assert (await refused(http, node="big"))[0] == 422
    assert (await refused(http, labels={"": "x"}))[0] == 400
    assert (await refused(http, labels={"a": 1}))[0] == 400
