"""Arrays of tasks: submit, show, cancel."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos.api.common import ArrayPath, IdempotencyKey, principal_of, system_of
from zenos.api.rights import check_may_make
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import ArrayView
from zenos.api.tasks import array_view, find_array
from zenos.core.arrays import ArraySpec

router = APIRouter(prefix="/api/arrays", tags=["tasks"])


@router.post("", **operation(ArrayView, body=ArraySpec, status=201, also=(404, 409, 422)))
async def submit(request: Request, key: IdempotencyKey = None) -> Response:
    """Submit an array. The answer comes when all of its tasks are remembered, in one piece."""
    spec: ArraySpec = await read(request, ArraySpec)
    spec.check()
    await check_may_make(request, [spec.task])
    system = system_of(request)
    array = await system.submit_array(spec, principal_of(request), key)
    return reply(array_view(system, array), 201)


@router.get("/{array}", **operation(ArrayView, also=(404,)))
async def show(request: Request, array: ArrayPath) -> Response:
    """One array, and how many of its tasks are in each state."""
    system = system_of(request)
    return reply(array_view(system, find_array(system, array)))


@router.post("/{array}/cancel", **operation(ArrayView, also=(404,)))
async def cancel(request: Request, array: ArrayPath) -> Response:
    """Cancel all tasks of an array."""
    system = system_of(request)
    found = find_array(system, array)
    await system.cancel_array(found.id, principal_of(request))
    return reply(array_view(system, found))
