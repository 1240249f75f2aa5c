"""What lies ahead: why a task waits or is where it is, and the schedule as it is expected.

Times are kernel time, seconds since 1970 (see core/clock.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from zenos.core.arrays import Array
from zenos.core.config import Config
from zenos.core.node import Node
from zenos.core.predictions import Source
from zenos.core.quotas import Usage
from zenos.core.resources import Resources
from zenos.core.task import Deployment, Kind, State, Task

# -- what the kernel gives out to be looked at


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is held back on a node for a task; for a gang one of these for each of its nodes.

    victims: who gives way to it, with their generations; coming: what they hold still.
    """

    task: str
    node: str
    request: Resources
    victims: list[tuple[str, int]] = []
    coming: Resources = Resources()


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the kernel's state, from which the kernel can be built again and tried out.

    tasks: what holds something, and of what waits the first ones. expected_s: seconds of their
    whole runs; sources: whose word that is. waiting: how many wait in all; left_out:
    how many of those are not here. used_at, needed_at, in_flight, unanswered, asked_at,
    unloaded: of deployments. ready_at: of replicas. usage: by account.
    """

    now: float
    next_task: int
    config: Config
    tasks: list[Task]
    expected_s: dict[str, float]
    sources: dict[str, Source]
    nodes: list[Node]
    arrays: dict[str, Array] = {}
    deployments: list[Deployment] = []
    draining: str | None = None
    reservation: list[Held] = []
    claims: list[Held] = []
    resuming: dict[str, Resources] = {}
    overdue_running: list[str] = []
    given_way: dict[str, list[float]] = {}
    in_flight: dict[str, int] = {}
    used_at: dict[str, float] = {}
    needed_at: dict[str, list[float]] = {}
    unanswered: dict[str, int] = {}
    asked_at: dict[str, float] = {}
    unloaded: list[str] = []
    ready_at: dict[str, float] = {}
    usage: dict[str, Usage] = {}
    waiting: int = 0
    left_out: int = 0


# -- why


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What a waiting task is ordered by: `total = priority + raised + ageing · p -
    penalty - cost`.

    waited_s: all its waiting. expected_s: what it has still to run, times the load of the machine,
    `1 + contention`. demoted: it has had its share of service, and stands behind its equals that
    have not; that is the penalty. raised: by how much a deadline raises it. cost: what it costs
    that the account `owner` (a user or a project) has had more than its part: `had` of all use by
    those who have tasks, where `due` is its part.
    """

    priority: int
    ageing: float
    p: float
    waited_s: float
    expected_s: float
    contention: float
    demoted: bool
    penalty: float
    raised: int = 0
    cost: float = 0.0
    owner: str = ""
    had: float = 0.0
    due: float = 0.0
    total: float


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A task that holds some of what another lacks. until: when it is expected to end."""

    task: str
    label: str
    priority: int
    resources: Resources
    until: float | None = None
    stopping: str | None = None


class Lack(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that could hold the task has not enough of.

    lacks: beyond what is free and not held back for others. in_pieces: it has enough in sum, but
    on no device. held_back: what it keeps for others. outside: what is there for no task, since
    processes outside zenos use so much. holders: who has it, at most ten.
    """

    node: str
    lacks: Resources
    in_pieces: bool = False
    held_back: Resources = Resources()
    outside: Resources = Resources()
    holders: list[Holder] = []


class HeldBack(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is kept for a task. kind: of the overdue one that stands first, of one that
    others give way to, or of paused ones that are to go on (`task` is empty)."""

    kind: Literal["reservation", "claim", "resuming"]
    task: str
    node: str
    resources: Resources
    victims: list[str] = []


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """Something that would let a task start now; the kernel was asked, on a copy of its state.

    kind: resume it; give it `priority`; the end of `tasks`, which hold what it lacks on `node`, or
    without one of a quota; `resources` more on `node`; to cancel those `tasks` for which something
    is held back; to let things start on `node` again. yields: who gives way to it then, and has to
    be saved first.
    """

    kind: Literal["resume", "priority", "end", "node", "cancel", "uncordon"]
    text: str
    tasks: list[str] = []
    priority: int | None = None
    node: str = ""
    resources: Resources = Resources()
    yields: list[str] = []


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is where it is, and what could send it away.

    since: of this run; ends_at: when it is expected to end, if nothing comes between. others: nodes
    that could hold it, in the order in which they are tried. may_yield: it can be suspended;
    residence_until: not before. guarded: it gives way to no equal, and to a higher priority only
    after `slice_residence_s`. given_way: how often in the last hour.
    """

    node: str
    resources: Resources
    devices: list[int] = []
    since: float | None = None
    ran_s: float = 0.0
    ends_at: float | None = None
    started_overdue: bool = False
    may_yield: bool = False
    residence_until: float | None = None
    guarded: bool = False
    demoted: bool = False
    given_way: int = 0
    others: list[str] = []


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task waits, runs where it runs, or ended as it did.

    reason: in a sentence. until: when that is over by itself, if it is. ahead: how many waiting
    tasks are tried before it, of `waiting`; exact: none was left out of that. starts_at: when it is
    expected to start or to go on, by the forecast of `zenos plan`; None where the forecast doesn't
    see it, and starts_note says why. because: the newest line of its history that tells.
    """

    task: str
    label: str
    state: State
    at: float
    reason: str
    until: float | None = None
    ahead: int | None = None
    waiting: int = 0
    exact: bool = True
    score: Score | None = None
    overdue: bool = False
    overdue_at: float | None = None
    late_at: float | None = None
    expected_s: float | None = None
    expected_by: Source | None = None
    starts_at: float | None = None
    starts_note: str = ""
    lacks: list[Lack] = []
    held_back: list[HeldBack] = []
    remedies: list[Remedy] = []
    stay: Stay | None = None
    because: str = ""
    because_at: float | None = None


# -- the plan


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which a task is expected to run. ends: how it does; `open`: after the plan's end.

    begun: it runs now; `start` is then in the past.
    """

    task: str
    label: str
    kind: Kind
    user: str
    priority: int
    node: str
    resources: Resources
    start: float
    end: float
    ends: Literal["finished", "gives way", "paused", "stopped", "open"]
    begun: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule ahead, a forecast: the kernel's own code run on with the expected times.

    until: how far it was looked. segments: by node and start. never: who waits and doesn't start
    until then. left_out: how many waiting tasks were not looked at. complete: it was looked to the
    end of all work. notes: what is not in it, and why it ends.
    """

    at: float
    until: float
    segments: list[Segment]
    nodes: list[Node]
    never: list[str] = []
    left_out: int = 0
    complete: bool = True
    notes: list[str] = []
