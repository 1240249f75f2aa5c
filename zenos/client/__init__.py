"""A typed client of the daemon's HTTP interface, for programs, notebooks and the command line."""

from __future__ import annotations

from zenos.client.aio import AsyncClient, AsyncGeneration, AsyncTaskHandle, connect_async
from zenos.client.sync import Client, Generation, TaskHandle, connect
from zenos.client.types import ModelVersion, NodeView, Removed, Status, TaskProgress, TaskView

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncTaskHandle",
    "Client",
    "Generation",
    "ModelVersion",
    "NodeView",
    "Removed",
    "Status",
    "TaskHandle",
    "TaskProgress",
    "TaskView",
    "connect",
    "connect_async",
]
