"""Who did what: rows of the requests that the kernel decides, and of what is done beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zenos.core import audit
from zenos.core import events as ev
from zenos.core.actions import Reply
from zenos.core.arrays import Array
from zenos.core.batches import Batch
from zenos.core.errors import ZenosError
from zenos.core.node import Node
from zenos.core.task import Deployment, IdempotencyKey, Once, Principal, Task
from zenos.kernel import supervision

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

Requested = (
    ev.Submit
    | ev.SubmitArray
    | ev.SubmitBatch
    | ev.CancelArray
    | ev.Cancel
    | ev.Pause
    | ev.Suspend
    | ev.Resume
    | ev.Nice
    | ev.Deploy
    | ev.Undeploy
    | ev.Rollback
    | ev.SetCordon
)


class Audit:
    """Writes rows into what a step changes, beside the change that each of them tells of."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def answer(
        self,
        event: Requested,
        action: audit.Action,
        work: supervision.Work,
        now: float,
    ) -> None:
        """Answer, with a row of what came of it in the same transaction.

        A request that is repeated under its key, or whose end is reached already, changes nothing
        and gets no row; a refusal isn't remembered under a key, so each one has its own.
        """
        kernel = self._kernel
        kernel.state.asker, kernel.unchanged = event.principal, False
        try:
            kernel.answer(event.request, work)
        finally:
            kernel.state.asker = None
        reply = kernel.actions[-1]
        result = reply.result if isinstance(reply, Reply) else None
        once = getattr(event, "once", None)
        if once is not None and isinstance(result, Task | Deployment | Node):
            self._remember(event.principal, once, _answered(result), now)
        if kernel.unchanged:
            return
        key = once.key if once is not None else getattr(event, "key", None)
        if isinstance(result, Task | Array | Batch):
            self.add(event.principal, action, result.id, now, token=event.token, key=key)
        elif isinstance(result, ZenosError):
            subject, reason = _subject(event), str(result)
            self.add(
                event.principal, action, subject, now, token=event.token, reason=reason, key=key
            )
        else:
            self.add(event.principal, action, _subject(event), now, token=event.token, key=key)

    def record(self, event: ev.Record, now: float) -> None:
        """What was done beside the kernel; under one key the same thing has one row."""
        key, known = None, None
        if event.once is not None and event.accepted:
            self._remember(event.principal, event.once, event.result, now)
        elif event.key is not None and event.accepted:
            # A newline stands in no header: users' own keys are never such.
            key = f"{event.action}\n{event.subject}\n{event.key}"
            held = self._kernel.state.keys.get((event.principal.user, key))
            known = held.subject if held is not None else None
        if known is None:
            row = self.add(
                event.principal,
                event.action,
                event.subject,
                now,
                token=event.token,
                via=event.via,
                reason="" if event.accepted else event.reason,
                key=event.key,
            )
            if key is not None:
                row_key = IdempotencyKey(
                    user=event.principal.user,
                    key=key,
                    fingerprint="",
                    subject=str(row.number),
                    at=now,
                )
                self._kernel.state.put_key(row_key)
        else:
            row = audit.AuditRow(
                number=int(known),
                at=now,
                principal=event.principal,
                token=event.token,
                action=event.action,
                subject=event.subject,
                key=event.key,
            )
        self._kernel.actions.append(Reply(request=event.request, result=row))

    def _remember(self, principal: Principal, once: Once, subject: str, now: float) -> None:
        self._kernel.state.put_key(
            IdempotencyKey(
                user=principal.user, key=once.key, fingerprint=once.asked, subject=subject, at=now
            )
        )

    def add(
        self,
        principal: Principal,
        action: audit.Action,
        subject: str,
        now: float,
        *,
        token: str = "",
        via: audit.Via = "api",
        reason: str = "",
        key: str | None = None,
    ) -> audit.AuditRow:
        """Without a reason it was accepted."""
        return self._kernel.state.put_audit(
            audit.AuditRow(
                number=0,
                at=now,
                principal=principal,
                token=token,
                via=via,
                action=action,
                subject=audit.bounded(subject),
                accepted=not reason,
                reason=audit.bounded(reason),
                key=key,
            )
        )


def _answered(result: Task | Deployment | Node) -> str:
    """What a repetition is to be answered with: a name, and a node whole, as it may have gone."""
    if isinstance(result, Node):
        return msgspec.json.encode(result).decode()
    return result.id if isinstance(result, Task) else result.name


def _subject(event: Requested) -> str:
    """What a request is about, where its answer doesn't say."""
    match event:
        case ev.Submit():
            return event.spec.name
        case ev.SubmitArray():
            return event.spec.task.name
        case ev.SubmitBatch():
            return event.spec.tasks[0].name if event.spec.tasks else ""
        case ev.CancelArray():
            return event.array
        case ev.SetCordon():
            return event.node
        case ev.Deploy():
            return event.spec.model
        case ev.Undeploy() | ev.Rollback():
            return event.name
        case _:
            return event.task
