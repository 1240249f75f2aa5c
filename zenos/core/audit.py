"""Who did what: a row for each request that changed something, or was refused.

A row of what the kernel decides is in the transaction of the change it tells of. A row of what is
done beside the kernel (the registry, durable topics) is written right after it, before the answer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from zenos.core import limits
from zenos.core.task import Principal

Via = Literal["api", "signal"]
Action = Literal[
    "submit",
    "cancel",
    "pause",
    "suspend",
    "resume",
    "nice",
    "deploy",
    "change",
    "undeploy",
    "rollback",
    "copy",
    "import",
    "export",
    "alias",
    "remove",
    "cordon",
    "drain",
    "uncordon",
    "replay",
    "purge",
    "grant",
    "revoke",
    "down",
    "reload",
    "refuse",
]


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `number` counts over the whole system; `at` is kernel time in seconds.

    token: the name of that with which it was asked for, never the secret: a user's, `task ID` for a
    task's own, empty for that of the home. via: how it came. subject: the task, deployment, node,
    model or topic. reason: why it was refused. key: the request's idempotency key.
    """

    number: int
    at: float
    principal: Principal
    token: str = ""
    via: Via = "api"
    action: Action
    subject: str = ""
    accepted: bool = True
    reason: str = ""
    key: str | None = None


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows, the newest first. before: only numbers below; since: kernel time in seconds."""

    limit: int = 100
    before: int | None = None
    action: str | None = None
    user: str | None = None
    subject: str | None = None
    since: float | None = None

    def takes(self, row: AuditRow) -> bool:
        """Whether the row is one of them, `limit` aside."""
        return (
            (self.before is None or row.number < self.before)
            and self.action in (None, row.action)
            and self.user in (None, row.principal.user)
            and self.subject in (None, row.subject)
            and (self.since is None or row.at >= self.since)
        )


def bounded(text: str) -> str:
    """A text no longer than a field of a row may be."""
    return text[: limits.AUDIT_CHARS_MAX]
