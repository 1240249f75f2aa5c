"""Tasks over HTTP: submit, idempotency, list, find, cancel, logs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import TOKEN, until
from tests.api.double import Double
from zenos.core.task import Outcome, State

MIB = 1024 * 1024


def program(**more: Any) -> dict[str, Any]:
    return {"work": {"type": "program", "argv": ["true"]}, **more}


async def submit(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await http.post("/api/tasks", json=program(**more))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_submit_show_cancel(http: httpx.AsyncClient, system: Double) -> None:
    made = await submit(http, name="first", priority=75)
    assert made["state"] == "queued"
    assert made["principal"] == {"user": "local", "project": "default"}
    task_id = made["id"]
    await system.until(lambda: system.view.tasks[task_id].state is State.RUNNING)
    for name in (task_id, "first"):
        view = (await http.get(f"/api/tasks/{name}")).json()
        assert view["task"]["id"] == task_id
        assert view["progress"] is None
    cancelled = await http.post(f"/api/tasks/{task_id}/cancel")
    assert cancelled.status_code == 200
    assert cancelled.json()["id"] == task_id
    await system.until(lambda: system.view.tasks[task_id].is_ended)
    shown = (await http.get(f"/api/tasks/{task_id}")).json()
    assert shown["task"]["state"] == "cancelled"


async def test_what_was_predicted_and_what_it_took(http: httpx.AsyncClient, system: Double) -> None:
    for expected_s, source in ((None, "default"), (None, "learned"), (60.0, "user")):
        task = (await submit(http, name="alike", expected_s=expected_s))["id"]
        await system.until(lambda name=task: system.view.tasks[name].state is State.RUNNING)
        system.end(task, 1, Outcome(exit_code=0))
        await system.until(lambda name=task: system.view.tasks[name].is_ended)
        told = (await http.get(f"/api/tasks/{task}")).json()["prediction"]
        assert told["source"] == source
        assert told["error"] >= 0
    assert (told["finished"], told["compared"], told["signature"]) == (3, 2, "run/local/alike")
    assert told["median_error"] > 0
    (one, *_) = (await http.get("/api/tasks")).json()["tasks"]
    assert one["prediction"] is None


async def test_the_same_key_makes_one_task(http: httpx.AsyncClient, system: Double) -> None:
    headers = {"Idempotency-Key": "k1"}
    answers = await asyncio.gather(
        *(http.post("/api/tasks", json=program(), headers=headers) for _ in range(5))
    )
    assert [answer.status_code for answer in answers] == [201] * 5
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(system.view.tasks) == 1
    other = await http.post("/api/tasks", json=program(name="x"), headers=headers)
    assert other.status_code == 409
    for key in ("", "k" * 129):
        refused = await http.post("/api/tasks", json=program(), headers={"Idempotency-Key": key})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "Idempotency-Key"


async def test_what_can_never_fit_is_422(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/tasks", json=program(resources={"gpu": 3000}))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "unfittable"
    assert "cannot ever fit" in error["message"]


async def test_list(http: httpx.AsyncClient, system: Double) -> None:
    first = await submit(http, name="a")
    second = await submit(http, name="b")
    await system.until(lambda: system.view.tasks[second["id"]].state is State.RUNNING)
    task = system.view.tasks[second["id"]]
    system.end(task.id, task.generation, Outcome(exit_code=0))
    await system.until(lambda: system.view.tasks[task.id].is_ended)
    third = await submit(http, name="c")

    async def names(**params: Any) -> list[str]:
        answer = await http.get("/api/tasks", params=params)
        assert answer.status_code == 200
        return [view["task"]["id"] for view in answer.json()["tasks"]]

    live = [third["id"], first["id"]]
    assert await names() == [*live, second["id"]]
    assert await names(limit=1) == [third["id"]]
    assert await names(state="succeeded") == [second["id"]]
    assert await names(state=["succeeded", "running", "queued"], kind="run") == await names()
    assert await names(state="succeeded,failed") == [second["id"]]
    assert await names(kind="train") == []
    for params in ({"state": "runing"}, {"kind": "x"}, {"limit": "0"}, {"limit": "x"}):
        answer = await http.get("/api/tasks", params=params)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(params))
    hint = (await http.get("/api/tasks", params={"state": "runing"})).json()["error"]["message"]
    assert "did you mean 'running'?" in hint


async def test_a_replica_is_not_submitted_by_itself(http: httpx.AsyncClient) -> None:
    body = {"work": {"type": "serve", "model": "tiny", "deployment": "tiny"}}
    answer = await http.post("/api/tasks", json=body)
    assert answer.status_code == 403


async def test_unknown_tasks(http: httpx.AsyncClient) -> None:
    await submit(http, name="training-run")
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/log")):
        answer = await http.request(method, f"/api/tasks/trainig-run{path}")
        assert answer.status_code == 404
        assert "did you mean 'training-run'?" in answer.json()["error"]["message"]


async def test_log(http: httpx.AsyncClient, system: Double) -> None:
    made = await submit(http)
    assert (await http.get(f"/api/tasks/{made['id']}/log")).content == b""
    await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
    raw = b"one\n\xff\x00two <script>\n" * 10_000
    (system.root / f"{made['id']}-1.log").write_bytes(raw)
    answer = await http.get(f"/api/tasks/{made['id']}/log")
    assert answer.content == raw
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    part = await http.get(f"/api/tasks/{made['id']}/log", params={"offset": 100})
    assert part.content == raw[100:]
    beyond = await http.get(f"/api/tasks/{made['id']}/log", params={"offset": 10**12})
    assert beyond.content == b""
    for offset in ("-1", "x", "1e99", str(2**70)):
        bad = await http.get(f"/api/tasks/{made['id']}/log", params={"offset": offset})
        assert bad.status_code == 400


async def test_the_log_of_an_earlier_run(http: httpx.AsyncClient, system: Double) -> None:
    task = (await submit(http))["id"]
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    for generation, text in ((1, b"first"), (2, b"second")):
        path = system.log_path(task, generation)
        assert path is not None
        path.write_bytes(text)
    system.view.tasks[task] = msgspec.structs.replace(system.view.tasks[task], generation=2)
    log = f"/api/tasks/{task}/log"
    assert (await http.get(log)).content == b"second"
    assert (await http.get(log, params={"generation": 1})).content == b"first"
    assert (await http.get(log, params={"generation": 1, "offset": 2})).content == b"rst"
    answer = await http.get(log, params={"generation": 3})
    assert answer.status_code == 404
    assert "started 2 times" in answer.json()["error"]["message"]


async def test_a_log_is_followed_to_the_end_over_restarts(url: str, system: Double) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as http:
        made = await submit(http, retries=1)
        task_id = made["id"]
        await system.until(lambda: system.view.tasks[task_id].state is State.RUNNING)
        log = system.root / f"{task_id}-1.log"
        log.write_bytes(b"begin")
        read = bytearray()

        async def follow() -> None:
            path = f"/api/tasks/{task_id}/log"
            async with http.stream("GET", path, params={"follow": "true", "offset": 2}) as answer:
                async for part in answer.aiter_bytes():
                    read.extend(part)

        following = asyncio.ensure_future(follow())
        await until(lambda: bytes(read) == b"gin")
        with log.open("ab") as file:
            file.write(b" more")
        await until(lambda: bytes(read) == b"gin more")
        system.end(task_id, 1, Outcome(exit_code=1))
        await system.until(lambda: system.view.tasks[task_id].generation == 2)
        (system.root / f"{task_id}-2.log").write_bytes(b" again")
        await until(lambda: bytes(read) == b"gin more again")
        await system.until(lambda: system.view.tasks[task_id].state is State.RUNNING)
        system.end(task_id, 2, Outcome(exit_code=0))
        await asyncio.wait_for(following, 10)
        assert bytes(read) == b"gin more again"


HUGE = b"9" * 400
PROGRAM = b'"work":{"type":"program","argv":["a"]}'


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"{", "JSON"),
        (b"[]", "give a mapping"),
        (b"null", "give a mapping"),
        (b"{}", "work"),
        (b'{"work":{"type":"pogram","argv":["a"]}}', "pogram"),
        (b"{%b,%b" % (PROGRAM, PROGRAM), "JSON"),
        (b'{%b,"nmae":"x"}' % PROGRAM, "did you mean 'name'?"),
    ],
)
async def test_bad_bodies(http: httpx.AsyncClient, system: Double, body: bytes, said: str) -> None:
    await check_refused(http, system, body, said)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (b'"argv":["\xff"]', "UTF-8"),
        (b'"argv":["a\\u0000"]', "NUL"),
        (b'"argv":["\\ud800"]', "cannot"),
        (b'"argv":["\\ud800\\ud800"]', "cannot"),
        (b'"argv":[]', "nothing"),
        (b'"argv":"true"', "give a list, not text"),
        (b'"argv":["a"],"env":{"A=B":"c"}', "environment"),
        (b'"argv":["%b"]' % (b"x" * 200_000), "bytes of arguments"),
    ],
)
async def test_bad_programs(
    http: httpx.AsyncClient, system: Double, work: bytes, said: str
) -> None:
    await check_refused(http, system, b'{"work":{"type":"program",%b}}' % work, said)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (b'"name":"../x"', "name"),
        (b'"name":"a/b"', "name"),
        (b'"name":"a\\nb"', "name"),
        (b'"name":"a\\u0000"', "name"),
        ('"name":"😀"'.encode(), "name"),
        (b'"name":"%b"' % (b"x" * 10_000), "10000"),
        (b'"priority":NaN', "JSON"),
        (b'"priority":1e999', "priority"),
        (b'"priority":-1', "priority"),
        (b'"priority":%b' % HUGE, "priority"),
        (b'"priority":"50"', "priority"),
        (b'"retries":%b' % HUGE, "retries"),
        (b'"retries":-1', "retries"),
        (b'"expected_s":-1', "time"),
        (b'"expected_s":Infinity', "JSON"),
        (b'"expected_s":1e999', "expected_s"),
        (b'"time_limit_s":0', "time"),
        (b'"resources":{"cpu":-1}', "negative"),
        (b'"resources":{"cpu":0.5}', "cpu"),
        (b'"resources":{"cpu":%b}' % HUGE, "CPU"),
        (b'"resources":{"memory":%b}' % HUGE, "memory"),
        (b'"resources":{"memory":-%b}' % HUGE, "negative"),
        (b'"resources":{"gpu":1500}', "GPU"),
        (b'"resources":{"cpus":1}', "did you mean 'cpu'?"),
    ],
)
async def test_bad_fields(http: httpx.AsyncClient, system: Double, field: bytes, said: str) -> None:
    await check_refused(http, system, b"{%b,%b}" % (PROGRAM, field), said)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (b'"create","name":"a","arch":"b","seed":%b' % HUGE, "seed"),
        (b'"create","name":"a","arch":"../b"', "architecture"),
        (b'"create","name":"a","arch":"b","settings":{"a":%b}' % deep(200), "nested"),
        (b'"create","name":"a","arch":"b","settings":{"a":%b}' % deep(100_000), "nested"),
        (b'"train","model":"m","arch":"a","data":{"paths":[]}', "nothing"),
        (b'"train","model":"m","arch":"a","data":{"paths":["/x\\u0000"]}', "path"),
        (b'"train","model":"m","data":{"paths":["/x"]}', "either"),
        (b'"train","model":"m","arch":"a","data":{"paths":["/x"]},"batchsize":2', "'batch_size'?"),
        (b'"train","model":"m","arch":"a","data":{"paths":["/x"]},"clip":-1', "clip"),
        (b'"train","model":"m","base":"b","data":{"paths":["/x"]},"vocab_size":300', "b's is used"),
        (b'"train","model":"m","arch":"a","data":{"paths":["/x"]},"steps":%b' % HUGE, "steps"),
    ],
)
async def test_bad_training(
    http: httpx.AsyncClient, system: Double, work: bytes, said: str
) -> None:
    await check_refused(http, system, b'{"work":{"type":%b}}' % work, said)


async def check_refused(http: httpx.AsyncClient, system: Double, body: bytes, said: str) -> None:
    answer = await http.post("/api/tasks", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith("cannot ")
    assert said in error["message"]
    assert len(error["message"]) < 1500
    assert error["code"] == "invalid"
    assert system.view.tasks == {}
    assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%252e%252e%252f",
        "a%00b",
        "%ff%fe",
        "a%0ab",
        "%F0%9F%98%80",
        "x" * 1000,
        "~root",
        "%5c..%5c",
        "t1;rm",
    ],
)
async def test_path_tricks_find_nothing(http: httpx.AsyncClient, name: str) -> None:
    for method, path in (
        ("GET", "/api/tasks/{}"),
        ("POST", "/api/tasks/{}/cancel"),
        ("GET", "/api/tasks/{}/log"),
        ("GET", "/api/models/{}"),
        ("DELETE", "/api/models/{}"),
        ("GET", "/v1/models/{}"),
        ("GET", "/api/deployments/{}"),
        ("DELETE", "/api/deployments/{}"),
        ("GET", "/api/schemas/{}"),
        ("GET", "/api/events?task={}"),
    ):
        answer = await http.request(method, path.format(name))
        assert answer.status_code in (400, 404, 405), (method, path, answer.text)
        assert answer.json()["error"]["message"].startswith("cannot ")
        assert len(answer.text) < 2000


async def test_a_queued_task_says_what_it_waits_for(
    http: httpx.AsyncClient, system: Double
) -> None:
    holds = {"cpu": 3500, "gpu": 0, "memory": 4 * 1024 * MIB}
    first = await submit(http, resources=holds)
    await system.until(lambda: system.view.tasks[first["id"]].state is State.RUNNING)
    waiting = await submit(http, resources={"cpu": 1000, "gpu": 0, "memory": 5 * 1024 * MIB})
    view = (await http.get(f"/api/tasks/{waiting['id']}")).json()
    assert view["waits"] == (
        "waits for 1 CPU (3.5 of 4 in use) and 5 GiB of memory (4 GiB of 8 GiB in use)"
    )
    (listed,) = (await http.get("/api/tasks", params={"state": "queued"})).json()["tasks"]
    assert listed["waits"] == view["waits"]
    running = (await http.get(f"/api/tasks/{first['id']}")).json()
    assert running["waits"] is None


async def test_a_task_is_found_under_the_name_that_it_is_listed_with(
    http: httpx.AsyncClient,
) -> None:
    work = {"type": "train", "model": "wq", "arch": "llama-nano", "data": {"paths": ["/x"]}}
    made = (await http.post("/api/tasks", json={"work": work})).json()
    assert (await http.get("/api/tasks/wq")).json()["task"]["id"] == made["id"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"name": "t12"}, "task ids look like that"),
        ({"resources": {"gpu_memory": 1024}}, "cannot give GPU memory without a GPU"),
        ({"work": {"type": "program", "argv": ["a"], "cwd": "here"}}, "give a whole path"),
        (
            {"work": {"type": "train", "model": "m", "arch": "a", "data": {"paths": ["a.txt"]}}},
            "cannot use the data path 'a.txt': give a whole path",
        ),
        (
            {
                "work": {
                    "type": "train",
                    "model": "m",
                    "arch": "a",
                    "data": {"paths": ["/a.txt"], "encoding": "klingon"},
                }
            },
            "cannot use the encoding 'klingon': unknown; e.g. utf-8, gb18030",
        ),
    ],
)
async def test_what_would_mislead_later_is_refused(
    http: httpx.AsyncClient, system: Double, body: dict[str, Any], says: str
) -> None:
    await check_refused(http, system, msgspec.json.encode(program(**body)), says)
