"""What to do: the actions that the kernel's step returns, performed after the commit.

Actions are idempotent, and are derived again from the stored rows at boot.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from zenos.core.arrays import Array
from zenos.core.audit import AuditRow
from zenos.core.batches import Batch
from zenos.core.errors import ZenosError
from zenos.core.node import Node
from zenos.core.outlook import Picture
from zenos.core.predictions import Estimate
from zenos.core.quotas import Usage
from zenos.core.task import Deployment, IdempotencyKey, Task, TaskEvent


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all actions."""


class StartWorker(Action, frozen=True, kw_only=True):
    """Start generation `task.generation` of this task with its allocation."""

    task: Task


class StopWorker(Action, frozen=True, kw_only=True):
    """End this generation's whole process group: SIGTERM, and SIGKILL after `grace_s` seconds.

    save: tell the worker to write a checkpoint first (within the grace time).
    """

    task: str
    generation: int
    grace_s: float
    save: bool = False


class PauseWorker(Action, frozen=True, kw_only=True):
    """Have this generation give its CPU back; a WorkerPaused says that it has.

    how: `step`: a word on the bus, heard at the next step boundary; `signals`: SIGTSTP, and after
    half of `grace_s` seconds `freeze`: stopped by the kernel, whether it wants or not.
    """

    task: str
    generation: int
    how: Literal["step", "signals", "freeze"]
    grace_s: float


class ResumeWorker(Action, frozen=True, kw_only=True):
    """Let this generation go on, if it was paused or is being so."""

    task: str
    generation: int
    how: Literal["step", "signals", "freeze"]


class MakeRoom(Action, frozen=True, kw_only=True):
    """Tell a host of calls whether others wait for its room: it ends once it is idle, if so."""

    task: str
    generation: int
    on: bool


class Update(Action, frozen=True, kw_only=True):
    """Tell the replicas of a deployment which version to serve now."""

    deployment: Deployment


class Reply(Action, frozen=True, kw_only=True):
    """Answer a request."""

    request: int
    result: (
        Task | Array | Batch | Deployment | Node | AuditRow | IdempotencyKey | Picture | ZenosError
    )


class Forget(Action, frozen=True, kw_only=True):
    """Delete what is left of these tasks on disk: run directories, logs and checkpoints."""

    tasks: list[str]


class Discard(Action, frozen=True, kw_only=True):
    """Delete the checkpoints of these trainings: they have ended, and nothing goes on from them."""

    tasks: list[str]


class Changes(msgspec.Struct, kw_only=True):
    """All that one step changed: one transaction.

    tasks, deployments and nodes are upserts of whole records, the last one of each counts.
    next_task, next_seq and next_audit are the kernel's counters after the step; now is its time.
    """

    now: float = 0.0
    next_task: int = 1
    next_seq: int = 1
    tasks: dict[str, Task] = {}
    events: list[TaskEvent] = []
    deployments: dict[str, Deployment] = {}
    nodes: dict[str, Node] = {}
    keys: list[IdempotencyKey] = []
    deleted_tasks: list[str] = []
    deleted_deployments: list[str] = []
    deleted_keys: list[tuple[str, str]] = []
    prune_events_before: int = 0
    next_audit: int = 1
    audit: list[AuditRow] = []
    prune_audit_before: int = 0
    estimates: dict[str, Estimate] = {}
    deleted_estimates: list[str] = []
    arrays: dict[str, Array] = {}
    deleted_arrays: list[str] = []
    usage: dict[str, Usage] = {}
    deleted_usage: list[str] = []
    deleted_nodes: list[str] = []

    def __bool__(self) -> bool:
        """Whether there is anything to remember."""
        return bool(
            self.tasks
            or self.events
            or self.deployments
            or self.nodes
            or self.keys
            or self.deleted_tasks
            or self.deleted_deployments
            or self.deleted_keys
            or self.prune_events_before
            or self.audit
            or self.prune_audit_before
            or self.estimates
            or self.deleted_estimates
            or self.arrays
            or self.deleted_arrays
            or self.usage
            or self.deleted_usage
            or self.deleted_nodes
        )


class Snapshot(msgspec.Struct, kw_only=True):
    """All that the store remembers of the kernel's state, read at boot. `now`: the latest time."""

    now: float = 0.0
    next_task: int = 1
    next_seq: int = 1
    next_audit: int = 1
    tasks: dict[str, Task] = {}
    deployments: dict[str, Deployment] = {}
    nodes: dict[str, Node] = {}
    keys: list[IdempotencyKey] = []
    estimates: dict[str, Estimate] = {}
    arrays: dict[str, Array] = {}
    usage: dict[str, Usage] = {}
