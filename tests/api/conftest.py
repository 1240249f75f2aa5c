"""The app over a system in memory, called in process and over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tests.api.double import Double, running
from zenos.api.app import create_app
from zenos.api.server import serve
from zenos.core.config import Config

TOKEN = "a-token-that-is-long-enough"
BASE = "http://127.0.0.1:8642"


async def until(true: Callable[[], bool], within_s: float = 10) -> None:
    """Poll until it is true, with a deadline."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[Double]:
    async with running(tmp_path, Config(allowed_hosts=["zenos.example"])) as double:
        yield double


@pytest.fixture
def app(system: Double) -> FastAPI:
    return create_app(system, Config(allowed_hosts=["zenos.example"]), TOKEN)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token, in process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers) as client:
        yield client


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The app on a real socket; its base address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    server = asyncio.ensure_future(serve(app, [listener]))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        listener.close()


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app) as address:
        yield address
