"""What every store does."""

from __future__ import annotations

from typing import Protocol

from zenos.core.actions import Changes, Snapshot
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.messages import Message, MessageChanges
from zenos.core.task import TaskEvent


class Store(Protocol):
    """Remembers the kernel's state. One caller commits; anybody may read events."""

    async def load(self) -> Snapshot:
        """Everything that is remembered of the kernel's state."""
        ...

    async def commit(self, changes: Changes) -> None:
        """Remember all of `changes` in one transaction.

        Raises StorageError when that isn't possible; then nothing of it is remembered, and the same
        changes may be committed again. Committing what is committed already changes nothing.
        """
        ...

    async def load_messages(self) -> list[Message]:
        """All durable messages, in the order of their numbers."""
        ...

    async def commit_messages(self, changes: MessageChanges) -> None:
        """As `commit`: one transaction, remembered whole when this returns, or not at all."""
        ...

    async def events(self, after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        """History lines with `seq > after_seq` in order, at most `limit`; of one task if given."""
        ...

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Who did what: the rows that the query takes, the newest first."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
