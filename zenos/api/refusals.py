"""Rows of who was not let in: without a token, or by a Host or Origin that isn't ours; and of
users who asked for what is the operator's.

Nobody waits for them, so that a refusal costs a stranger's request nothing more; and a flood of
them is bounded: so many rows in a minute, the rest counted in one more.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context

from starlette.types import Scope

from zenos.api.auth import PRINCIPAL
from zenos.api.ports import System
from zenos.core import audit, limits
from zenos.core import events as ev
from zenos.core.errors import ZenosError
from zenos.core.task import Principal

log = logging.getLogger(__name__)
# Who it was is just what isn't known.
NOBODY = Principal(user="", project="")


class Refusals:
    """The rows of this minute, and how many requests got none."""

    def __init__(self, system: System, window_s: float = limits.REFUSALS_WINDOW_S) -> None:
        self._system = system
        self._window_s = window_s
        self._written = 0
        self._counted = 0
        self._open = False
        self._writing: set[asyncio.Task[None]] = set()

    def refused(self, scope: Scope, error: ZenosError) -> None:
        """That was refused; returns at once."""
        if not self._open:
            self._open = True
            # In a context of its own: what is counted is not of this request's token alone.
            loop = asyncio.get_running_loop()
            loop.call_later(self._window_s, self._end, context=Context())
        if self._written >= limits.REFUSALS_KEPT:
            self._counted += 1
            return
        self._written += 1
        peer = (scope.get("client") or ("unknown",))[0]
        reason = f"{error.message} (from {peer})"
        self._write(f"{scope['method']} {scope['path']}", reason, scope.get(PRINCIPAL, NOBODY))

    def _end(self) -> None:
        if self._counted:
            self._write(
                "more requests",
                f"cannot let in {self._counted} more within {self._window_s:g} s: no row for each",
            )
        self._open, self._written, self._counted = False, 0, 0

    def _write(self, subject: str, reason: str, who: Principal = NOBODY) -> None:
        event = ev.Record(
            request=0,
            principal=who,
            action="refuse",
            subject=audit.bounded(subject.encode("utf-8", "replace").decode()),
            accepted=False,
            reason=reason,
        )
        task = asyncio.ensure_future(self._record(event))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _record(self, event: ev.Record) -> None:
        try:
            await self._system.record(event)
        except ZenosError as error:
            log.warning("no row of a refused request: %s", error)
