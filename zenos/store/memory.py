"""A store that forgets with its process: for simulation and tests. Same contract as SQLite's."""

from __future__ import annotations

from msgspec.structs import replace

from zenos.core.actions import Changes, Snapshot
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.messages import Message, MessageChanges
from zenos.core.task import IdempotencyKey, TaskEvent


class MemoryStore:
    """Dictionaries."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._keys: dict[tuple[str, str], IdempotencyKey] = {}
        self._events: dict[int, TaskEvent] = {}
        self._audit: dict[int, AuditRow] = {}
        self._messages: dict[int, Message] = {}

    async def load(self) -> Snapshot:
        """A copy of what is remembered."""
        now = self._snapshot
        return replace(
            now,
            tasks=dict(now.tasks),
            deployments=dict(now.deployments),
            nodes=dict(now.nodes),
            arrays=dict(now.arrays),
            keys=list(self._keys.values()),
            estimates=dict(now.estimates),
            usage=dict(now.usage),
        )

    async def commit(self, changes: Changes) -> None:
        """Remember all changes."""
        state = self._snapshot
        state.now = max(state.now, changes.now)
        state.next_task, state.next_seq = changes.next_task, changes.next_seq
        state.next_audit = changes.next_audit
        state.tasks.update(changes.tasks)
        state.deployments.update(changes.deployments)
        state.nodes.update(changes.nodes)
        for name in changes.deleted_nodes:
            state.nodes.pop(name, None)
        state.estimates.update(changes.estimates)
        for name in changes.deleted_estimates:
            state.estimates.pop(name, None)
        state.usage.update(changes.usage)
        for account in changes.deleted_usage:
            state.usage.pop(account, None)
        state.arrays.update(changes.arrays)
        for array in changes.deleted_arrays:
            state.arrays.pop(array, None)
        for key in changes.keys:
            self._keys[key.user, key.key] = key
        for task in changes.deleted_tasks:
            state.tasks.pop(task, None)
        for name in changes.deleted_deployments:
            state.deployments.pop(name, None)
        for user, name in changes.deleted_keys:
            self._keys.pop((user, name), None)
        self._events.update({event.seq: event for event in changes.events})
        if changes.prune_events_before:
            kept = self._events.items()
            self._events = {s: e for s, e in kept if s >= changes.prune_events_before}

        self._audit.update({row.number: row for row in changes.audit})
        if changes.prune_audit_before:
            rows = self._audit.items()
            self._audit = {n: row for n, row in rows if n >= changes.prune_audit_before}

    async def load_messages(self) -> list[Message]:
        """All durable messages, in the order of their numbers."""
        return [self._messages[number] for number in sorted(self._messages)]

    async def commit_messages(self, changes: MessageChanges) -> None:
        """Remember all changes."""
        self._snapshot.now = max(self._snapshot.now, changes.now)
        self._messages.update(changes.put)
        for number in changes.deleted:
            self._messages.pop(number, None)

    async def events(self, after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        """History lines, oldest first."""
        found = [
            event
            for seq, event in sorted(self._events.items())
            if seq > after_seq and task in (None, event.task)
        ]
        return found[:limit]

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Rows, the newest first."""
        found = [row for _, row in sorted(self._audit.items(), reverse=True) if query.takes(row)]
        return found[: query.limit]

    async def close(self) -> None:
        """There is nothing to let go of."""
