"""Who did what: the rows, and how the routes beside the kernel write theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zenos.api.common import principal_of, refusing, system_of
from zenos.api.schema import operation, reply
from zenos.api.shapes import AuditList
from zenos.core import audit, limits
from zenos.core import events as ev
from zenos.core.errors import RefusedError, ZenosError
from zenos.core.task import Once
from zenos.core.wording import FieldError, nearest

router = APIRouter(prefix="/api/audit", tags=["audit"])
ACTIONS = get_args(audit.Action)

SINCE_MAX = 1e12  # s; a number that no float tells from its bound would be taken
Text = Annotated[str | None, Query(min_length=1, max_length=limits.AUDIT_CHARS_MAX)]


@router.get("", **operation(AuditList))
async def list_rows(
    request: Request,
    action: Annotated[
        str | None,
        Query(description="Only this action.", json_schema_extra={"enum": list(ACTIONS)}),
    ] = None,
    user: Text = None,
    subject: Text = None,
    since: Annotated[
        float | None, Query(ge=0, le=SINCE_MAX, description="Seconds since 1970: not before.")
    ] = None,
    before: Annotated[
        int | None, Query(ge=1, le=2**62, description="Only with a lower `number`: the next page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=limits.AUDIT_LISTED_MAX)] = 100,
) -> Response:
    """Who did what, the newest first: to the operator of all, to others what they did."""
    who = principal_of(request)
    if not who.is_operator:
        with refusing(request):
            if user not in (None, who.user):
                raise RefusedError(
                    f"cannot show what {user!a} did: the operator alone sees that of others"
                )
        user = who.user
    if action is not None and action not in ACTIONS:
        hint = nearest(action[:100], list(ACTIONS)) or f": one of {', '.join(ACTIONS)}"
        raise FieldError(f"cannot use the action {action[:64]!a}{hint}", "action")
    query = audit.AuditQuery(
        limit=limit, before=before, action=action, user=user, subject=subject, since=since
    )
    return reply(AuditList(rows=await system_of(request).audit(query)))


class Done:
    """What comes of what is done: remembered where the request is to be carried out once."""

    result = ""


@asynccontextmanager
async def audited(
    request: Request, action: audit.Action, subject: str, once: Once | None = None
) -> AsyncIterator[Done]:
    """What is done inside gets its row right after it, and before the answer.

    So a crash between the two leaves a change without a row, never a row without its change. The
    same holds for what is remembered under a key.
    """
    done = Done()
    try:
        yield done
    except ZenosError as error:
        await record(request, action, subject, str(error))
        raise
    await record(request, action, subject, once=once, result=done.result)


async def record(
    request: Request,
    action: audit.Action,
    subject: str,
    reason: str = "",
    *,
    once: Once | None = None,
    result: str = "",
) -> None:
    """Write a row; without a reason it was accepted."""
    key = request.headers.get("idempotency-key")
    await system_of(request).record(
        ev.Record(
            request=0,
            principal=principal_of(request),
            action=action,
            subject=audit.bounded(subject),
            accepted=not reason,
            reason=reason,
            key=key[: limits.IDEMPOTENCY_KEY_CHARS_MAX] if key else None,
            once=once,
            result=result,
        )
    )
