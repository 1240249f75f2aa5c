"""A typed client of the daemon's HTTP interface, for programs, notebooks and the command line."""

from __future__ import annotations

from zenos.client.aio import AsyncClient, AsyncGeneration, AsyncTaskHandle, connect_async
from zenos.client.sync import Client, Generation, TaskHandle, connect
from zenos.client.types import (
    Chunk,
    ModelVersion,
    NodeView,
    Removed,
    Status,
    TaskProgress,
    TaskView,
    TokenLogprob,
    Usage,
)

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncTaskHandle",
    "Chunk",
    "Client",
    "Generation",
    "ModelVersion",
    "NodeView",
    "Removed",
    "Status",
    "TaskHandle",
    "TaskProgress",
    "TaskView",
    "TokenLogprob",
    "Usage",
    "connect",
    "connect_async",
]
