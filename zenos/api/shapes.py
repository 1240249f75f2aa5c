"""Bodies of zenos' own paths, beside the structs of core: JSON as msgspec encodes them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from zenos.core import limits
from zenos.core.arrays import Array
from zenos.core.audit import AuditRow
from zenos.core.fields import named, within
from zenos.core.node import Node
from zenos.core.predictions import Prediction
from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.task import Deployment, State, Task, TaskEvent
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Progress
from zenos.models.records import ModelVersion

Name = Annotated[str, named(least=1)]
Ref = Annotated[str, within(minLength=1, maxLength=limits.REF_CHARS_MAX)]
Path = Annotated[str, within(minLength=1, maxLength=limits.PATH_CHARS_MAX, pattern="^/")]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what clients send."""


class RollbackBody(Body, frozen=True, kw_only=True):
    """Where a deployment is to go back to. to: a version's number; None: the one before."""

    to: Annotated[int, within(minimum=1, maximum=limits.VERSION_MAX)] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what zenos answers."""


class Health(Answer, frozen=True, kw_only=True):
    """That the daemon answers."""

    status: Literal["ok"] = "ok"
    version: str


class TaskView(Answer, frozen=True, kw_only=True):
    """A task and its newest progress; of a queued one, what it waits for.

    threads: how many threads of its pools run or wait. prediction: how long it is to run, where one
    task is asked for.
    """

    task: Task
    progress: Progress | None = None
    waits: str | None = None
    threads: int = 0
    prediction: Prediction | None = None


class ArrayView(Answer, frozen=True, kw_only=True):
    """An array, and how many of its tasks are in each state, forgotten ones included.

    waits: of one of which no task runs, what the next of them waits for.
    """

    array: Array
    states: dict[State, int]
    waits: str | None = None


class TaskThreads(Answer, frozen=True, kw_only=True):
    """What the threads of a task do, by process, as they were last heard of."""

    task: str
    processes: list[ProcessThreads]


class History(Answer, frozen=True, kw_only=True):
    """The latest events of a task, in their order; left_out: how many earlier ones are not here."""

    task: str
    events: list[TaskEvent]
    left_out: int = 0


class TaskList(Answer, frozen=True, kw_only=True):
    """Tasks that have not ended, then ended ones; the newest first in each.

    arrays: with `collapse`, those whose tasks are left out.
    """

    tasks: list[TaskView]
    arrays: list[ArrayView] = []


class NodeView(Answer, frozen=True, kw_only=True):
    """A node and what tasks hold of it."""

    node: Node
    used: Resources


class NodeList(Answer, frozen=True, kw_only=True):
    """All nodes."""

    nodes: list[NodeView]


class AccountView(Answer, frozen=True, kw_only=True):
    """What a user (`user/NAME`) or a project (`project/NAME`) has, has had, and may have.

    tasks: that wait or run, without replicas. gpu_hours: in the present window. had: of all use by
    those who have tasks, its part, older use counting less; due: the part that it is due.
    """

    account: str
    tasks: int
    held: Resources
    gpu_hours: float
    had: float
    due: float
    quota: Quota | None = None


class Status(Answer, frozen=True, kw_only=True):
    """The daemon: uptime_s in seconds; tasks: how many by state. More fields may follow.

    disk_free: bytes, of the disk of the home. going_down: how, once it was told to; nothing new is
    taken or started. accounts: users and projects that have tasks. user, project: as whom the one
    who asks acts; operator: whether with the token of the home.
    """

    pid: int
    version: str
    uptime_s: float
    home: str
    disk_free: int | None = None
    going_down: Literal["suspend", "drain", "leave"] | None = None
    tasks: dict[str, int]
    nodes: list[NodeView]
    accounts: list[AccountView] = []
    user: str = ""
    project: str = ""
    operator: bool = False


class DeploymentList(Answer, frozen=True, kw_only=True):
    """All deployments."""

    deployments: list[Deployment]


class ModelList(Answer, frozen=True, kw_only=True):
    """All versions of all models, and what is wrong with those that cannot be read, by
    `name:version`."""

    models: list[ModelVersion]
    damaged: dict[str, str] = {}


class ModelRemoved(Answer, frozen=True, kw_only=True):
    """A model version is gone; its blobs were freed where no other version has them."""

    removed: str
    freed_bytes: int


class Exported(Answer, frozen=True, kw_only=True):
    """Where the directory was written."""

    path: str


class ResumeBody(Body, frozen=True, kw_only=True):
    """How a task goes on. inexact: a training may, with other numerics than it began with."""

    inexact: bool = False


class NiceBody(Body, frozen=True, kw_only=True):
    """Another priority: 0 to 100, higher goes first."""

    priority: Annotated[int, within(minimum=limits.PRIORITY_MIN, maximum=limits.PRIORITY_MAX)]


class AliasBody(Body, frozen=True, kw_only=True):
    """Let `alias` name this version."""

    alias: Name
    version: Annotated[int, within(minimum=1, maximum=limits.VERSION_MAX)]


class CopyBody(Body, frozen=True, kw_only=True):
    """Register the version that `source` names under the name `target` too."""

    source: Ref
    target: Name


class ImportBody(Body, frozen=True, kw_only=True):
    """Register a Hugging Face directory. path: absolute, on the daemon's machine."""

    path: Path
    name: Name


class ExportBody(Body, frozen=True, kw_only=True):
    """Write a Hugging Face directory. path: absolute, on the daemon's machine, not there yet."""

    ref: Ref
    path: Path


class ShutdownBody(Body, frozen=True, kw_only=True):
    """How the daemon ends.

    suspend: workers save their state and end; drain: they finish first; leave: they go on without.
    """

    mode: Literal["suspend", "drain", "leave"] = "suspend"


class ShutdownAnswer(Answer, frozen=True, kw_only=True):
    """The daemon was told to go down."""

    mode: Literal["suspend", "drain", "leave"]


class TokenBody(Body, frozen=True, kw_only=True):
    """A token that is to be made. project: by default one that is called as the user.

    expires_s: seconds until it lets nobody in any more; None: never.
    """

    name: Name
    user: Name
    project: Name | None = None
    expires_s: (
        Annotated[float, within(exclusiveMinimum=0, maximum=limits.EXPECTED_S_MAX)] | None
    ) = None


class TokenView(Answer, frozen=True, kw_only=True):
    """A token of a user. created, expires: seconds since 1970; None: it never expires."""

    name: str
    user: str
    project: str
    created: float
    expires: float | None = None
    expired: bool = False


class TokenMade(TokenView, frozen=True, kw_only=True):
    """A new one, with the token itself: nobody can say it again."""

    token: str


class TokenList(Answer, frozen=True, kw_only=True):
    """All tokens of users, by name."""

    tokens: list[TokenView]


class AuditList(Answer, frozen=True, kw_only=True):
    """Who did what, the newest first."""

    rows: list[AuditRow]


class ErrorDetail(Answer, frozen=True, kw_only=True):
    """code: zenos' word for the kind of error; param: the field that was wrong, where known."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(Answer, frozen=True, kw_only=True):
    """An error in the shape that OpenAI's clients know."""

    error: ErrorDetail
