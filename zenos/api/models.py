"""Models in the registry: list, show, remove, alias, copy, import and export."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from zenos.api.audit import audited
from zenos.api.common import (
    IdempotencyKey,
    ModelPath,
    NamePath,
    check_path,
    home_of,
    principal_of,
    system_of,
)
from zenos.api.errors import shown
from zenos.api.once import asked
from zenos.api.ports import System
from zenos.api.rights import check_may_add, check_may_change
from zenos.api.schema import operation, read, reply
from zenos.api.shapes import (
    AliasBody,
    CopyBody,
    ExportBody,
    Exported,
    ImportBody,
    ModelList,
    ModelRemoved,
)
from zenos.core import durable
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, RefusedError, StorageError
from zenos.core.names import ModelRef, check_name, check_new_name
from zenos.models.records import Asked, ModelVersion

router = APIRouter(prefix="/api/models", tags=["models"])
P = ParamSpec("P")
T = TypeVar("T")


@router.get("", **operation(ModelList))
async def list_models(request: Request) -> Response:
    """All versions of all models, and what is wrong with those that are damaged."""
    system = system_of(request)
    found = await in_thread(system.registry.survey)
    home = home_of(request)
    damaged = {ref: shown(why, home) for ref, why in found.damaged.items()}
    return reply(ModelList(models=found.models, damaged=damaged))


@router.post("/copy", **operation(ModelVersion, body=CopyBody, status=201, also=(404, 409)))
async def copy(request: Request, key: IdempotencyKey = None) -> Response:
    """Register a version under another name too; its blobs are shared."""
    body: CopyBody = await read(request, CopyBody)
    asked = _asked(request, key, body)
    source, target = ModelRef.parse(body.source), check_new_name(body.target, "model name")
    async with audited(request, "copy", f"{body.source} to {target}"):
        await check_may_add(request, target)
        project = principal_of(request).project
        made = await in_thread(system_of(request).registry.copy, source, target, asked, project)
    return reply(made, 201)


@router.post("/import", **operation(ModelVersion, body=ImportBody, status=201, also=(404, 409)))
async def import_model(request: Request, key: IdempotencyKey = None) -> Response:
    """Register a Hugging Face directory that lies on the daemon's machine."""
    body: ImportBody = await read(request, ImportBody)
    path, name = Path(check_path(body.path)), check_new_name(body.name, "model name")
    take = system_of(request).registry.import_directory
    async with audited(request, "import", name):
        await check_may_add(request, name)
        project = principal_of(request).project
        made = await in_thread(take, path, name, _asked(request, key, body), project)
    return reply(made, 201)


@router.post("/export", **operation(Exported, body=ExportBody, status=201, also=(404, 409)))
async def export(request: Request, key: IdempotencyKey = None) -> Response:
    """Write a model as a Hugging Face directory on the daemon's machine.

    The same again finds what it has written, and succeeds.
    """
    body: ExportBody = await read(request, ExportBody)
    ref, path = ModelRef.parse(body.ref), Path(check_path(body.path))
    async with asked(request, key, body) as said:
        if said.before is None:
            async with audited(request, "export", str(ref), said.once):
                await in_thread(system_of(request).registry.export, ref, path)
    return reply(Exported(path=str(path)), 201)


@router.get("/{ref}", **operation(ModelVersion, also=(404,)))
async def show(request: Request, ref: ModelPath) -> Response:
    """One version: of a bare name the newest."""
    return reply(await in_thread(system_of(request).registry.resolve, ModelRef.parse(ref)))


@router.delete("/{ref}", **operation(ModelRemoved, also=(404, 409)))
async def remove(request: Request, ref: ModelPath) -> Response:
    """Remove a version: of a bare name the newest. One that is being served stays.

    Of a damaged one nobody knows whose it was: only the operator removes it.
    """
    system = system_of(request)
    exact = await in_thread(system.registry.meant, ModelRef.parse(ref))
    async with audited(request, "remove", str(exact)):
        try:
            check_may_change(request, await in_thread(system.registry.resolve, exact))
        except StorageError as error:
            if not principal_of(request).is_operator:
                raise RefusedError(
                    f"cannot remove {exact}: it is damaged, so that nobody knows whose it is; the "
                    "operator can"
                ) from error
        await _check_unused(system, exact)
        freed = await in_thread(system.registry.remove, exact)
    return reply(ModelRemoved(removed=str(exact), freed_bytes=freed))


@router.post(
    "/{name}/aliases", **operation(ModelVersion, body=AliasBody, status=201, also=(404, 409))
)
async def alias(request: Request, name: NamePath, key: IdempotencyKey = None) -> Response:
    """Let an alias name a version, or move it there."""
    body: AliasBody = await read(request, AliasBody)
    model, word = check_name(name, "model name"), check_name(body.alias, "alias")
    if not 1 <= body.version < 10**9:
        raise InvalidError("cannot use that version: versions are counted from 1")
    registry = system_of(request).registry
    async with asked(request, key, body) as said:
        if said.before is None:
            async with audited(request, "alias", f"{model}:{word} to {body.version}", said.once):
                await _check_may_alias(request, model, word, body.version)
                await in_thread(registry.alias, model, word, body.version)
    return reply(await in_thread(registry.resolve, ModelRef(model, str(body.version))), 201)


async def _check_may_alias(request: Request, model: str, word: str, version: int) -> None:
    """Both what the alias is to name and what it names now have to be one's own."""
    resolve = system_of(request).registry.resolve
    check_may_change(request, await in_thread(resolve, ModelRef(model, str(version))))
    with suppress(NotFoundError):
        check_may_change(request, await in_thread(resolve, ModelRef(model, word)))


def _asked(request: Request, key: str | None, body: CopyBody | ImportBody) -> Asked | None:
    if key is None:
        return None
    said = f"{request.url.path}\n".encode() + msgspec.json.encode(body, order="deterministic")
    user = principal_of(request).user
    return Asked(user=user, key=key, digest=hashlib.sha256(said).hexdigest())


async def _check_unused(system: System, version: ModelRef) -> None:
    for task in system.tasks().values():
        needed = {getattr(task.spec.work, name, None) for name in ("base", "tokenizer")}
        if not task.is_ended and str(version) in needed:
            raise ConflictError(
                f"cannot remove {version}: {task.name} needs it; cancel that first"
                f" (zenos cancel {task.id})"
            )
    for deployment in list(system.deployments().values()):
        ref = ModelRef.parse(deployment.spec.model)
        if deployment.stopping or ref.name != version.name:
            continue
        served = deployment.version or str(await in_thread(system.registry.meant, ref))
        if served == str(version):
            raise ConflictError(
                f"cannot remove {version}: {deployment.name} serves it; "
                f"stop that first (zenos stop {deployment.name})"
            )


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Work on the disk beside the event loop; what the disk says becomes a ZenosError."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        reason = f"cannot do that with the files: {error.strerror or type(error).__name__}"
        if error.errno in durable.OF_THE_PATH:
            raise InvalidError(reason) from error
        raise StorageError(reason) from error
