"""What the holder of a user's token may change beside tasks and deployments, of which the kernel
decides: models, topics. See docs/security.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fastapi import Request

from zenos.api.common import principal_of, refusing, system_of
from zenos.core.errors import NotFoundError, RefusedError
from zenos.core.names import ModelRef
from zenos.core.specs import CreateSpec, ProgramSpec, TrainSpec
from zenos.core.task import Principal, TaskSpec
from zenos.models.records import ModelVersion


def check_may_change(request: Request, version: ModelVersion) -> None:
    """RefusedError for a version that another project has made; unknown ones are the operator's."""
    who = principal_of(request)
    if not (who.is_operator or version.lineage.project == who.project):
        raise RefusedError(f"cannot change {version.ref}: {_whose(version)}")


def check_may_use(request: Request, topic: str) -> None:
    """RefusedError for a topic below another project's task; all others are everybody's."""
    owner = system_of(request).tasks().get(topic.partition("/")[0])
    if owner is not None and not principal_of(request).may_change(owner.principal):
        raise RefusedError(
            f"cannot use the topic {topic}: it is one of {owner.id}, which belongs to "
            f"{owner.principal.user}"
        )


async def check_may_make(request: Request, specs: Iterable[TaskSpec]) -> None:
    """RefusedError for a task that would change what is another project's: models and topics."""
    with refusing(request):
        for spec in specs:
            match spec.work:
                case TrainSpec(model=model, publish=published):
                    await check_may_add(request, model, published)
                case CreateSpec(name=name):
                    await check_may_add(request, name)
                case ProgramSpec(topics=topics):
                    for topic in topics:
                        check_may_use(request, topic)


async def check_may_add(request: Request, *names: str | None) -> None:
    """RefusedError for another project's model: what asks it by its name would get the new one.

    Looked at when it is asked for; a name that is free then may have been taken when it is done.
    """
    who = principal_of(request)
    if who.is_operator:
        return
    for name in filter(None, names):
        try:
            newest = await asyncio.to_thread(system_of(request).registry.resolve, ModelRef(name))
        except NotFoundError:
            continue
        if newest.lineage.project != who.project:
            raise RefusedError(
                f"cannot add a version to {name}: {_whose(newest)}; choose another name"
            )


def _whose(version: ModelVersion) -> str:
    project = version.lineage.project
    if project in (None, Principal().project):
        return "it belongs to the operator"
    return f"it belongs to the project {project}"
