"""The OpenAPI document is complete, and the app does what it says: schemathesis asks."""

from __future__ import annotations

import asyncio
import importlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import hypothesis
import jsonschema
import pytest
import schemathesis
from fastapi import FastAPI
from msgspec.structs import replace
from schemathesis.checks import CHECKS

from tests.api.conftest import TOKEN, serving
from tests.api.double import Double, publish, running
from tests.kernel.harness import TRAIN
from zenos import api
from zenos.api.app import create_app
from zenos.api.errors import STATUS
from zenos.api.openai_bodies import _NEUTRAL
from zenos.bus import topics as ev
from zenos.core.arrays import ArraySpec, Indices
from zenos.core.config import Config
from zenos.core.events import NodeUp
from zenos.core.messages import Message
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec, ProgramSpec
from zenos.core.task import Principal, State, TaskSpec
from zenos.core.tokens import Tokens

EXAMPLES = 20
SOURCE: list[Path] = []  # a model's directory


def document() -> dict[str, Any]:
    system: Any = None  # nothing is asked of it
    return create_app(system, Config(), TOKEN).openapi()


ENDLESS = {"/api/events", "/api/bus/tail"}
OPERATIONS = [
    (method.upper(), path)
    for path, item in document()["paths"].items()
    for method in item
    # Streams that never end have their own tests.
    if path not in ENDLESS
]


def _bounded(schema: dict[str, Any]) -> bool:
    if "anyOf" in schema:
        return "enum" in schema or all(map(_bounded, schema["anyOf"]))
    match schema.get("type"):
        case "string":
            return "maxLength" in schema or "enum" in schema
        case "integer" | "number":
            return {"minimum", "exclusiveMinimum"} & set(schema) != set() and "maximum" in schema
        case "array":  # as many as fit into a path
            return _bounded(schema["items"])
        case kind:
            return kind in ("boolean", "null")


def test_every_parameter_is_bounded() -> None:
    parameters = [
        (path, parameter["name"], parameter["schema"])
        for path, item in document()["paths"].items()
        for operation in item.values()
        for parameter in operation.get("parameters", [])
    ]
    assert len(parameters) > 50
    assert [one for one in parameters if not _bounded(one[2])] == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a thread of its own, as schemathesis calls without asyncio."""
    started = threading.Event()
    found: list[str] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main(root: Path) -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        async with running(root, Config()) as system:
            SOURCE[:] = [system.source]
            # One of its own, so that the others' work isn't sent away.
            system.inbox.put(NodeUp(node=Node(name="spare", capacity=Resources())))
            program = TaskSpec(work=ProgramSpec(argv=["true"]))
            await system.submit(program, Principal(), None)
            sweep = ArraySpec(task=replace(program, name="sweep"), indices=Indices(last=1))
            await system.submit_array(sweep, Principal(), None)
            for name in YIELDING:
                training = TaskSpec(work=TRAIN, name=name, resources=Resources())
                await system.submit(training, Principal(), None)
            await system.suspend(await held(system), Principal())
            await system.deploy(DeploymentSpec(model="tiny"), Principal(), None)
            await system.topics.ask(
                ev.Send(request=0, message=Message(number=0, topic="a", id="a"))
            )
            # Two to delete: what is served can't be.
            publish(system.registry, system.source, "other")
            await system.deploy(DeploymentSpec(model="other:1"), Principal(), None)
            users = Tokens()
            users.create("theirs", "ann")
            async with serving(create_app(system, Config(), TOKEN, users)) as url:
                found.append(url)
                started.set()
                await stop.wait()

    root = tmp_path_factory.mktemp("api")
    thread = threading.Thread(target=lambda: asyncio.run(main(root)))
    thread.start()
    assert started.wait(20)
    yield found[0]
    loop, stop = loops[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


async def held(system: Double) -> str:
    """The task that is there to be resumed; all are at work by then."""
    tasks = {task.name: task for task in system.view.tasks.values()}
    while any(tasks[name].state is not State.RUNNING for name in YIELDING):
        await asyncio.sleep(0)
        tasks = {task.name: task for task in system.view.tasks.values()}
    return tasks["resume"].id


YIELDING = ("pause", "suspend", "resume", "nice")  # a task for each, of that name
BODIES: dict[str, dict[str, Any]] = {
    "/api/tasks": {"work": {"type": "program", "argv": ["true"]}},
    "/api/arrays": {
        "task": {"work": {"type": "program", "argv": ["true"]}, "name": "sweep"},
        "indices": {"last": 1},
    },
    "/api/batches": {
        "tasks": [{"work": {"type": "program", "argv": ["true"]}, "name": "alone"}],
    },
    "/api/deployments": {"min_replicas": 0},
    "/api/models/{name}/aliases": {"alias": "prod", "version": 1},
    "/api/models/copy": {"source": "tiny", "target": "copied"},
    "/api/tokens": {"name": "made", "user": "ann"},
    "/api/bus/messages": {"topic": "a", "body": "x"},
    "/api/bus/replay": {"topic": "a"},
    "/api/bus/purge": {"topic": "a"},
}


def known(case: schemathesis.Case) -> schemathesis.Case:
    """The same case about things that exist, so that it can succeed."""
    for name in case.path_parameters or {}:
        thing = "tiny"
        if case.method == "DELETE":
            thing = "other:1" if "deployments" in case.path else "other:2"
        if "tokens" in case.path:
            thing = "theirs"
        last = case.path.rpartition("/")[2]
        task = last if last in YIELDING else "t1"
        case.path_parameters[name] = {"task": task, "array": "sweep", "node": "spare"}.get(
            name, thing
        )
    if case.headers:  # a key may be one of another request, which is a conflict
        case.headers.pop("Idempotency-Key", None)
    if case.path == "/api/schemas/{name}":
        case.path_parameters["name"] = "train"
    if not isinstance(case.body, dict):
        return case
    if case.path.startswith("/v1"):
        for name in {*_NEUTRAL, "best_of", "stream_options", "top_logprobs", "max_tokens"}:
            case.body.pop(name, None)
        case.body.update(stop="x", priority=3)
        case.body.update(
            {"messages": [{"role": "user", "content": "x"}]}
            if "chat" in case.path
            else {"prompt": ["x"]}
        )
    elif case.path in BODIES:
        case.body = dict(BODIES[case.path])
    elif case.path.endswith("/import"):
        case.body = {"path": str(SOURCE[0]), "name": "imported"}
    elif case.path.endswith("/export"):
        case.body = {"ref": "tiny", "path": str(SOURCE[0].parent / "exported")}
    if "model" in case.body or case.path == "/api/deployments":
        case.body["model"] = "tiny"
    return case


def is_itself_when_sent(case: schemathesis.Case) -> bool:
    """Whether a server sees it as it was made: it cannot tell a list of one string, which is wrong
    in the place of a string, from that string, which is right."""
    parts = (case.query, case.headers, case.path_parameters)
    return not any(
        isinstance(value, list | dict) for part in parts for value in (part or {}).values()
    )


# Which letters a name may have, what joins several fields, and that a whole number is written
# without a point (37.0 is one to a schema), is no part of their schema: data that fits it may be
# refused, with 400 and the reason. All else takes whatever fits.
JOINED = {
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/api/tasks"),
    ("POST", "/api/arrays"),
    ("POST", "/api/batches"),
    ("POST", "/api/tasks/{task}/nice"),
    ("POST", "/api/models/copy"),
    ("POST", "/api/models/import"),
    ("POST", "/api/models/export"),
    ("GET", "/api/models/{ref}"),
    ("DELETE", "/api/models/{ref}"),
    ("POST", "/api/models/{name}/aliases"),
    ("POST", "/api/deployments"),
    ("POST", "/api/deployments/{name}/rollback"),
    ("GET", "/api/bus/messages"),
    ("POST", "/api/bus/messages"),
    ("POST", "/api/bus/replay"),
    ("POST", "/api/bus/purge"),
    ("POST", "/api/tokens"),
    ("DELETE", "/api/tokens/{name}"),
}
# What is refused for a bound that a schema can say.
PROGRAM: dict[str, Any] = {"type": "program", "argv": ["true"]}
OUT_OF_BOUNDS: list[tuple[str, dict[str, Any]]] = [
    ("/api/tasks", {"work": {"type": "program", "argv": []}}),
    ("/api/tasks", {"work": {**PROGRAM, "topics": ["a"] * 10_000}}),
    ("/api/tasks", {"work": PROGRAM, "name": "x" * 65}),
    ("/api/tasks", {"work": PROGRAM, "node": "x" * 65}),
    ("/api/tasks", {"work": PROGRAM, "expected_s": 0}),
    ("/api/tasks", {"work": PROGRAM, "time_limit_s": -1}),
    ("/api/tasks", {"work": {"type": "create", "name": "", "arch": "llama-nano"}}),
    ("/api/batches", {"tasks": []}),
    ("/api/tasks/t1/nice", {"priority": 101}),
    ("/api/tasks/t1/nice", {"priority": -1}),
    ("/api/deployments", {"model": ""}),
    ("/api/deployments/tiny/rollback", {"to": 0}),
    ("/api/deployments/tiny/rollback", {"to": 10**9}),
    ("/api/models/tiny/aliases", {"alias": "", "version": 1}),
    ("/api/models/tiny/aliases", {"alias": "a", "version": 0}),
    ("/api/models/copy", {"source": "", "target": "x"}),
    ("/api/models/copy", {"source": "tiny", "target": ""}),
    ("/api/models/import", {"path": "/x", "name": ""}),
    ("/api/models/import", {"path": "x", "name": "x"}),
    ("/api/models/export", {"ref": "", "path": "/x"}),
    ("/api/models/export", {"ref": "tiny", "path": ""}),
    ("/api/tokens", {"name": "", "user": "ann"}),
    ("/api/tokens", {"name": "x", "user": ""}),
    ("/api/tokens", {"name": "x", "user": "ann", "project": ""}),
    ("/api/tokens", {"name": "x", "user": "ann", "expires_s": 0}),
    ("/api/bus/messages", {"topic": "", "body": "x"}),
    ("/api/bus/replay", {"topic": ""}),
    ("/api/bus/purge", {"topic": ""}),
]


@pytest.mark.parametrize(("path", "body"), OUT_OF_BOUNDS)
async def test_what_is_out_of_bounds_does_not_fit_the_document(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    made = document()
    known = next(
        one
        for one in sorted(made["paths"], key=lambda one: one.count("{"))
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one), path)
    )
    schema = made["paths"][known]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": made["components"]}
    assert not jsonschema.Draft202012Validator(whole).is_valid(body)
    await http.post("/api/tasks", json={"work": PROGRAM})  # t1
    answer = await http.post(path, json=body)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/api/audit?since=1000000000001",
        "/api/audit?since=4611686018427387905",
        f"/api/models/{'x' * 65}",
        f"/api/models/x:{'x' * 65}",
    ],
)
async def test_a_parameter_that_is_out_of_bounds_is_refused(
    http: httpx.AsyncClient, path: str
) -> None:
    assert (await http.get(path)).status_code == 400


def test_bounds_of_numbers_are_told_from_their_neighbours() -> None:
    """Above 2^53 a float is the same as its bound, and would be taken."""

    def numbers(node: Any) -> Iterator[float]:
        if isinstance(node, dict):
            if node.get("type") == "number" and "maximum" in node:
                yield node["maximum"]
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            yield from numbers(item)

    found = list(numbers(document()))
    assert len(found) > 10
    assert max(found) < 2**53


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_app_does_what_the_document_says(address: str, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_dict(document())
    schema.config.update(base_url=address)
    operation = schema[path][method]
    modes = schemathesis.GenerationMode
    statuses: set[int] = set()

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=modes.POSITIVE)
        | operation.as_strategy(generation_mode=modes.POSITIVE).map(known)
        | operation.as_strategy(generation_mode=modes.NEGATIVE)
    )
    def ask(case: schemathesis.Case) -> None:
        hypothesis.assume(is_itself_when_sent(case))
        if case.query and "follow" in case.query:
            del case.query["follow"]
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
        if answer.status_code == 414:
            return  # how long an address may be is no part of a schema
        excluded = [CHECKS.get_one("positive_data_acceptance")] if (method, path) in JOINED else []
        case.validate_response(answer, excluded_checks=excluded)
        statuses.add(answer.status_code)

    ask()
    assert {200, 201, 202} & statuses, statuses


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_a_stream_is_what_the_document_says(address: str, path: str, body: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document())
    schema.config.update(base_url=address)
    case = schema[path]["POST"].Case(
        body={"model": "tiny", "stream": True, **body}, media_type="application/json"
    )
    answer = case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)
    assert answer.status_code == 200
    assert b"data: [DONE]" in answer.content


ROUTES = {
    "/health",
    "/api/tokens",
    "/api/tokens/{name}",
    "/api/audit",
    "/api/tasks/{task}/threads",
    "/api/tasks/{task}/why",
    "/api/tasks/{task}/history",
    "/api/plan",
    "/api/tasks/{task}/pause",
    "/api/tasks/{task}/suspend",
    "/api/tasks/{task}/resume",
    "/api/tasks/{task}/nice",
    "/metrics",
    "/api/status",
    "/api/nodes",
    "/api/nodes/{node}/cordon",
    "/api/nodes/{node}/drain",
    "/api/nodes/{node}/uncordon",
    "/api/schemas/{name}",
    "/api/shutdown",
    "/api/tasks",
    "/api/tasks/{task}",
    "/api/tasks/{task}/cancel",
    "/api/batches",
    "/api/arrays",
    "/api/arrays/{array}",
    "/api/arrays/{array}/cancel",
    "/api/tasks/{task}/log",
    "/api/events",
    "/api/bus/topics",
    "/api/bus/messages",
    "/api/bus/replay",
    "/api/bus/purge",
    "/api/bus/tail",
    "/api/models",
    "/api/models/{ref}",
    "/api/models/{name}/aliases",
    "/api/models/copy",
    "/api/models/import",
    "/api/models/export",
    "/api/deployments",
    "/api/deployments/{name}",
    "/api/deployments/{name}/rollback",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/completions",
    "/v1/chat/completions",
}


def test_every_route_stands_in_the_document(app: FastAPI, system: Double) -> None:
    made = app.openapi()
    for name, schema in made["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), name
    assert made["components"]["schemas"]["TaskSpec"]["additionalProperties"] is False
    assert made["security"] == [{"token": []}]
    for path, item in made["paths"].items():
        for method, one in item.items():
            assert one["summary"], (method, path)
            assert one["description"], (method, path)
            assert {"400", "401", "403", "413", "500", "503"} <= set(one["responses"])
            sized = (
                "/api/tasks",
                "/api/arrays",
                "/api/batches",
                "/api/deployments",
                "/v1/completions",
                "/v1/chat/completions",
            )
            assert ("422" in one["responses"]) == (path in sized and method == "post")
            if method == "post" and not path.endswith(
                ("/cancel", "/pause", "/suspend", "/cordon", "/drain", "/uncordon")
            ):
                assert one["requestBody"]["content"]["application/json"]["schema"]
    assert "x-zenos-type" not in str(made)
    assert "HTTPValidationError" not in str(made)
    assert {path for _, path in OPERATIONS} | ENDLESS == ROUTES


def test_nothing_is_answered_that_does_not_stand_in_the_document() -> None:
    modules = [importlib.import_module(f"zenos.api.{m.name}") for m in iter_modules(api.__path__)]
    served = {
        (method, route.path)
        for module in modules
        for route in getattr(getattr(module, "router", None), "routes", ())
        for method in route.methods
    }
    told = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    assert served == told | {("HEAD", "/health")}  # which is GET without its body


def test_every_endpoint_has_a_heading_in_the_documentation() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "reference" / "http.md"
    headings = {
        line[4:] for line in page.read_text(encoding="utf-8").splitlines() if line[:4] == "### "
    }
    operations = {f"{method} {path}" for method, path in OPERATIONS}
    operations |= {f"GET {path}" for path in ENDLESS}
    assert headings == operations


def test_every_code_and_its_status_stand_in_the_documentation() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "reference" / "http.md"
    text = page.read_text(encoding="utf-8")
    for code, status in STATUS.items():
        if code != "no_daemon":  # a client's own
            [row] = [line for line in text.splitlines() if line[:1] == "|" and f"`{code}`" in line]
            assert str(status) in row
