"""Deployments: models being served."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos.api.common import IdempotencyKey, ModelPath, principal_of, system_of
from zenos.api.once import asked
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import DeploymentList, RollbackBody
from zenos.core import limits
from zenos.core.errors import InvalidError, NotFoundError
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment

router = APIRouter(prefix="/api/deployments", tags=["serving"])


@router.get("", **operation(DeploymentList))
async def list_deployments(request: Request) -> Response:
    """All deployments."""
    return reply(DeploymentList(deployments=list(system_of(request).deployments().values())))


@router.post("", **operation(Deployment, body=DeploymentSpec, status=201, also=(404, 409, 422)))
async def deploy(request: Request, key: IdempotencyKey = None) -> Response:
    """Deploy a model, or change how it is deployed."""
    spec: DeploymentSpec = await read(request, DeploymentSpec)
    spec.check()
    return reply(await system_of(request).deploy(spec, principal_of(request), key), 201)


@router.post("/{name}/rollback", **operation(Deployment, body=RollbackBody, also=(404, 409)))
async def roll_back(request: Request, name: ModelPath, key: IdempotencyKey = None) -> Response:
    """Serve the version before, or that one, until it is deployed again."""
    body: RollbackBody = await read(request, RollbackBody)
    if body.to is not None and not 1 <= body.to <= limits.VERSION_MAX:
        raise InvalidError("cannot go back to that version: versions are counted from 1")
    async with asked(request, key, body) as said:
        if said.before is None:
            who = principal_of(request)
            return reply(await system_of(request).roll_back(name, body.to, who, said.once))
    return await show(request, said.before)


@router.get("/{name}", **operation(Deployment, also=(404,)))
async def show(request: Request, name: ModelPath) -> Response:
    """One deployment."""
    deployment = system_of(request).deployments().get(name)
    if deployment is None:
        raise NotFoundError(f"cannot find a deployment {name!r}: 'zenos ps' lists them")
    return reply(deployment)


@router.delete("/{name}", **operation(Deployment, also=(404, 409)))
async def undeploy(request: Request, name: ModelPath) -> Response:
    """Stop serving a model; requests in flight are finished within the grace time."""
    return reply(await system_of(request).undeploy(name, principal_of(request)))
