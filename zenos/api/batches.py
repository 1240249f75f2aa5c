"""Several tasks submitted as one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos.api.common import IdempotencyKey, check_depth, principal_of, system_of
from zenos.api.rights import check_may_make
from zenos.api.schema import operation, read, reply
from zenos.core.batches import Batch, BatchSpec
from zenos.core.specs import CreateSpec, TrainSpec

router = APIRouter(prefix="/api/batches", tags=["tasks"])


@router.post("", **operation(Batch, body=BatchSpec, status=201, also=(404, 409, 422)))
async def submit(request: Request, key: IdempotencyKey = None) -> Response:
    """Submit several tasks, all or none. The answer comes when all of them are remembered."""
    spec: BatchSpec = await read(request, BatchSpec)
    for task in spec.tasks:
        if isinstance(task.work, CreateSpec | TrainSpec):
            check_depth(task.work.settings, "settings")
    spec.check()
    await check_may_make(request, spec.tasks)
    batch = await system_of(request).submit_batch(spec, principal_of(request), key)
    return reply(batch, 201)
