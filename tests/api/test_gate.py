"""Nothing gets past the gate: token, Host, Origin, sizes, time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute

from tests.api.conftest import TOKEN
from tests.api.double import Double
from zenos.core import limits

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def paths(app: FastAPI) -> list[str]:
    found = list(app.openapi()["paths"])
    routes: list[BaseRoute] = app.routes
    found += [path for route in routes if (path := getattr(route, "path", ""))]
    return sorted({*found, "/", "/nope", "/api", "/v1", "/docs", "/health/", "//health", "/Health"})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
        {"X-Api-Key": TOKEN},
        {"api-key": TOKEN},
        {"Cookie": f"token={TOKEN}"},
        {"Proxy-Authorization": f"Bearer {TOKEN}"},
    ],
)
async def test_every_path_and_method_wants_the_token(
    app: FastAPI, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    del http.headers["Authorization"]
    for path in paths(app):
        for method in METHODS:
            if path == "/health" and method in ("GET", "HEAD"):
                continue
            answer = await http.request(method, path, headers=headers, params={"token": TOKEN})
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "unauthorized"
                assert TOKEN not in answer.text


async def test_two_authorization_headers_are_refused(http: httpx.AsyncClient) -> None:
    del http.headers["Authorization"]
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
    assert (await http.get("/api/status", headers=headers)).status_code == 401


async def test_health_alone_is_open(http: httpx.AsyncClient) -> None:
    del http.headers["Authorization"]
    answer = await http.get("/health")
    assert answer.status_code == 200
    assert set(answer.json()) == {"status", "version"}
    assert (await http.post("/health")).status_code == 401
    head = await http.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]


async def test_a_wrong_token_is_told_from_none(http: httpx.AsyncClient) -> None:
    wrong = await http.get("/api/status", headers={"Authorization": "Bearer wrong"})
    assert "this daemon doesn't know that token" in wrong.json()["error"]["message"]
    none = await http.get("/api/status", headers={"Authorization": f"Basic {TOKEN}"})
    assert "send the token as" in none.json()["error"]["message"]


async def test_the_scheme_is_read_in_any_case(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/status", headers={"Authorization": f"bearer  {TOKEN}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8642",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "10.0.0.1",
        "[::2]",
        "0.0.0.0",  # noqa: S104 - a Host, nothing is bound
        "2130706433",
        "0x7f.1",
        "",
        "localhost:8642/..",
        "zenos.example.",
        "evil-zenos.example",
    ],
)
async def test_foreign_hosts_are_refused(http: httpx.AsyncClient, host: str) -> None:
    for method, path in (("GET", "/health"), ("POST", "/api/tasks"), ("DELETE", "/api/models/m")):
        answer = await http.request(method, path, headers={"Host": host})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "refused"


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8642", "127.0.0.1:1", "[::1]:8642", "LOCALHOST", "zenos.example"],
)
async def test_own_hosts_are_let_in(http: httpx.AsyncClient, host: str) -> None:
    answer = await http.get("/api/status", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1.evil.example",
        "null",
        "file://",
        "http://",
        "http://localhost:8642@evil.example",
        "http://evil.example/localhost",
        "chrome-extension://abc",
        "http://[::1",
        "",
    ],
)
async def test_foreign_origins_are_refused(http: httpx.AsyncClient, origin: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        answer = await http.request(method, "/api/tasks", headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_headers_and_paths_are_bounded(http: httpx.AsyncClient) -> None:
    long = "x" * limits.HEADER_BYTES_MAX
    assert (await http.get("/health", headers={"X-Long": long})).status_code == 431
    many = [(f"X-{i}", "y" * 100) for i in range(400)]
    assert (await http.get("/health", headers=many)).status_code == 431
    assert (await http.get("/" + "x" * limits.PATH_CHARS_MAX)).status_code == 414
    assert (await http.get("/health", params={"x": "y" * 5000})).status_code == 414


async def test_a_body_that_is_declared_too_large_is_not_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", content=b"x" * (limits.BODY_BYTES_MAX + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


async def test_a_chunked_body_is_bounded(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 1000)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    answer = await http.post("/v1/completions", content=endless())
    assert answer.status_code == 413
    assert sent <= 1200


async def test_a_slow_body_is_not_waited_for(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    answer = await http.post("/v1/completions", content=slow())
    assert answer.status_code == 408
    assert answer.json()["error"]["message"].startswith("cannot wait")


async def test_all_bodies_together_are_bounded(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODIES_BYTES_MAX", 1000)
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        yield b"x" * 900
        reading.set()
        await go_on.wait()

    first = asyncio.ensure_future(http.post("/v1/completions", content=held()))
    await reading.wait()
    second = await http.post("/v1/completions", content=b"y" * 200)
    assert second.status_code == 503
    assert int(second.headers["Retry-After"]) >= 1
    go_on.set()
    assert (await first).status_code == 400
    # What was held has been given back.
    assert (await http.post("/v1/completions", content=b"y" * 900)).status_code == 400


async def test_a_long_answer_does_not_hold_its_body(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODIES_BYTES_MAX", 1500)
    system.gate = asyncio.Event()
    body = {"model": "tiny", "prompt": "x" * 900, "stream": True}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as one,
        client.stream("POST", "/v1/completions", json=body) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "9" * 30, "0x10"])
async def test_strange_lengths_are_refused(http: httpx.AsyncClient, length: str) -> None:
    request = http.build_request("POST", "/api/tasks", content=b"{}")
    request.headers["Content-Length"] = length
    assert (await http.send(request)).status_code in (400, 413)


async def test_encoded_bodies_are_refused(http: httpx.AsyncClient) -> None:
    headers = {"Content-Encoding": "gzip"}
    answer = await http.post("/api/tasks", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415


async def test_answers_run_no_script_and_tell_nothing(http: httpx.AsyncClient) -> None:
    for path in ("/health", "/api/status", "/<script>alert(1)</script>"):
        answer = await http.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Content-Type"].startswith("application/json")
        assert "server" not in answer.headers


async def test_websockets_are_closed(app: FastAPI) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/health", "headers": [], "query_string": b""}
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_fault_of_ours_is_500_without_its_details(
    http: httpx.AsyncClient, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("secret /work/path")

    monkeypatch.setattr(system, "status", broken)
    answer = await http.get("/api/status")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
