"""The system itself: health, status, nodes, metrics, schemas, shutdown."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos import __version__
from zenos.api import audit
from zenos.api.common import system_of
from zenos.api.metrics import metrics_of
from zenos.api.ports import System
from zenos.api.schema import operation, read, reply, schema_of
from zenos.api.shapes import (
    Health,
    NodeList,
    NodeView,
    ShutdownAnswer,
    ShutdownBody,
    Status,
)
from zenos.core.errors import ZenosError
from zenos.core.resources import Resources
from zenos.core.task import SCHEMAS

router = APIRouter(tags=["system"])
SchemaName = Literal["train", "create", "task", "deployment"]


@router.get("/health", **operation(Health))
async def health() -> Response:
    """That the daemon answers. The one path without a token."""
    return reply(Health(version=__version__))


@router.get("/api/status", **operation(Status))
async def status(request: Request) -> Response:
    """The daemon, its nodes with capacity and use, and tasks by state."""
    system = system_of(request)
    nodes = msgspec.to_builtins(_nodes(system))
    return reply({**system.status(), "nodes": nodes})


@router.get("/api/nodes", **operation(NodeList))
async def nodes(request: Request) -> Response:
    """All nodes, with what tasks hold of them."""
    return reply(NodeList(nodes=_nodes(system_of(request))))


@router.get("/api/schemas/{name}", **operation(dict[str, Any], also=(404,)))
async def schemas(name: SchemaName) -> Response:
    """The JSON schema of a specification."""
    return reply(schema_of(SCHEMAS[name]))


@router.get("/metrics", **operation(media="text/plain"))
async def metrics(request: Request) -> Response:
    """Figures for Prometheus, in its text format."""
    text, media_type = metrics_of(request).exposition(system_of(request))
    return Response(text, headers={"content-type": media_type})


@router.post("/api/shutdown", **operation(ShutdownAnswer, body=ShutdownBody, status=202))
async def shut_down(request: Request) -> Response:
    """Tell the daemon to go down. It answers first."""
    body: ShutdownBody = await read(request, ShutdownBody)
    # The row first: afterwards nothing may be written any more. It must not keep the daemon up.
    with suppress(ZenosError):
        await audit.record(request, "down", body.mode)
    system_of(request).shut_down(body.mode)
    return reply(ShutdownAnswer(mode=body.mode), 202)


def _nodes(system: System) -> list[NodeView]:
    used = system.used()
    return [
        NodeView(node=node, used=used.get(name, Resources()))
        for name, node in system.nodes().items()
    ]
