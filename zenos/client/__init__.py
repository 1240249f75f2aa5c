"""A typed client of the daemon's HTTP interface, for programs, notebooks and the command line."""

from __future__ import annotations

from zenos.client.aio import AsyncClient, AsyncTaskHandle, connect_async
from zenos.client.audit import AsyncAudit, Audit
from zenos.client.bus import AsyncBus, Bus
from zenos.client.bus_calls import MessageInfo, Sent, TopicInfo
from zenos.client.generation import AsyncGeneration, Generation
from zenos.client.live import AsyncLive, Live
from zenos.client.sync import Client, TaskHandle, connect
from zenos.client.tokens import AsyncUserTokens, TokenView, UserTokens
from zenos.client.types import (
    ArrayView,
    Chunk,
    History,
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
from zenos.core.outlook import Plan, Why

__all__ = [
    "ArrayView",
    "AsyncAudit",
    "AsyncBus",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncLive",
    "AsyncTaskHandle",
    "AsyncUserTokens",
    "Audit",
    "Bus",
    "Chunk",
    "Client",
    "Generation",
    "History",
    "Live",
    "MessageInfo",
    "ModelVersion",
    "NodeView",
    "Plan",
    "Removed",
    "Sent",
    "Status",
    "TaskHandle",
    "TaskProgress",
    "TaskThreads",
    "TaskView",
    "TokenLogprob",
    "TokenView",
    "TopicInfo",
    "Usage",
    "UserTokens",
    "Why",
    "connect",
    "connect_async",
]
