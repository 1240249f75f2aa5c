"""What a pool shows of itself. Plain records, so that they can be sent."""

from __future__ import annotations

import msgspec

from zenos.threads.machine import LaneState, ThreadState


class ThreadView(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that hasn't ended.

    lane: which it runs on. attempt: which one it is, from 1; 0 before the first. progress: 0 to 1.
    cpu_s: CPU time of this attempt, in seconds; waited_s: since it was submitted, until now or
    until this attempt began; ran_s: since this attempt began.
    """

    id: int
    name: str
    state: ThreadState
    priority: int
    attempt: int
    items: int
    lane: int | None = None
    progress: float = 0.0
    cpu_s: float = 0.0
    waited_s: float = 0.0
    ran_s: float = 0.0


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """A lane. pid: of the process it is in. cpu_s: CPU time since it began, in seconds."""

    id: int
    state: LaneState
    pid: int
    cpu_s: float


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool: its lanes, its threads (those that run first), and what became of earlier ones."""

    name: str
    kind: str
    policy: str
    wanted: int
    queued: int
    running: int
    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    retried: int
    lanes_died: int
    lanes: list[LaneView]
    threads: list[ThreadView]
