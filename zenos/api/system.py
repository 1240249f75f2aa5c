"""The system itself: health, status, nodes, metrics, schemas, shutdown."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos import __version__
from zenos.api import audit
from zenos.api.common import OPERATORS, IdempotencyKey, NodePath, principal_of, system_of
from zenos.api.metrics import metrics_of
from zenos.api.once import Asked, asked, recall
from zenos.api.ports import System
from zenos.api.schema import operation, read, reply, schema_of
from zenos.api.shapes import (
    AccountView,
    Health,
    NodeList,
    NodeView,
    ShutdownAnswer,
    ShutdownBody,
    Status,
)
from zenos.core.errors import ConflictError, NotFoundError, ZenosError
from zenos.core.node import Cordon, Node
from zenos.core.resources import Resources
from zenos.core.task import SCHEMAS
from zenos.kernel.accounts import Accounts

log = logging.getLogger(__name__)
router = APIRouter(tags=["system"])
SchemaName = Literal["train", "create", "task", "deployment"]


@router.head("/health", include_in_schema=False)  # what watches a service often asks so
@router.get("/health", **operation(Health))
async def health() -> Response:
    """That the daemon answers. The one path without a token."""
    return reply(Health(version=__version__))


@router.get("/api/status", **operation(Status))
async def status(request: Request) -> Response:
    """The daemon, its nodes with capacity and use, and tasks by state."""
    system = system_of(request)
    nodes = msgspec.to_builtins(_nodes(system))
    accounts = msgspec.to_builtins(_accounts(system.accounts()))
    who = principal_of(request)
    you = {"user": who.user, "project": who.project, "operator": who.is_operator}
    return reply({**system.status(), "nodes": nodes, "accounts": accounts, **you})


@router.get("/api/nodes", **operation(NodeList))
async def nodes(request: Request) -> Response:
    """All nodes, with what tasks hold of them."""
    return reply(NodeList(nodes=_nodes(system_of(request))))


@router.post("/api/nodes/{node}/cordon", **OPERATORS, **operation(NodeView, also=(404, 409)))
async def cordon(request: Request, node: NodePath, key: IdempotencyKey = None) -> Response:
    """Have nothing new start on a node; what runs there goes on."""
    return await _set_cordon(request, node, "cordon", key)


@router.post("/api/nodes/{node}/drain", **OPERATORS, **operation(NodeView, also=(404, 409)))
async def drain(request: Request, node: NodePath, key: IdempotencyKey = None) -> Response:
    """The same, and what can save its state there is suspended; the rest runs to its end."""
    return await _set_cordon(request, node, "drain", key)


@router.post("/api/nodes/{node}/uncordon", **OPERATORS, **operation(NodeView, also=(404, 409)))
async def uncordon(request: Request, node: NodePath, key: IdempotencyKey = None) -> Response:
    """Let things start on a node again."""
    return await _set_cordon(request, node, None, key)


def _remembered(system: System, answered: str) -> Node:
    """The node as it is now; one that has gone as it was when that was answered."""
    if not answered.startswith("{"):  # by an older daemon, which kept its name alone
        known = system.nodes().get(answered)
        if known is None:
            raise NotFoundError(f"cannot find the node {answered!r}: it has gone since")
        return known
    then = msgspec.json.decode(answered, type=Node)
    return system.nodes().get(then.name, then)


async def _set_cordon(
    request: Request, node: str, wanted: Cordon | None, key: str | None
) -> Response:
    system = system_of(request)
    async with asked(request, key) as said:
        if said.before is None:
            found = await system.set_cordon(node, wanted, principal_of(request), said.once)
        else:
            found = _remembered(system, said.before)
    return reply(NodeView(node=found, used=system.used().get(found.name, Resources())))


@router.get("/api/schemas/{name}", **operation(dict[str, Any], also=(404,)))
async def schemas(name: SchemaName) -> Response:
    """The JSON schema of a specification."""
    return reply(schema_of(SCHEMAS[name]))


@router.get("/metrics", **operation(media="text/plain"))
async def metrics(request: Request) -> Response:
    """Figures for Prometheus, in its text format."""
    text, media_type = metrics_of(request).exposition(system_of(request))
    return Response(text, headers={"content-type": media_type})


@router.post(
    "/api/shutdown",
    **OPERATORS,
    **operation(ShutdownAnswer, body=ShutdownBody, status=202, also=(409,)),
)
async def shut_down(request: Request, key: IdempotencyKey = None) -> Response:
    """Tell the daemon to go down. It answers first."""
    body: ShutdownBody = await read(request, ShutdownBody)
    said = Asked(None, None)
    # The row first: afterwards nothing may be written any more. It must not keep the daemon up.
    try:
        said = await recall(request, key, body)
        if said.before is not None:  # it has gone down for that, and was started again
            return reply(ShutdownAnswer(mode=body.mode), 202)
        await audit.record(request, "down", body.mode, once=said.once, result=body.mode)
    except ConflictError:
        raise
    except ZenosError as error:
        log.warning("going down without a row of who asked for it: %s", error)
    system_of(request).shut_down(body.mode)
    return reply(ShutdownAnswer(mode=body.mode), 202)


def _nodes(system: System) -> list[NodeView]:
    used = system.used()
    return [
        NodeView(node=node, used=used.get(name, Resources()))
        for name, node in system.nodes().items()
    ]


def _accounts(accounts: Accounts) -> list[AccountView]:
    """Those that have tasks, users first, by name."""
    accounts.begin(max(accounts.now, time.time()))
    found = []
    for name in sorted(accounts.known, key=lambda name: (name.startswith("project"), name)):
        account = accounts.known[name]
        if not account.alive:
            continue
        standing = accounts.standing(name)
        view = AccountView(
            account=name,
            tasks=account.tasks,
            held=account.held,
            gpu_hours=accounts.usage(name).gpu_s / 3600,
            had=standing.had,
            due=standing.due,
            quota=accounts.quota_of(name),
        )
        found.append(view)
    return found
