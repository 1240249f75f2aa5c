"""Who did what, for the clients."""

from __future__ import annotations

import msgspec

from zenos.client.bus import AsyncRun, Run
from zenos.client.calls import Call
from zenos.core.audit import AuditRow


class AuditList(msgspec.Struct):
    """Answer of GET /api/audit."""

    rows: list[AuditRow]


def _rows(
    action: str | None,
    user: str | None,
    subject: str | None,
    since: float | None,
    before: int | None,
    limit: int | None,
) -> Call[AuditList]:
    given: dict[str, str | int | None] = {
        "action": action,
        "user": user,
        "subject": subject,
        "since": None if since is None else repr(float(since)),
        "before": before,
        "limit": limit,
    }
    params = {name: value for name, value in given.items() if value is not None}
    return Call(method="GET", path="/api/audit", into=AuditList, params=params)


class Audit:
    """Who did what: `client.audit`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def rows(
        self,
        *,
        action: str | None = None,
        user: str | None = None,
        subject: str | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[AuditRow]:
        """Rows, the newest first. since: seconds since 1970; before: only lower numbers."""
        return self._run(_rows(action, user, subject, since, before, limit)).rows


class AsyncAudit:
    """Who did what: `client.audit` of the async client."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def rows(
        self,
        *,
        action: str | None = None,
        user: str | None = None,
        subject: str | None = None,
        since: float | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[AuditRow]:
        """As Audit.rows."""
        return (await self._run(_rows(action, user, subject, since, before, limit))).rows
