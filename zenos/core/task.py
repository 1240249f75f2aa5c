"""Tasks: what a user submits and the kernel schedules.

A Task is an immutable record: each change makes a new one, so what the store writes, what readers
see and what the kernel goes on with can never be the same object half changed.
"""

from __future__ import annotations

import enum
import math
from typing import Annotated, Any, Final, Literal

import msgspec

from zenos.core import limits
from zenos.core.dependencies import check_after
from zenos.core.errors import InvalidError, TransitionError
from zenos.core.fields import about, blaming, check_bounds, named, seconds
from zenos.core.gangs import check_gang
from zenos.core.names import check_labels, check_name, check_new_name
from zenos.core.predictions import Source
from zenos.core.resources import Request, Resources
from zenos.core.specs import (
    CallSpec,
    CreateSpec,
    DeploymentSpec,
    ProgramSpec,
    ServeSpec,
    TrainSpec,
    Work,
)
from zenos.core.wording import FieldError


class Kind(enum.StrEnum):
    """What a task does."""

    TRAIN = "train"
    SERVE = "serve"
    BATCH = "batch"
    PREPROCESS = "preprocess"
    OPTIMISE = "optimise"
    RUN = "run"
    CALL = "call"


class State(enum.StrEnum):
    """Where a task is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUSPENDING = "suspending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


ENDED: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.LOST})
# States in which a task owns an allocation (a paused one keeps its memory).
HOLDING: Final = frozenset(
    {State.STARTING, State.RUNNING, State.PAUSING, State.PAUSED, State.SUSPENDING}
)

# Every legal transition. `→ queued` from a holding state is a restart or a suspension's end.
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.QUEUED}) | ENDED,
    State.RUNNING: frozenset({State.PAUSING, State.SUSPENDING, State.QUEUED}) | ENDED,
    State.PAUSING: (
        frozenset({State.PAUSED, State.RUNNING, State.SUSPENDING, State.QUEUED}) | ENDED
    ),
    State.PAUSED: frozenset({State.RUNNING, State.SUSPENDING, State.QUEUED}) | ENDED,
    State.SUSPENDING: frozenset({State.QUEUED}) | ENDED,
    **dict.fromkeys(ENDED, frozenset[State]()),
}


def check_transition(old: State, new: State) -> None:
    """Raises TransitionError unless `old → new` stands in the table."""
    if new not in TRANSITIONS[old]:
        raise TransitionError(f"cannot go from {old} to {new}")


class Principal(msgspec.Struct, frozen=True, gc=False):
    """On whose behalf. The one without a word is the operator, who has the token of the home."""

    user: str = "local"
    project: str = "default"

    @property
    def is_operator(self) -> bool:
        """Whether it may do everything; no token of a user says these two (core/tokens.py)."""
        return self.user == "local" and self.project == "default"

    def may_change(self, owner: Principal) -> bool:
        """Whether it may change what is `owner`'s: of one's own project, and the operator all."""
        return self.project == owner.project or self.is_operator


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task as submitted."""

    work: Annotated[Work, about("What is done; its `type` tells which of them it is.")]
    name: Annotated[str, named("What people call it; not unique.")] = ""
    resources: Annotated[Resources, about("What it wants, and may use at most.")] = Resources(
        cpu=1000, memory=512 * limits.MIB
    )
    priority: Annotated[
        int, about("The higher, the sooner.", limits.PRIORITY_MIN, limits.PRIORITY_MAX)
    ] = limits.PRIORITY_NORMAL
    expected_s: Annotated[
        float | None, seconds("The user's own estimate of the run time, in seconds; above 0.")
    ] = None
    time_limit_s: Annotated[
        float | None, seconds("Seconds of running after which it is ended; above 0.")
    ] = None
    retries: Annotated[
        int,
        about(
            "How often a failed or lost run is started again. A training goes on from its"
            " checkpoint after a fault in any case.",
            0,
            limits.RETRIES_MAX,
        ),
    ] = 0
    after: Annotated[
        tuple[str, ...],
        about(
            "Tasks, by id or name, that must have succeeded before it starts; `any:` before one:"
            " must have ended, however they did."
        ),
    ] = ()
    start_at: Annotated[
        float | None, about("Not before that time, in seconds since 1970 (UTC).")
    ] = None
    deadline: Annotated[
        float | None,
        about(
            "When it should have ended, in seconds since 1970 (UTC): as that nears, it goes first."
        ),
    ] = None
    node: Annotated[str, named("The only node on which it may run; by default any.")] = ""
    labels: Annotated[dict[str, str], about("Labels that its node must have.")] = {}
    exclusive: Annotated[
        bool, about("It gets all that its node has, and nobody else is there meanwhile.")
    ] = False

    @property
    def request(self) -> Resources:
        """What it waits for, and where: tasks with the same fit in the same places.

        Of an elastic training what its fewest workers need; it has more where there is room.
        """
        least = self.of_workers(self.workers) if self.is_elastic else self.resources
        if not self.node and not self.labels:
            return least
        return Request(
            cpu=least.cpu,
            gpu=least.gpu,
            memory=least.memory,
            gpu_memory=least.gpu_memory,
            node=self.node,
            labels=tuple(sorted(f"{key}={value}" for key, value in self.labels.items())),
        )

    @property
    def workers(self) -> int:
        """Of how many equal parts it is made, at least, that need not lie on one node."""
        if not isinstance(self.work, TrainSpec):
            return 1
        return (self.work.workers_min or 1) if self.work.is_elastic else self.work.workers

    @property
    def workers_max(self) -> int:
        """Of how many at most."""
        return self.work.workers if isinstance(self.work, TrainSpec) else 1

    @property
    def is_elastic(self) -> bool:
        """Whether it may be of more workers or fewer, as there is room."""
        return isinstance(self.work, TrainSpec) and self.work.is_elastic

    def of_workers(self, count: int) -> Resources:
        """What so many of its workers need; `resources` is for all."""
        whole, of = self.resources, self.workers_max
        return Resources(
            cpu=whole.cpu * count // of,
            gpu=whole.gpu * count // of,
            memory=whole.memory * count // of,
            gpu_memory=whole.gpu_memory * count // of,
        )

    @property
    def kind(self) -> Kind:
        """Told from the work."""
        match self.work:
            case ProgramSpec():
                return Kind.RUN
            case TrainSpec():
                return Kind.TRAIN
            case ServeSpec():
                return Kind.SERVE
            case CreateSpec():
                return Kind.PREPROCESS
            case CallSpec():
                return Kind.CALL

    def check(self) -> None:
        """Raises InvalidError for anything that can be seen to be wrong without a node."""
        self.work.check()
        if self.name:
            with blaming("name"):
                check_new_name(self.name, "task name")
        self.resources.check()
        if isinstance(self.work, TrainSpec) and self.work.workers > 1:
            check_gang(self.work, self.resources)
        check_bounds(self)
        with blaming("after"):
            check_after(self.after)
        self._check_times()
        with blaming("node"):
            if self.node:
                check_name(self.node, "node name")
        with blaming("labels"):
            check_labels(self.labels)
        if self.exclusive and self.is_elastic:
            raise InvalidError(
                "cannot have a node for itself and change its number of workers: leave exclusive"
                " or workers_min out"
            )
        for what, field in (("time", "expected_s"), ("time limit", "time_limit_s")):
            given = getattr(self, field)
            if given is not None and not (
                math.isfinite(given) and 0 < given <= limits.EXPECTED_S_MAX
            ):
                raise FieldError(
                    f"cannot use a {what} of {given:g} s: it is above 0 and at most ten years",
                    field,
                )

    def _check_times(self) -> None:
        for what, field in (("start time", "start_at"), ("deadline", "deadline")):
            at = getattr(self, field)
            if at is not None and not (math.isfinite(at) and 0 <= at <= limits.TIME_S_MAX):
                raise FieldError(f"cannot use the {what} {at!r}: give seconds since 1970", field)
        if self.deadline is not None and self.deadline <= (self.start_at or 0.0):
            raise FieldError(
                "cannot end before it starts: give a deadline after start_at", "deadline"
            )


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """What a task holds on one node.

    shares: milli-GPUs by device index; one entry of at most 1000 each. others: what a gang holds on
    further nodes, each of them without others of its own. workers: for how many of an elastic
    training it is; 0: for all there are.
    """

    node: str
    resources: Resources
    shares: dict[int, int] = {}
    others: tuple[Allocation, ...] = ()
    workers: int = 0

    @property
    def parts(self) -> tuple[Allocation, ...]:
        """What is held, node by node."""
        return (self, *self.others) if self.others else (self,)

    def on(self, node: str) -> Allocation | None:
        """What of it is held on that node."""
        return next((part for part in self.parts if part.node == node), None)

    @property
    def total(self) -> Resources:
        """What is held on all nodes together."""
        return sum((part.resources for part in self.others), self.resources)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one generation's worker ended.

    memory_peak: bytes; cpu_s: CPU seconds; error: begins with "cannot" when set; code: the kind of
    error that the worker wrote down, see errors.py.
    """

    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    code: str | None = None
    oom: bool = False
    memory_peak: int | None = None
    cpu_s: float | None = None
    log_tail: str = ""
    result: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the worker ended by itself with exit code 0."""
        return self.exit_code == 0 and self.error is None

    def describe(self) -> str:
        """One line for people."""
        if self.error:
            return self.error
        if self.signal is not None:
            return f"cannot finish: the worker was ended by signal {self.signal}"
        if self.exit_code:
            return f"cannot finish: the program ended with exit code {self.exit_code}"
        return "finished"


class ArrayPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task stands in its array.

    limit: how many of that run at once. own: its spec is not the array's any more.
    """

    id: str
    index: int
    count: int
    limit: int | None = None
    own: bool = False


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task, as stored. Times are kernel time in seconds (see core/clock.py).

    generation: counts the workers it has had; at most one is alive. attempts: runs that ended in a
    failure or a fault, of a training those since it has come further. saved_step: the step of its
    newest checkpoint at its last fault. start_failures: how often in a row no worker came to run.
    not_before: a restart waits until then. ran_s: run time up to `running`, or to the end of the
    last run or the last pause. waited_s: how long all generations that have started had waited.
    ready: a serving worker has loaded its model. held: why it doesn't go on by itself (`pause`,
    `suspend`, `numerics`), until somebody resumes it. yield_by: until when a pause must be
    confirmed. resuming: since when a paused one waits for its CPU. predicted_s, predicted_by: how
    long all its runs were expected to take together, as it first started, and by whom. after: as in
    its spec, by ids. warning: what speaks against it, as it was submitted.
    """

    id: str
    spec: TaskSpec
    principal: Principal
    submitted: float
    kind: Kind
    state: State = State.QUEUED
    generation: int = 0
    attempts: int = 0
    start_failures: int = 0
    saved_step: int = 0
    queued: float = 0.0
    not_before: float = 0.0
    started: float | None = None
    running: float | None = None
    ended: float | None = None
    ran_s: float = 0.0
    waited_s: float = 0.0
    ready: bool = False
    allocation: Allocation | None = None
    stopping: str | None = None
    stop_at: float | None = None
    held: Literal["pause", "suspend", "numerics"] | None = None
    yield_by: float | None = None
    resuming: float | None = None
    predicted_s: float | None = None
    predicted_by: Source | None = None
    outcome: Outcome | None = None
    after: tuple[str, ...] = ()
    array: ArrayPlace | None = None
    warning: str = ""
    format: int = 1

    @property
    def name(self) -> str:
        """The user's name for it, or its id."""
        return self.label if self.array is not None else self.spec.name or self.id

    @property
    def label(self) -> str:
        """What it is listed and found under: its name, or the model that it makes or serves.

        A task of an array: `NAME[INDEX]`.
        """
        if self.array is not None:
            return f"{self.spec.name or self.array.id}[{self.array.index}]"
        if self.spec.name:
            return self.spec.name
        match self.spec.work:
            case TrainSpec(model=model) | ServeSpec(model=model) | CreateSpec(name=model):
                return model
        return ""

    @property
    def workers(self) -> int:
        """How many workers it has been given room for; all where it is not elastic."""
        held = self.allocation
        return (held.workers if held is not None else 0) or self.spec.workers_max

    @property
    def granted(self) -> Resources:
        """What it holds while it runs, and waits for to go on when it is paused."""
        if not self.spec.is_elastic:
            return self.spec.resources
        return self.spec.of_workers(self.workers)

    @property
    def can_save(self) -> bool:
        """Whether its worker saves what it has done when it is told to, and goes on from there."""
        work = self.spec.work
        return isinstance(work, TrainSpec) or (
            isinstance(work, ProgramSpec) and work.yields != "none"
        )

    @property
    def is_ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in ENDED


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a task's history; `seq` counts over the whole system.

    principal: who asked for it; None where the kernel itself decided.
    """

    seq: int
    at: float
    task: str
    type: str
    state: State
    generation: int
    detail: str = ""
    principal: Principal | None = None


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A model being served. `used`: kernel time of the last request that the kernel heard of.

    version: what `spec.model` meant when it was deployed; all replicas hold that, until it is
    deployed again, a new one is published, or it is rolled back. memory: bytes for each replica
    where the spec doesn't say. build: of the version, all but its weights. turn: counts the changes
    that replicas make while they serve. source: the training whose memory has that version.
    pinned: rolled back; what is published is not followed until it is deployed again. warning: what
    speaks against it, as it was deployed.
    """

    name: str
    spec: DeploymentSpec
    version: str = ""
    memory: int = 0
    principal: Principal
    created: float
    used: float
    replicas: list[str] = []
    failures: int = 0
    error: str | None = None
    stopping: bool = False
    # Made by a request rather than by `zenos serve`: forgotten once it has been idle.
    implicit: bool = False
    build: str = ""
    turn: int = 0
    source: str = ""
    pinned: bool = False
    warning: str = ""
    format: int = 1


class IdempotencyKey(msgspec.Struct, frozen=True, kw_only=True):
    """That a principal's request with this key was answered with that task or deployment."""

    user: str
    key: str
    fingerprint: str
    subject: str
    at: float


class Once(msgspec.Struct, frozen=True, kw_only=True):
    """That a request is to be carried out once. key: the caller's; asked: a digest of it."""

    key: str
    asked: str


# What is published: `GET /api/schemas/NAME`, `zenos schema NAME` (but train_schema() in
# zenos/client/build.py for the files of `zenos train`), docs/reference/specs.md.
SCHEMAS: Final[dict[str, Any]] = {
    "train": TrainSpec,
    "create": CreateSpec,
    "task": TaskSpec,
    "deployment": DeploymentSpec,
}
