"""What happened: the events that the kernel's step takes."""

from __future__ import annotations

import msgspec

from zenos.core.arrays import ArraySpec
from zenos.core.audit import Action, Via
from zenos.core.batches import BatchSpec
from zenos.core.config import Config
from zenos.core.node import Cordon, Node
from zenos.core.node import Measured as NodeMeasured
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Once, Outcome, Principal, TaskSpec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events."""


class Asked(Event, frozen=True, kw_only=True):
    """Base of those that somebody asks for. token: with which, see core/asking.py."""

    token: str = ""


class Submit(Asked, frozen=True, kw_only=True):
    """A user submits a task. Answered by a Reply with the Task.

    asked: as the user sent it, where `spec` says more: which versions its models are. warning: what
    speaks against it, in words.
    """

    request: int
    spec: TaskSpec
    asked: TaskSpec | None = None
    warning: str = ""
    principal: Principal = Principal()
    key: str | None = None


class Look(Event, frozen=True, kw_only=True):
    """Somebody wants to look at the state. Answered with a Picture in which `task` is, if it waits.

    Nothing is changed by it.
    """

    request: int
    task: str | None = None


class SubmitArray(Asked, frozen=True, kw_only=True):
    """A user submits an array: many tasks at once. Answered by a Reply with the Array."""

    request: int
    spec: ArraySpec
    principal: Principal = Principal()
    key: str | None = None


class SubmitBatch(Asked, frozen=True, kw_only=True):
    """A user submits several tasks as one. Answered with the Batch. asked: see Submit.

    warnings: what speaks against some of them, by name.
    """

    request: int
    spec: BatchSpec
    asked: BatchSpec | None = None
    principal: Principal = Principal()
    key: str | None = None
    warnings: dict[str, str] = {}


class CancelArray(Asked, frozen=True, kw_only=True):
    """A user cancels all tasks of an array. Answered by a Reply with the Array."""

    request: int
    array: str
    principal: Principal = Principal()


class Cancel(Asked, frozen=True, kw_only=True):
    """A user cancels a task. Answered by a Reply with the Task."""

    request: int
    task: str
    principal: Principal = Principal()
    once: Once | None = None


class Pause(Asked, frozen=True, kw_only=True):
    """A user has a task give its CPU back and keep its memory. Answered with the Task."""

    request: int
    task: str
    principal: Principal = Principal()
    once: Once | None = None


class Suspend(Asked, frozen=True, kw_only=True):
    """A user has a task save its state and give everything back. Answered with the Task."""

    request: int
    task: str
    principal: Principal = Principal()
    once: Once | None = None


class Resume(Asked, frozen=True, kw_only=True):
    """A user lets a paused or held task go on. Answered with the Task.

    inexact: a training may go on with other numerics than those that it began with.
    """

    request: int
    task: str
    inexact: bool = False
    principal: Principal = Principal()
    once: Once | None = None


class Nice(Asked, frozen=True, kw_only=True):
    """A user gives a task another priority. Answered with the Task."""

    request: int
    task: str
    priority: int
    principal: Principal = Principal()
    once: Once | None = None


class Deploy(Asked, frozen=True, kw_only=True):
    """A user deploys a model, or changes its deployment. Answered with the Deployment.

    version: which one `spec.model` means now; memory: bytes that a replica of it needs; build: see
    Deployment; warning: what speaks against it, in words.
    """

    request: int
    spec: DeploymentSpec
    version: str = ""
    memory: int = 0
    build: str = ""
    warning: str = ""
    principal: Principal = Principal()
    key: str | None = None


class Undeploy(Asked, frozen=True, kw_only=True):
    """A user stops a deployment. Answered with the Deployment."""

    request: int
    name: str
    principal: Principal = Principal()


class Demand(Event, frozen=True, kw_only=True):
    """Requests wait for this model. Makes an implicit deployment where `spec` is given.

    version, memory: as in Deploy. Answered with the Deployment; 0: nobody waits for that.
    """

    request: int = 0
    name: str
    spec: DeploymentSpec | None = None
    version: str = ""
    memory: int = 0
    build: str = ""
    principal: Principal = Principal()


class Published(Event, frozen=True, kw_only=True):
    """A training has published a version; deployments that follow its model take it.

    version: `name:number`; memory, build: as in Deploy. task: whose memory has it.
    """

    version: str
    memory: int = 0
    build: str = ""
    task: str


class Rollback(Asked, frozen=True, kw_only=True):
    """A user sends a deployment to another version, to stay there. Answered with the Deployment.

    version, memory, build: as in Deploy.
    """

    request: int
    name: str
    version: str
    memory: int = 0
    build: str = ""
    principal: Principal = Principal()
    once: Once | None = None


class Used(Event, frozen=True, kw_only=True):
    """A deployment's requests: how many are in flight; of those, how many wait for a replica."""

    name: str
    in_flight: int
    waiting: int = 0


class Record(Asked, frozen=True, kw_only=True):
    """What was done, or refused, beside the kernel. Answered with its AuditRow.

    key: the same principal's key for the same thing writes no second row. once: what was done is
    remembered under that key, with `result`; see Recall.
    """

    request: int
    principal: Principal
    action: Action
    subject: str
    via: Via = "api"
    accepted: bool = True
    reason: str = ""
    key: str | None = None
    once: Once | None = None
    result: str = ""


class Recall(Event, frozen=True, kw_only=True):
    """Whether that was done already. Answered with its IdempotencyKey, or a NotFoundError.

    A ConflictError where the key was used for something else.
    """

    request: int
    principal: Principal
    once: Once


class NodeUp(Event, frozen=True, kw_only=True):
    """A node is there, with what it has: for the first time, again, or with something changed.

    running: the workers that it has, or had and has still to tell how they ended, as task and
    generation; None where that is told by itself, as of this machine's own after a restart.
    """

    node: Node
    running: tuple[tuple[str, int], ...] | None = None


class NodeBeat(Event, frozen=True, kw_only=True):
    """A node with a lease is still there. One that was lost has to come up again."""

    node: str


class NodeDown(Event, frozen=True, kw_only=True):
    """A node is gone, with all that ran there. Nobody knows how that ended."""

    node: str
    reason: str = "it is gone"


class SetCordon(Asked, frozen=True, kw_only=True):
    """A user has nothing new start on a node, or (None) lets things start there again.

    Answered with the Node.
    """

    request: int
    node: str
    cordon: Cordon | None
    principal: Principal = Principal()
    once: Once | None = None


class Measured(Event, frozen=True, kw_only=True):
    """What processes outside zenos use of a node has changed."""

    node: str
    measured: NodeMeasured


class WorkerStarted(Event, frozen=True, kw_only=True):
    """The worker's process runs."""

    task: str
    generation: int
    pid: int


class WorkerReady(Event, frozen=True, kw_only=True):
    """A serving worker has loaded its model."""

    task: str
    generation: int


class WorkerPaused(Event, frozen=True, kw_only=True):
    """The worker computes nothing any more, and keeps its memory."""

    task: str
    generation: int


class WorkerExited(Event, frozen=True, kw_only=True):
    """The worker has ended and said how. saved_step: the step of its newest checkpoint."""

    task: str
    generation: int
    outcome: Outcome
    saved_step: int = 0


class WorkerLost(Event, frozen=True, kw_only=True):
    """The worker is gone and nobody knows how it ended: its shim was killed, or the machine.

    saved_step: the step of its newest checkpoint.
    """

    task: str
    generation: int
    reason: str
    log_tail: str = ""
    saved_step: int = 0


class StartFailed(Event, frozen=True, kw_only=True):
    """The worker could not be started; nothing of it runs."""

    task: str
    generation: int
    reason: str


class Configured(Event, frozen=True, kw_only=True):
    """The settings were read again."""

    config: Config


class Shutdown(Event, frozen=True, kw_only=True):
    """The daemon goes down. `suspend`: workers save their state and end; otherwise they go on."""

    suspend: bool = True
