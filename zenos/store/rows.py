"""Rows of the tables that have a record each: columns to look for, and the whole as JSON."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.core.audit import AuditRow
from zenos.core.messages import Message
from zenos.core.node import Node
from zenos.core.predictions import Estimate
from zenos.core.quotas import Usage
from zenos.core.task import Deployment, IdempotencyKey, Task, TaskEvent
from zenos.store import shared


def _json(record: msgspec.Struct) -> str:
    return msgspec.json.encode(record).decode()


def task_row(task: Task) -> dict[str, object]:
    """A task."""
    return {
        "id": task.id,
        "user": task.principal.user,
        "project": task.principal.project,
        "kind": task.kind.value,
        "state": task.state.value,
        "generation": task.generation,
        "submitted": task.submitted,
        "ended": task.ended,
        "record": _json(shared.without_spec(task)),
    }


def event_row(event: TaskEvent) -> dict[str, object]:
    """What happened to a task."""
    return {"seq": event.seq, "at": event.at, "task": event.task, "record": _json(event)}


def audit_row(row: AuditRow) -> dict[str, object]:
    """Who did what."""
    return {
        "number": row.number,
        "at": row.at,
        "user": row.principal.user,
        "project": row.principal.project,
        "action": row.action,
        "subject": row.subject,
        "record": _json(row),
    }


def estimate_row(row: Estimate) -> dict[str, object]:
    """How long tasks of a signature run."""
    return {"signature": row.signature, "at": row.at, "record": _json(row)}


def usage_row(row: Usage) -> dict[str, object]:
    """What a user or a project has had."""
    return {"account": row.account, "at": row.at, "record": _json(row)}


def node_row(node: Node) -> dict[str, object]:
    """A node."""
    return {"name": node.name, "record": _json(node)}


def deployment_row(deployment: Deployment) -> dict[str, object]:
    """A deployment."""
    return {
        "name": deployment.name,
        "user": deployment.principal.user,
        "project": deployment.principal.project,
        "record": _json(deployment),
    }


def key_row(key: IdempotencyKey) -> dict[str, object]:
    """An idempotency key."""
    return {"user": key.user, "key": key.key, "at": key.at, "record": _json(key)}


MESSAGE_COLUMNS: Final = ("number", "topic", "state", "record", "body")


def message_values(message: Message) -> tuple[int, str, str, str, bytes]:
    """A message of a durable topic in these columns; its body stands beside the record."""
    state = "dead" if message.dead is not None else "done" if message.is_done else "live"
    record = _json(replace(message, body=b""))
    return message.number, message.topic, state, record, message.body
