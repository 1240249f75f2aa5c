"""What the API needs of the system: one protocol, so that it can be driven without a machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from zenos.core import events as ev
from zenos.core.arrays import Array, ArraySpec
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.batches import Batch, BatchSpec
from zenos.core.node import Cordon, Node
from zenos.core.outlook import Plan, Why
from zenos.core.predictions import Estimate
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Once, Principal, Task, TaskEvent, TaskSpec
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Chunk, GenerateRequest, Progress
from zenos.kernel.accounts import Accounts
from zenos.kernel.control import Listening

if TYPE_CHECKING:
    from zenos.bus.durable_topics import DurableTopics
    from zenos.models.registry import Registry

ShutdownMode = Literal["suspend", "drain", "leave"]


class System(Protocol):
    """The running system. Every method raises ZenosError and nothing else.

    Mappings are live views: read them, don't keep them over an await.
    """

    registry: Registry
    topics: DurableTopics

    async def submit(self, spec: TaskSpec, principal: Principal, key: str | None) -> Task:
        """Submit a task; returns when it is remembered. `key`: the same key, the same task.

        Elsewhere `once` is remembered with what it does, for `recall`.
        """
        ...

    async def cancel(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Cancel a task, by id; NotFoundError when there is none."""
        ...

    async def submit_array(self, spec: ArraySpec, principal: Principal, key: str | None) -> Array:
        """Submit an array; returns when all of it is remembered. `key`: as of `submit`."""
        ...

    async def submit_batch(self, spec: BatchSpec, principal: Principal, key: str | None) -> Batch:
        """Submit several tasks, all or none. `key`: as of `submit`."""
        ...

    async def cancel_array(self, array: str, principal: Principal) -> Array:
        """Cancel all tasks of an array, by id; NotFoundError when there is none."""
        ...

    def arrays(self) -> Mapping[str, Array]:
        """All arrays that are remembered, by id."""
        ...

    async def pause(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Have a task, by id, give its CPU back; ConflictError in a state without that."""
        ...

    async def suspend(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Have a task save its state and give everything back; RefusedError when it can't."""
        ...

    async def resume(
        self, task: str, principal: Principal, once: Once | None = None, *, inexact: bool
    ) -> Task:
        """Let a paused or held task go on; inexact: a training may with other numerics."""
        ...

    async def nice(
        self, task: str, priority: int, principal: Principal, once: Once | None = None
    ) -> Task:
        """Give a task another priority."""
        ...

    async def why(self, task: str) -> Why:
        """Why a task, by id, waits, runs where it runs, or ended as it did; BusyError."""
        ...

    async def plan(self, ahead_s: float) -> Plan:
        """The schedule as it is expected, so many seconds ahead; BusyError."""
        ...

    async def deploy(
        self, spec: DeploymentSpec, principal: Principal, key: str | None
    ) -> Deployment:
        """Deploy a model or change its deployment; NotFoundError when no such model is there."""
        ...

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        """Stop a deployment; NotFoundError when there is none."""
        ...

    async def roll_back(
        self, name: str, to: int | None, principal: Principal, once: Once | None = None
    ) -> Deployment:
        """Send a deployment to the version before, or to number `to`; NotFoundError without."""
        ...

    def tasks(self) -> Mapping[str, Task]:
        """All tasks that are remembered, by id."""
        ...

    def deployments(self) -> Mapping[str, Deployment]:
        """All deployments, by name."""
        ...

    def nodes(self) -> Mapping[str, Node]:
        """All nodes, by name."""
        ...

    async def set_cordon(
        self, node: str, cordon: Cordon | None, principal: Principal, once: Once | None = None
    ) -> Node:
        """Have nothing new start on a node, or (None) let it; NotFoundError when there is none."""
        ...

    def used(self) -> Mapping[str, Resources]:
        """What tasks hold, by node."""
        ...

    def accounts(self) -> Accounts:
        """What users and projects hold and have had."""
        ...

    def estimates(self) -> Mapping[str, Estimate]:
        """What is known of run times, by signature."""
        ...

    def progress(self, task: str) -> Progress | None:
        """The newest progress of a task; None when it has reported none."""
        ...

    def threads(self, task: str) -> list[ProcessThreads]:
        """What the threads of a task do, by process, as they were last heard of."""
        ...

    def thread_count(self, task: str) -> int:
        """How many threads of a task run or wait."""
        ...

    async def events(self, after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        """Stored events with `seq > after_seq`, oldest first, at most `limit`."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[Listening]:
        """Live events from now on; the iterator ends when its reader is too slow."""
        ...

    def log_path(self, task: str, generation: int | None = None) -> Path | None:
        """The log of a task's newest worker, or of that of a generation.

        None before the first; NotFoundError if unknown.
        """
        ...

    def status(self) -> dict[str, Any]:
        """pid, version, uptime_s, home, tasks by state, and more: all JSON."""
        ...

    def generate(
        self, model: str, request: GenerateRequest, principal: Principal, deadline_s: float
    ) -> AsyncIterator[Chunk]:
        """The answer, chunk by chunk; loads the model when needed.

        An async generator: `aclose()` says that the client has gone, and frees its slot. Raises
        NotFoundError, UnfittableError, BusyError (with retry_after_s), DeadlineError, and what the
        worker raised.
        """
        ...

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Who did what: the rows that the query takes, the newest first."""
        ...

    async def recall(self, principal: Principal, once: Once) -> str | None:
        """What that request is remembered with, if it was carried out already; ConflictError."""
        ...

    async def record(self, event: ev.Record) -> None:
        """Write a row of what was done beside the kernel; returns when it is remembered."""
        ...

    def shut_down(self, mode: ShutdownMode) -> None:
        """Ask the daemon to go down; returns at once."""
        ...
