"""A typed client of the daemon's HTTP interface, for programs, notebooks and the command line."""

from __future__ import annotations

from zenos.client.aio import AsyncClient, AsyncGeneration, AsyncTaskHandle, connect_async
from zenos.client.audit import AsyncAudit, Audit
from zenos.client.bus import AsyncBus, Bus
from zenos.client.bus_calls import MessageInfo, Sent, TopicInfo
from zenos.client.sync import Client, Generation, TaskHandle, connect
from zenos.client.types import (
    Chunk,
    ModelVersion,
    NodeView,
    Removed,
    Status,
    TaskProgress,
    TaskThreads,
    TaskView,
    TokenLogprob,
    Usage,
)

__all__ = [
    "AsyncAudit",
    "AsyncBus",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncTaskHandle",
    "Audit",
    "Bus",
    "Chunk",
    "Client",
    "Generation",
    "MessageInfo",
    "ModelVersion",
    "NodeView",
    "Removed",
    "Sent",
    "Status",
    "TaskHandle",
    "TaskProgress",
    "TaskThreads",
    "TaskView",
    "TokenLogprob",
    "TopicInfo",
    "Usage",
    "connect",
    "connect_async",
]
