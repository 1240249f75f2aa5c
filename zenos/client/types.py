"""What the daemon answers, beside the structs of core. Fields of a newer daemon are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

from zenos.core.arrays import Array
from zenos.core.node import Node
from zenos.core.predictions import Prediction
from zenos.core.quotas import Quota
from zenos.core.resources import Resources
from zenos.core.task import ENDED, State, Task, TaskEvent
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Progress


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task and its newest progress (None before the first report).

    waits: of a queued one, what it waits for, in words. threads: how many threads of its pools run
    or wait. prediction: how long it is to run, where the task itself was asked for.
    """

    task: Task
    progress: Progress | None = None
    waits: str | None = None
    threads: int = 0
    prediction: Prediction | None = None


class ArrayView(msgspec.Struct, frozen=True, kw_only=True):
    """An array, and how many of its tasks are in each state.

    waits: of one of which no task runs, what the next of them waits for, in words.
    """

    array: Array
    states: dict[State, int] = {}
    waits: str | None = None

    @property
    def ended(self) -> int:
        """How many of its tasks have ended."""
        return sum(count for state, count in self.states.items() if state in ENDED)


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A task's progress as it happens; not stored."""

    task: str
    progress: Progress


class TaskThreads(msgspec.Struct, frozen=True, kw_only=True):
    """What the threads of a task's pools do, by process, as they were last heard of."""

    task: str
    processes: list[ProcessThreads]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The latest events of a task, in their order; left_out: how many earlier ones are not here."""

    task: str
    events: list[TaskEvent]
    left_out: int = 0


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node and what tasks hold of it."""

    node: Node
    used: Resources


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """A user (`user/NAME`) or a project (`project/NAME`). gpu_hours: in the present window.

    tasks: that wait or run, without replicas. had: its part of all use by those who have tasks,
    older use counting less; due: the part that it is due.
    """

    account: str
    tasks: int
    held: Resources
    gpu_hours: float
    had: float
    due: float
    quota: Quota | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon. uptime_s: seconds; tasks: how many by state; store: `ok` or `failing`.

    disk_free: bytes, of the disk of the home; None where that can't be told.
    going_down: `suspend`, `drain` or `leave` once it was told to; it takes and starts nothing new.
    user, project: as whom one asks; operator: whether with the token of the home.
    """

    pid: int
    version: str
    uptime_s: float
    home: str
    tasks: dict[State, int] = {}
    nodes: list[NodeView] = []
    accounts: list[AccountView] = []
    zygote_ready: bool | None = None
    store: str | None = None
    disk_free: int | None = None
    going_down: str | None = None
    user: str = ""
    project: str = ""
    operator: bool = True


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model version: its SHA-256 and its bytes."""

    digest: str
    size: int


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from. parent: `name:version`; data_hash: of the corpus.

    project: of those who may change it; None where nobody has written that down. left_out: what of
    an imported directory is not among its files, and why.
    """

    parent: str | None = None
    data_hash: str | None = None
    task: str | None = None
    code_version: str | None = None
    project: str | None = None
    left_out: dict[str, str] = {}


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model in the registry.

    created: seconds since 1970; parameters: how many; bytes: on disk; curve: the loss over the
    training run, `[step, loss, held-out loss or null]`.
    """

    name: str
    version: int
    created: float = 0.0
    family: str = ""
    arch: str = ""
    parameters: int = 0
    bytes: int = 0
    files: dict[str, FileInfo] = {}
    lineage: Lineage = Lineage()
    metrics: dict[str, Any] = {}
    config: dict[str, Any] = {}
    curve: list[tuple[float, float | None, float | None]] = []
    has_chat_template: bool = False
    aliases: list[str] = []

    @property
    def ref(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    def _repr_html_(self) -> str:
        from zenos.client.display import model_html

        return model_html(self)


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """One token with its natural-log probability and the likeliest others, by their texts.

    logprob: None for the first token of an echoed prompt.
    """

    token: str
    logprob: float | None
    top: dict[str, float] = {}


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of a whole answer."""

    prompt_tokens: int
    completion_tokens: int


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer, as it comes: text of choice `index`, never cut inside a character.

    finish: `stop` or `length` on the last piece of a choice. usage: on the last piece of all.
    """

    index: int = 0
    text: str = ""
    logprobs: list[TokenLogprob] = []
    finish: str | None = None
    usage: Usage | None = None


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A model version is gone; freed_bytes: of blobs that no other version has."""

    removed: str
    freed_bytes: int
