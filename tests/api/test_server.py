"""The server on a real socket: what clients may not do to it, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI

from tests.api.conftest import TOKEN, serving, until
from tests.api.double import Double
from zenos.api import server
from zenos.core import limits
from zenos.core.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"


@asynccontextmanager
async def connected(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader, within_s: float = 5) -> bytes:
    """All that comes until the server closes."""
    try:
        return await asyncio.wait_for(reader.read(), within_s)
    except ConnectionError:
        return b""


async def healthy(url: str) -> bool:
    async with httpx.AsyncClient(base_url=url) as client:
        return (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nHost: 127", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"],
)
async def test_half_open_connections_are_cut(
    url: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(limits, "HEADER_TIMEOUT_S", 0.05)
    async with connected(url) as (reader, writer):
        writer.write(sent)
        assert await ended(reader) == b""
    assert await healthy(url)


async def test_headers_without_end_are_cut(url: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\n")
        answer = asyncio.ensure_future(ended(reader))
        sent = 0
        while not answer.done() and sent < 10 * limits.MIB:
            writer.write(b"X-Long: " + b"y" * 8000 + b"\r\n")
            sent += 8000
            await asyncio.wait({answer}, timeout=0.01)
        assert sent < limits.MIB
        assert (await answer)[:12] in (b"HTTP/1.1 400", b"")
    assert await healthy(url)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/tasks HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /api/tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_garbage_is_refused_and_harms_nobody(url: str, garbage: bytes) -> None:
    async with connected(url) as (reader, writer):
        writer.write(garbage)
        writer.write_eof()
        answer = await ended(reader)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505")), answer
        head, _, body = answer.partition(b"\r\n\r\n")
        if head:  # in the shape of every other error
            assert b"content-type: application/json" in head
            assert f"content-length: {len(body)}".encode() in head
            assert json.loads(body)["error"]["message"].startswith("cannot ")
    assert await healthy(url)


async def test_an_answer_before_the_body_was_sent_reaches_the_client(url: str) -> None:
    """27 MB are refused at once, and the refusal is not lost in a reset."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        for path, auth, status in (
            ("/v1/completions", TOKEN, 413),
            ("/v1/completions", "wrong", 401),
        ):
            answer = await client.post(
                path, content=b"x" * 27_000_000, headers={"Authorization": f"Bearer {auth}"}
            )
            assert answer.status_code == status


async def test_a_connection_goes_on_after_a_refused_body(url: str) -> None:
    async with connected(url) as (reader, writer):
        size = limits.BODY_BYTES_MAX + 1
        writer.write(f"POST /x HTTP/1.1\r\n{HEAD}Content-Length: {size}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")
        writer.write(b"x" * size)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = await ended(reader)
        assert b"HTTP/1.1 200" in rest


async def test_a_refused_body_that_never_comes_is_cut(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEADER_TIMEOUT_S", 0.1)
    async with connected(url) as (reader, writer):
        writer.write(f"POST /x HTTP/1.1\r\n{HEAD}Content-Length: 99999999\r\n\r\n".encode())
        answer = await ended(reader)
        assert answer.startswith(b"HTTP/1.1 413")


async def test_requests_in_a_row_are_answered_in_order(url: str) -> None:
    async with connected(url) as (reader, writer):
        one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        two = b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(one + two + last)
        answer = await ended(reader)
        assert re.findall(rb"HTTP/1\.1 ([0-9]+)", answer) == [b"200", b"401", b"200"]


async def test_a_client_that_reads_nothing_is_cut(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEND_STALL_S", 0.2)
    system.words = ["x" * 100_000] * 1000
    body = b'{"model":"tiny","prompt":"x","stream":true}'
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, head.encode() + body)
        await until(lambda: system.open == 1)
        await until(lambda: system.open == 0)
        [said] = system.said.values()
        assert said < 1000
    finally:
        client.close()
    assert await healthy(url)


async def test_silent_connections_make_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 4)
    monkeypatch.setattr(server, "SETTLED_S", 0.0)
    host, port = url.removeprefix("http://").split(":")
    pairs = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
    try:
        assert await healthy(url)
        waiting = [asyncio.ensure_future(reader.read()) for reader, _ in pairs]
        await until(lambda: sum(task.done() for task in waiting) >= 8, within_s=4)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        for _, writer in pairs:
            writer.transport.abort()


ASKED = b'{"model":"tiny","prompt":"x","stream":true}'
STREAMED = f"POST /v1/completions HTTP/1.1\r\n{HEAD}Content-Length: {len(ASKED)}\r\n\r\n".encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def opened(url: str, stack: AsyncExitStack, count: int, sent: bytes) -> list[Pair]:
    """So many connections, made and asked on at once."""
    host, port = url.removeprefix("http://").split(":")

    async def one() -> Pair:
        reader, writer = await asyncio.open_connection(host, int(port))
        stack.push_async_callback(gone, writer)
        writer.write(sent)
        return reader, writer

    return await asyncio.gather(*(one() for _ in range(count)))


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).split()[1])


async def test_a_burst_of_streams_is_held_to_the_bound(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as there is room for run on to their end; the others are told so at once."""
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 8)
    monkeypatch.setattr(server.BoundedProtocol, "_refusals", Seldom(3600))
    caplog.set_level("INFO", server.log.name)
    system.gate = asyncio.Event()
    async with AsyncExitStack() as stack:
        pairs = await opened(url, stack, 20, STREAMED + ASKED)
        firsts = [await asyncio.wait_for(reader.readexactly(12), 10) for reader, _ in pairs]
        running = [pair for pair, first in zip(pairs, firsts, strict=True) if b"200" in first]
        refused = [pair for pair, first in zip(pairs, firsts, strict=True) if b"503" in first]
        assert (len(running), len(refused), system.open) == (8, 12, 8)
        for reader, _ in refused:
            head, _, body = (await ended(reader)).partition(b"\r\n\r\n")
            assert b"retry-after: 1" in head.lower()
            error = json.loads(body)["error"]
            assert error["code"] == "busy"
            assert error["message"].startswith("cannot take more than 8 connections")
        # Again, while all of them are streaming: none of these is cut for the new ones.
        for reader, _ in await opened(url, stack, 20, STREAMED + ASKED):
            assert await status_of(reader) == 503
        system.gate.set()
        for reader, _ in running:
            await asyncio.wait_for(reader.readuntil(b"data: [DONE]"), 10)
    await until(lambda: system.open == 0)
    assert await healthy(url)
    said = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert said == ["refused 1 connection: 8 are open"], "a flood would fill the log"


@pytest.mark.parametrize("waited_for", [0, 9])
async def test_who_is_refused_and_stays_is_cut(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch, waited_for: int
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(limits, "CONNECTIONS_REFUSED_MAX", waited_for)
    monkeypatch.setattr(server, "REFUSED_S", 0.05)
    system.gate = asyncio.Event()
    async with AsyncExitStack() as stack:
        [(running, _)] = await opened(url, stack, 1, STREAMED + ASKED)
        assert await status_of(running) == 200
        for reader, writer in await opened(url, stack, 3, b""):
            assert await status_of(reader) == 503
            await ended(reader)
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    while not writer.transport.is_closing():
                        writer.write(HEALTH)
                        await asyncio.sleep(0.005)
        system.gate.set()
        await asyncio.wait_for(running.readuntil(b"data: [DONE]"), 10)


async def test_an_answer_that_is_still_being_taken_makes_no_room(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given whole to the socket, which has not all of it."""
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 1)
    system.words = ["x" * 30_000_000]
    body = b'{"model":"tiny","prompt":"x"}'
    head = f"POST /v1/completions HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        [(taking, _)] = await opened(url, stack, 1, head + body)
        assert await status_of(taking) == 200
        [(other, _)] = await opened(url, stack, 1, HEALTH)
        assert await status_of(other) == 503
        assert len(await asyncio.wait_for(taking.readexactly(30_000_000), 30)) == 30_000_000


async def test_idle_connections_make_room_and_each_counts_once(
    url: str, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 6)
    system.gate = asyncio.Event()
    async with AsyncExitStack() as stack:
        idle = await opened(url, stack, 4, HEALTH)
        for reader, _ in idle:
            assert await status_of(reader) == 200
        streams = await opened(url, stack, 2, STREAMED + ASKED)
        for reader, _ in streams:
            assert await status_of(reader) == 200
        # Four idle ones go for four of these; two have no place.
        more = await opened(url, stack, 6, STREAMED + ASKED)
        assert sorted([await status_of(reader) for reader, _ in more]) == [200] * 4 + [503] * 2
        for reader, _ in idle:
            await ended(reader)
            assert reader.at_eof()
        assert system.open == 6
        system.gate.set()
        for reader, _ in streams:
            await asyncio.wait_for(reader.readuntil(b"data: [DONE]"), 10)


async def test_no_connection_is_cut_whose_request_has_just_come(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is idle by what was read so far may have been asked meanwhile."""
    made, count = server.BoundedProtocol.connection_made, 4
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", count)
    async with AsyncExitStack() as stack:
        idle = await opened(url, stack, count, HEALTH)
        for reader, _ in idle:
            await reader.readuntil(b"}")

        def asked_before(self: server.BoundedProtocol, transport: asyncio.Transport) -> None:
            for _, writer in idle:
                writer.write(HEALTH)  # into the sockets, at this very moment
            made(self, transport)

        monkeypatch.setattr(server.BoundedProtocol, "connection_made", asked_before)
        [(fresh, _)] = await opened(url, stack, 1, HEALTH)
        assert await status_of(fresh) == 503
        for reader, _ in idle:
            assert await status_of(reader) == 200


async def test_it_ends_gracefully_and_leaves_signals_alone(app: FastAPI, system: Double) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving(app) as url:
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert await healthy(url)
    with pytest.raises(httpx.ConnectError):
        await healthy(url)


async def test_ending_closes_generations(
    app: FastAPI, system: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenos.api.server.STOP_GRACE_S", 0.2)
    system.gate = asyncio.Event()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(headers=headers) as client:
        async with serving(app) as url:
            body = {"model": "tiny", "prompt": "x"}
            request = asyncio.ensure_future(client.post(f"{url}/v1/completions", json=body))
            await until(lambda: system.open == 1)
        assert system.open == 0
        answer = await request
        assert answer.status_code == 503
        assert "going down" in answer.json()["error"]["message"]
