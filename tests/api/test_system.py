"""Status, nodes, metrics, schemas, shutdown, models and deployments over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.double import Double, publish
from tests.api.test_tasks import submit
from zenos.core.task import State


async def test_status_and_nodes(http: httpx.AsyncClient, system: Double) -> None:
    made = await submit(http)
    await system.until(lambda: system.view.tasks[made["id"]].state is State.RUNNING)
    status = (await http.get("/api/status")).json()
    assert {"pid", "version", "uptime_s", "home"} <= set(status)
    assert status["tasks"] == {"running": 1}
    [node] = status["nodes"]
    assert node["node"]["capacity"]["cpu"] == 4000
    assert node["used"]["cpu"] == 1000
    assert (await http.get("/api/nodes")).json()["nodes"] == status["nodes"]


async def test_metrics(http: httpx.AsyncClient, system: Double) -> None:
    await submit(http)
    await http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    await http.get("/nope/1")
    await http.get("/nope/2")
    answer = await http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    requests = {
        (s.labels["method"], s.labels["path"], s.labels["status"]): s.value
        for s in families["zenos_http_requests"].samples
        if s.name.endswith("_total")
    }
    assert requests["POST", "/api/tasks", "201"] == 1
    assert requests["GET", "none", "404"] == 2
    tokens = {
        (s.labels["model"], s.labels["kind"]): s.value for s in families["zenos_tokens"].samples
    }
    assert tokens == {("tiny", "prompt"): 3, ("tiny", "completion"): 3}
    used = {s.labels["resource"]: s.value for s in families["zenos_node_used"].samples}
    assert used["cpu"] in (0.0, 1.0)
    counts = [s for s in families["zenos_first_token_seconds"].samples if s.name.endswith("_count")]
    assert [(s.labels["model"], s.value) for s in counts] == [("tiny", 1.0)]
    assert families["zenos_generating"].samples[0].value == 0
    assert "process_resident_memory_bytes" in families


async def test_unknown_methods_make_no_new_series(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await http.request(f"X{number}", "/api/tasks")
    text = (await http.get("/metrics")).text
    assert 'method="other"' in text
    assert "X1" not in text


@pytest.mark.parametrize("name", ["train", "create", "task", "deployment"])
async def test_schemas(http: httpx.AsyncClient, name: str) -> None:
    schema = (await http.get(f"/api/schemas/{name}")).json()
    jsonschema.Draft202012Validator.check_schema(schema)
    good: dict[str, dict[str, Any]] = {
        "train": {"type": "train", "model": "m", "data": {"paths": ["/x"]}},
        "create": {"type": "create", "name": "m", "arch": "llama-nano"},
        "task": {"work": {"type": "program", "argv": ["x"]}},
        "deployment": {"model": "m"},
    }
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(good[name])
    assert not validator.is_valid({**good[name], "unknown": 1})
    assert (await http.get("/api/schemas/nope")).status_code == 400


@pytest.mark.parametrize("mode", ["suspend", "drain", "leave"])
async def test_shutdown(http: httpx.AsyncClient, system: Double, mode: str) -> None:
    answer = await http.post("/api/shutdown", json={"mode": mode})
    assert (answer.status_code, answer.json()) == (202, {"mode": mode})
    assert system.stopped == [mode]


async def test_shutdown_in_no_known_way(http: httpx.AsyncClient, system: Double) -> None:
    answer = await http.post("/api/shutdown", json={"mode": "now"})
    assert answer.status_code == 400
    assert system.stopped == []


async def test_models(http: httpx.AsyncClient, system: Double, tmp_path: Path) -> None:
    listed = (await http.get("/api/models")).json()["models"]
    assert [model["name"] for model in listed] == ["other", "tiny"]
    shown = (await http.get("/api/models/tiny:1")).json()
    assert shown["curve"] == [[1, 3.0, None], [2, 2.5, 2.6]]
    assert shown["metrics"] == {"loss": 2.5}
    assert set(shown["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    copied = await http.post("/api/models/copy", json={"source": "tiny", "target": "small"})
    assert copied.status_code == 201
    assert copied.json()["name"] == "small"
    assert copied.json()["lineage"]["parent"] == "tiny:1"
    aliased = await http.post("/api/models/small/aliases", json={"alias": "prod", "version": 1})
    assert aliased.status_code == 201
    assert (await http.get("/api/models/small:prod")).json()["aliases"] == ["prod"]
    body = {"path": str(system.source), "name": "from-disk"}
    assert (await http.post("/api/models/import", json=body)).status_code == 201
    target = tmp_path / "exported"
    exported = await http.post("/api/models/export", json={"ref": "tiny", "path": str(target)})
    assert exported.json() == {"path": str(target)}
    assert (target / "model.safetensors").is_file()
    again = await http.post("/api/models/export", json={"ref": "tiny", "path": str(target)})
    assert (again.status_code, again.json()) == (201, {"path": str(target)})
    other = await http.post("/api/models/export", json={"ref": "other", "path": str(target)})
    assert other.status_code == 409
    removed = await http.delete("/api/models/small")
    assert removed.json()["removed"] == "small:1"
    assert (await http.get("/api/models/small")).status_code == 404


async def test_what_is_served_is_not_removed(http: httpx.AsyncClient, system: Double) -> None:
    publish(system.registry, system.source, "tiny")
    made = await http.post("/api/deployments", json={"model": "tiny:1"})
    assert made.status_code == 201
    refused = await http.delete("/api/models/tiny:1")
    assert refused.status_code == 409
    assert "zenos stop" in refused.json()["error"]["message"]
    assert (await http.delete("/api/models/tiny:2")).status_code == 200


async def test_errors_do_not_tell_where_the_home_is(
    http: httpx.AsyncClient, system: Double
) -> None:
    [manifest] = (system.root / "models" / "manifests" / "tiny").iterdir()
    manifest.write_bytes(b"{")
    answer = await http.get("/api/models/tiny")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "storage"
    assert str(system.root) not in answer.text
    assert "$ZENOS_HOME/models" in answer.text
    listed = await http.get("/api/models")
    assert [model["name"] for model in listed.json()["models"]] == ["other"]
    assert "'zenos rm tiny:1' removes" in listed.json()["damaged"]["tiny:1"]
    assert str(system.root) not in listed.text
    assert (await http.delete("/api/models/tiny")).json()["removed"] == "tiny:1"
    assert (await http.get("/api/models")).json()["damaged"] == {}


async def test_a_model_request_sent_again_is_answered_with_the_same_thing(
    http: httpx.AsyncClient, system: Double
) -> None:
    for path, body in (
        ("copy", {"source": "tiny", "target": "small"}),
        ("import", {"path": str(system.source), "name": "from-disk"}),
    ):
        key = {"Idempotency-Key": f"{path}-1"}
        first = await http.post(f"/api/models/{path}", json=body, headers=key)
        again = await http.post(f"/api/models/{path}", json=body, headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert "asked" not in first.json()
        other = await http.post(
            f"/api/models/{path}", json={**body, list(body)[1]: "elsewhere"}, headers=key
        )
        assert other.status_code == 409, other.text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/models/missing", None, 404),
        ("DELETE", "/api/models/missing", None, 404),
        ("GET", "/api/models/tiny:", None, 400),
        ("GET", "/api/models/a:b:c", None, 400),
        ("POST", "/api/models/copy", {"source": "tiny", "target": "../x"}, 400),
        ("POST", "/api/models/copy", {"source": "tiny", "taget": "x"}, 400),
        ("POST", "/api/models/copy", {"source": "missing", "target": "x"}, 404),
        ("POST", "/api/models/import", {"path": "relative", "name": "x"}, 400),
        ("POST", "/api/models/import", {"path": "/a\0b", "name": "x"}, 400),
        ("POST", "/api/models/import", {"path": "/" + "x" * 1000, "name": "x"}, 400),
        ("POST", "/api/models/import", {"path": "/etc/passwd", "name": "x"}, 400),
        ("POST", "/api/models/tiny/aliases", {"alias": "a", "version": 0}, 400),
        ("POST", "/api/models/tiny/aliases", {"alias": "a", "version": 10**400}, 400),
        ("POST", "/api/models/import", {"path": "/" + "x" * 5000, "name": "x"}, 400),
        ("POST", "/api/models/import", {"path": "/nowhere-at-all", "name": "x"}, 400),
        ("POST", "/api/models/export", {"ref": "tiny", "path": "x"}, 400),
        ("POST", "/api/models/export", {"ref": "tiny", "path": "/no/such/place"}, 400),
        ("POST", "/api/models/export", {"ref": "tiny", "path": "/proc/exported"}, 400),
        ("POST", "/api/models/tiny/aliases", {"alias": "a/b", "version": 1}, 400),
        ("POST", "/api/models/tiny/aliases", {"alias": "a", "version": 9}, 404),
        ("POST", "/api/models/tiny/aliases", {"alias": "a", "version": "1"}, 400),
        ("POST", "/api/models/..%2fx/aliases", {"alias": "a", "version": 1}, 404),
        ("GET", "/api/deployments/missing", None, 404),
        ("DELETE", "/api/deployments/missing", None, 404),
        ("POST", "/api/deployments", {"model": "missing"}, 404),
        ("POST", "/api/deployments", {"model": "a/b"}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "slots": 0}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "min_replicas": 10**400}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "keep_alive_s": -1}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "memory": "lots"}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "memory": "1"}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "memory": "0.5"}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "cpu": -1}, 400),
        ("POST", "/api/deployments", {"model": "tiny", "gpu": 3}, 422),
    ],
)
async def test_bad_models_and_deployments(
    http: httpx.AsyncClient, method: str, path: str, body: Any, status: int
) -> None:
    answer = await http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"].startswith("cannot ")


async def test_deployments(http: httpx.AsyncClient, system: Double) -> None:
    body = {"model": "tiny", "min_replicas": 1}
    headers = {"Idempotency-Key": "d1"}
    made = await http.post("/api/deployments", json=body, headers=headers)
    assert made.status_code == 201, made.text
    name = made.json()["name"]
    assert (await http.get(f"/api/deployments/{name}")).json()["spec"]["model"] == "tiny"
    [listed] = (await http.get("/api/deployments")).json()["deployments"]
    assert listed["name"] == name
    stopped = await http.delete(f"/api/deployments/{name}")
    assert stopped.status_code == 200, stopped.text
    assert stopped.json()["name"] == name


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    missing = await http.get("/api/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    for path, allowed in (("/api/tasks", "GET, POST"), ("/api/models/x", "DELETE, GET")):
        wrong = await http.put(path, json={})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert wrong.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/tasks?stat=running", "did you mean 'state'?"),
        ("/api/tasks?state=running&verbose=1", "it takes state, kind, limit"),
        ("/api/models?limit=1", "this path takes none"),
        ("/api/tasks/t1?x", "cannot use the query parameter 'x'"),
        ("/api/audit?sinse=0", "did you mean 'since'?"),
    ],
)
async def test_unknown_query_parameters_are_refused_with_the_nearest(
    http: httpx.AsyncClient, path: str, says: str
) -> None:
    answer = await http.get(path)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
async def test_what_others_clients_add_to_a_path_is_no_error(
    http: httpx.AsyncClient, path: str
) -> None:
    assert (await http.get(path, params={"api-version": "2026-01-01"})).status_code == 200


async def test_status_says_that_it_is_going_down(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/status")).json()["going_down"] is None
    await http.post("/api/shutdown", json={"mode": "drain"})
    assert (await http.get("/api/status")).json()["going_down"] == "drain"
