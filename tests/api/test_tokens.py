"""Tokens of users over HTTP: who comes in as whom, what each may do, and that it ends at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.conftest import BASE, TOKEN
from tests.api.double import Double, publish
from tests.api.test_audit import rows
from tests.api.test_bus import kill, send
from tests.api.test_refusals import written
from tests.api.test_tasks import program, submit
from zenos.api.app import create_app
from zenos.core.clock import VirtualClock
from zenos.core.config import Config
from zenos.core.inside import Inside, bearer
from zenos.core.task import Principal, State
from zenos.core.tokens import Tokens

CLOCK = VirtualClock(1_800_000_000)


@pytest.fixture
def users(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json", CLOCK.now)


@pytest.fixture
def app(system: Double, users: Tokens) -> FastAPI:
    return create_app(system, Config(), TOKEN, users)


@asynccontextmanager
async def coming(app: FastAPI, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """Who comes with that token."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers) as client:
        yield client


async def make(http: httpx.AsyncClient, name: str, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/api/tokens", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.fixture
async def people(
    app: FastAPI, http: httpx.AsyncClient
) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """ann and eve of vision, bob of speech; and the operator, without a name."""
    async with AsyncExitStack() as stack:
        found = {"": http}
        for user, project in (("ann", "vision"), ("eve", "vision"), ("bob", "speech")):
            token = (await make(http, f"{user}s", user=user, project=project))["token"]
            found[user] = await stack.enter_async_context(coming(app, token))
        yield found


def refusal(answer: httpx.Response) -> str:
    """What a refusal says."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "refused"), answer.text
    return str(answer.json()["error"]["message"])


async def test_who_comes_with_a_token_is_its_user(
    app: FastAPI, http: httpx.AsyncClient, system: Double
) -> None:
    made = await make(http, "laptop", user="ann", project="vision", expires_s=60)
    assert made["expires"] == made["created"] + 60
    async with coming(app, made["token"]) as ann:
        status = (await ann.get("/api/status")).json()
        assert (status["user"], status["project"], status["operator"]) == ("ann", "vision", False)
        task = await submit(ann)
        assert task["principal"] == {"user": "ann", "project": "vision"}
        (row,) = await rows(http, action="submit")
        assert row["principal"] == {"user": "ann", "project": "vision"}
        listed = (await http.get("/api/tokens")).json()["tokens"]
        assert listed == [
            {
                "name": "laptop",
                "user": "ann",
                "project": "vision",
                "created": made["created"],
                "expires": made["expires"],
                "expired": False,
            }
        ]
    status = (await http.get("/api/status")).json()
    assert (status["user"], status["project"], status["operator"]) == ("local", "default", True)
    assert [(r["action"], r["subject"]) for r in await rows(http, action="grant")] == [
        ("grant", "laptop for ann")
    ]


async def test_rows_of_the_audit_say_which_token_it_was_and_not_its_secret(
    url: str, app: FastAPI, http: httpx.AsyncClient
) -> None:
    """Also of two that one user has, at the same time, and of what is refused."""
    secrets = [(await make(http, name, user="ann"))["token"] for name in ("laptop", "ci")]
    async with httpx.AsyncClient(base_url=url) as any_:

        async def act(secret: str, name: str) -> None:
            headers = {"Authorization": f"Bearer {secret}"}
            task = await any_.post("/api/tasks", json=program(name=name), headers=headers)
            answers = [
                await any_.post(f"/api/tasks/{name}/cancel", headers=headers),
                await any_.post(
                    "/api/tasks", json=program(name=name, resources={"gpu": 9000}), headers=headers
                ),
                await any_.post("/api/nodes/local/cordon", headers=headers),
                await any_.post(
                    "/api/models/copy", json={"source": "tiny", "target": name}, headers=headers
                ),
            ]
            cordoned = 200 if name == "home" else 403
            told = [task.status_code, *(answer.status_code for answer in answers)]
            assert told == [201, 200, 422, cordoned, 201]

        await asyncio.gather(act(secrets[0], "laptop"), act(secrets[1], "ci"), act(TOKEN, "home"))
        await any_.get("/api/tasks")  # without one: nobody's
    found = await rows(http)
    for name, token in (("laptop", "laptop"), ("ci", "ci")):
        mine = [row["action"] for row in found if row["token"] == token]
        assert sorted(mine) == ["cancel", "copy", "refuse", "submit", "submit"], name
        assert {row["principal"]["user"] for row in found if row["token"] == token} == {"ann"}
    others = {(row["action"], row["principal"]["user"]) for row in found if not row["token"]}
    assert {("submit", "local"), ("copy", "local"), ("grant", "local"), ("refuse", "")} <= others
    assert not any(secret in str(found) for secret in (*secrets, TOKEN))


async def test_rows_of_what_a_task_asks_for_name_the_task(system: Double) -> None:
    def running(task: str, generation: int, secret: str) -> Principal | None:
        return Principal("ann", "vision")

    app = create_app(system, Config(), TOKEN, tasks=running)
    async with coming(app, bearer(Inside("t7", 1), "x" * 32)) as inside:
        await submit(inside)
    async with coming(app, TOKEN) as http:
        (row,) = await rows(http)
    assert (row["token"], row["principal"]["user"]) == ("task t7", "ann")


async def test_revoked_and_expired_tokens_are_refused_on_the_next_request(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    laptop = await make(http, "laptop", user="ann")
    guest = await make(http, "guest", user="bob", expires_s=3600)
    async with coming(app, laptop["token"]) as ann, coming(app, guest["token"]) as bob:
        assert (await ann.get("/api/tasks")).status_code == 200
        gone = await http.delete("/api/tokens/laptop")
        assert (gone.status_code, gone.json()["user"]) == (200, "ann")
        refused = await ann.get("/api/tasks")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        assert (await bob.get("/api/tasks")).status_code == 200
        CLOCK.advance(3600)
        refused = await bob.get("/api/tasks")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "expired")
        assert "the token guest of bob has expired" in refused.json()["error"]["message"]
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    (left,) = (await http.get("/api/tokens")).json()["tokens"]
    assert (left["name"], left["expired"]) == ("guest", True)
    assert [r["subject"] for r in await rows(http, action="revoke")] == ["laptop"]
    again = await http.delete("/api/tokens/laptop")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")


async def test_what_is_streamed_ends_with_the_token(
    url: str, http: httpx.AsyncClient, system: Double
) -> None:
    token = (await make(http, "laptop", user="ann"))["token"]
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as ann,
        ann.stream("GET", "/api/events") as answer,
    ):
        parts = answer.aiter_text()
        heard: list[str] = []

        async def hear(until: str) -> None:
            while until not in "".join(heard):
                heard.append(await anext(parts))

        await hear(": zenos")
        await hear(f'"{(await submit(http))["id"]}"')
        await http.delete("/api/tokens/laptop")
        later = f'"{(await submit(http))["id"]}"'
        with pytest.raises(httpx.RemoteProtocolError):
            await hear(later)


async def test_one_changes_what_is_of_ones_project_and_reads_all(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    task = (await submit(people["ann"], name="anns"))["id"]
    await system.until(lambda: system.view.tasks[task].state is State.RUNNING)
    sweep = {"task": program(name="sweep"), "indices": {"last": 1}}
    array = (await people["ann"].post("/api/arrays", json=sweep)).json()["array"]["id"]
    bob = people["bob"]
    assert (await bob.get(f"/api/tasks/{task}")).json()["task"]["id"] == task
    for path, body in (
        (f"/api/tasks/{task}/cancel", {}),
        (f"/api/tasks/{task}/pause", {}),
        (f"/api/tasks/{task}/suspend", {}),
        (f"/api/tasks/{task}/resume", {}),
        (f"/api/tasks/{task}/nice", {"priority": 1}),
        (f"/api/arrays/{array}/cancel", {}),
    ):
        assert "it belongs to ann" in refusal(await bob.post(path, json=body)), path
    waits = await bob.post("/api/tasks", json=program(after=[task]))
    assert "it is of another project" in refusal(waits)
    assert system.view.tasks[task].state is State.RUNNING
    said = refusal(await bob.post("/api/bus/messages", json={"topic": f"{task}/in", "body": "x"}))
    assert f"it is one of {task}" in said
    work = {"type": "program", "argv": ["true"], "topics": [task]}
    assert f"it is one of {task}" in refusal(await bob.post("/api/tasks", json={"work": work}))
    async with asyncio.timeout(20):
        noted = await written(system, 2)
    subjects = ["POST /api/bus/messages", "POST /api/tasks"]
    assert [(row.principal.user, row.subject) for row in noted] == [("bob", s) for s in subjects]
    for who in ("ann", "eve", ""):
        sent = await people[who].post(
            "/api/bus/messages", json={"topic": f"{task}/in", "body": "x", "id": f"of-{who}"}
        )
        assert sent.status_code == 201, sent.text
        nicer = await people[who].post(f"/api/tasks/{task}/nice", json={"priority": 60})
        assert nicer.status_code == 200, nicer.text
    ended = await people["eve"].post(f"/api/tasks/{task}/cancel")
    assert (ended.status_code, ended.json()["stopping"]) == (200, "cancel")
    assert (await people[""].post(f"/api/arrays/{array}/cancel")).status_code == 200
    row = (await rows(people[""], action="cancel", user="bob"))[-1]
    assert (row["subject"], row["accepted"]) == (task, False)


MACHINE: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/tokens", None),
    ("POST", "/api/tokens", {"name": "x", "user": "bob"}),
    ("DELETE", "/api/tokens/anns", None),
    ("POST", "/api/nodes/local/cordon", None),
    ("POST", "/api/nodes/local/drain", None),
    ("POST", "/api/nodes/local/uncordon", None),
    ("POST", "/api/shutdown", {}),
    ("POST", "/api/bus/replay", {"topic": "jobs"}),
    ("POST", "/api/bus/purge", {"topic": "jobs"}),
)


def test_what_each_route_that_changes_something_gives_to_whom_is_written_down(app: FastAPI) -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "security.md"
    table = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    for path, item in app.openapi()["paths"].items():
        for method in {"post", "delete", "put", "patch"} & item.keys():
            told = [line for line in table if f"`{method.upper()} {path}`" in line]
            assert len(told) == 1, f"{method.upper()} {path}"
            # Both columns of users: nothing of it.
            alone = "| no | no |" in told[0]
            bare = {(verb, re.sub("anns$", "{name}", one)) for verb, one, _ in MACHINE}
            bare = {(verb, one.replace("/local/", "/{node}/")) for verb, one in bare}
            assert alone == ((method.upper(), path) in bare), (method, path)


@pytest.mark.parametrize(("method", "path", "body"), MACHINE)
async def test_what_concerns_the_machine_is_for_the_operator_alone(
    people: dict[str, httpx.AsyncClient],
    system: Double,
    users: Tokens,
    method: str,
    path: str,
    body: Any,
) -> None:
    await send(people[""], topic="jobs")
    before = (system.view.nodes, users.all(), system.topics.topics.topics["jobs"].live)
    answer = await people["bob"].request(method, path, json=body)
    assert "as bob: it is for the operator alone" in refusal(answer)
    assert (system.view.nodes, users.all(), system.topics.topics.topics["jobs"].live) == before
    assert system.stopped == []
    async with asyncio.timeout(20):
        (row,) = await written(system, 1)
    assert (row.principal.user, row.subject) == ("bob", f"{method} {path}")
    assert (await people[""].request(method, path, json=body)).status_code in (200, 201, 202)


async def test_the_operators_hand_on_dead_messages(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    await send(people["ann"], id="m0")
    await kill(system, "no space")
    listed = await people["bob"].get("/api/bus/messages", params={"topic": "jobs/resize"})
    assert listed.status_code == 200
    purge = {"topic": "jobs/resize", "which": "dead"}
    refusal(await people["ann"].post("/api/bus/purge", json=purge))
    assert (await people[""].post("/api/bus/purge", json=purge)).json() == {"count": 1}


async def test_a_deployment_is_its_projects(people: dict[str, httpx.AsyncClient]) -> None:
    spec = {"model": "tiny", "min_replicas": 0}
    deployed = await people["ann"].post("/api/deployments", json=spec)
    assert deployed.json()["principal"] == {"user": "ann", "project": "vision"}
    bob = people["bob"]
    said = refusal(await bob.post("/api/deployments", json={**spec, "max_replicas": 2}))
    assert "ann serves it" in said
    refusal(await bob.delete("/api/deployments/tiny"))
    refusal(await bob.post("/api/deployments/tiny/rollback", json={}))
    asked = await bob.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert asked.status_code == 200
    changed = await people[""].post("/api/deployments", json={**spec, "max_replicas": 3})
    assert (changed.status_code, changed.json()["principal"]["user"]) == (201, "ann")
    assert (await people["eve"].delete("/api/deployments/tiny")).status_code == 200


async def test_a_model_is_its_projects(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    ann, bob, operator = people["ann"], people["bob"], people[""]
    copied = await ann.post("/api/models/copy", json={"source": "tiny", "target": "mine"})
    assert copied.json()["lineage"]["project"] == "vision"
    train = {"type": "train", "model": "mine", "base": "tiny", "data": {"paths": ["/x"]}}
    create = {"type": "create", "name": "mine", "arch": "llama-nano"}
    publishes = {**train, "model": "new", "publish": "mine"}
    for work in (train, create, publishes):
        said = refusal(await bob.post("/api/tasks", json={"work": work}))
        assert "cannot add a version to mine: it belongs to the project vision" in said
    batch = {"tasks": [program(name="a"), {"work": train, "name": "b", "after": ["a"]}]}
    refusal(await bob.post("/api/batches", json=batch))
    async with asyncio.timeout(20):
        noted = await written(system, 4)
    assert [row.subject for row in noted] == [*["POST /api/tasks"] * 3, "POST /api/batches"]
    refusal(await bob.post("/api/models/copy", json={"source": "other", "target": "mine"}))
    source = {"path": str(system.source), "name": "mine"}
    refusal(await bob.post("/api/models/import", json=source))
    refusal(await bob.delete("/api/models/mine:1"))
    refusal(await bob.post("/api/models/mine/aliases", json={"alias": "prod", "version": 1}))
    # What nobody has written a project into is the operator's.
    assert "belongs to the operator" in refusal(await ann.delete("/api/models/tiny:1"))
    refusal(await ann.post("/api/models/tiny/aliases", json={"alias": "prod", "version": 1}))
    assert not system.view.tasks
    # Reading is for all, and so is a name of one's own.
    assert (await bob.get("/api/models/mine")).status_code == 200
    assert (await bob.post("/api/models/import", json={**source, "name": "b"})).status_code == 201
    assert (await bob.post("/api/models/b/aliases", json={"alias": "p", "version": 1})).is_success
    for who in (people["eve"], operator):
        answer = await who.post("/api/models/mine/aliases", json={"alias": "prod", "version": 1})
        assert answer.status_code == 201, answer.text
    assert (await people["eve"].post("/api/tasks", json={"work": create})).status_code == 201
    assert (await ann.delete("/api/models/mine:1")).status_code == 200
    assert (await operator.delete("/api/models/b:1")).status_code == 200


async def test_a_damaged_model_is_the_operators(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    (system.root / "models/manifests/tiny/1.json").write_bytes(b"{")
    assert "the operator can" in refusal(await people["ann"].delete("/api/models/tiny:1"))
    assert (await people[""].delete("/api/models/tiny:1")).status_code == 200


async def test_an_alias_is_not_moved_from_anothers_version(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    """Of a name to which the operator has added a version of their own."""
    body = {"source": "tiny", "target": "mine"}
    for who in ("ann", ""):
        assert (await people[who].post("/api/models/copy", json=body)).status_code == 201
    aliases = "/api/models/mine/aliases"
    assert (await people[""].post(aliases, json={"alias": "prod", "version": 2})).is_success
    refusal(await people["ann"].post(aliases, json={"alias": "prod", "version": 1}))
    assert (await people["ann"].post(aliases, json={"alias": "dev", "version": 1})).is_success
    assert publish(system.registry, system.source, "mine").version == 3


async def test_users_see_their_own_rows_alone(
    people: dict[str, httpx.AsyncClient], system: Double
) -> None:
    for who in ("ann", "bob", ""):
        await submit(people[who])
    assert {row["principal"]["user"] for row in await rows(people["ann"])} == {"ann"}
    assert len(await rows(people["ann"], user="ann")) == 1
    answer = await people["ann"].get("/api/audit", params={"user": "bob"})
    assert "what 'bob' did" in refusal(answer)
    async with asyncio.timeout(20):
        assert [row.subject for row in await written(system, 1)] == ["GET /api/audit"]
    users = {row["principal"]["user"] for row in await rows(people[""], action="submit")}
    assert users == {"ann", "bob", "local"}


async def test_keys_are_each_users_own(people: dict[str, httpx.AsyncClient]) -> None:
    key = {"Idempotency-Key": "k"}
    made = [
        (await people[who].post("/api/tasks", json=program(), headers=key)).json()["id"]
        for who in ("ann", "bob", "ann")
    ]
    assert made[0] == made[2] != made[1]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": "a"}, 400, "user"),
        ({"name": "a/b", "user": "ann"}, 400, "name of a token"),
        ({"name": "t1", "user": "ann"}, 400, "task ids look like that"),
        ({"name": "a", "user": "local"}, 400, "who has the token of the home"),
        ({"name": "a", "user": "ann", "project": "default"}, 400, "the project default"),
        ({"name": "a", "user": "ann", "expires_s": 0}, 400, "expire in 0 s"),
        ({"name": "a", "user": "ann", "expires_s": "1d"}, 400, "expires_s"),
        ({"name": "a", "user": "ann", "token": "mine"}, 400, "token"),
        ({"name": "anns", "user": "bob"}, 409, "zenos token revoke anns"),
    ],
)
async def test_what_makes_no_token(
    people: dict[str, httpx.AsyncClient], body: dict[str, Any], status: int, says: str
) -> None:
    answer = await people[""].post("/api/tokens", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
    assert answer.json()["error"]["message"].startswith("cannot ")
    assert len((await people[""].get("/api/tokens")).json()["tokens"]) == 3
    # What isn't valid has no row, as everywhere.
    assert len(await rows(people[""], action="grant")) == (4 if status == 409 else 3)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer zenos_",
        "Bearer zenos_" + "A" * 43,
        "Basic {token}",
        "Bearer {token}x",
        "Bearer x{token}",
        "{token}",
        "Bearer",
    ],
)
async def test_what_is_almost_a_token_lets_nobody_in(
    http: httpx.AsyncClient, users: Tokens, header: str
) -> None:
    _, said = users.create("laptop", "ann")
    given = {"Authorization": header.format(token=said)}
    assert (await http.get("/api/status", headers=given)).status_code == 401
    given = {"Authorization": f"bearer  {said}"}
    assert (await http.get("/api/status", headers=given)).json()["user"] == "ann"
