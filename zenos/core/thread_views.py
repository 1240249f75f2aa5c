"""Threads as they are shown: what a pool says of itself, and what of that comes to the daemon.

Plain records. Who takes them from somebody else has them `bounded` first.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
from msgspec.structs import replace

from zenos.core import limits

LaneState = Literal["opening", "idle", "busy", "stopping"]
# prefill: a sequence of a replica whose prompt is being run; it decodes once it is `running`.
ThreadState = Literal["queued", "delayed", "prefill", "running"]
NUMBER_MAX = 2**53 - 1  # the largest that JSON's readers have exactly


class ThreadView(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that hasn't ended.

    lane: which it runs on. attempt: which one it is, from 1; 0 before the first. progress: 0 to 1.
    done, total, unit: the same in steps or tokens, where it has such; total 0 where it isn't known.
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
    done: int = 0
    total: int = 0
    unit: str = ""
    cpu_s: float = 0.0
    waited_s: float = 0.0
    ran_s: float = 0.0

    def bounded(self) -> ThreadView:
        """The same with a name that can be shown, and numbers within their ranges."""
        return replace(
            self,
            id=_count(self.id),
            name=shown(self.name),
            priority=min(max(self.priority, limits.PRIORITY_MIN), limits.PRIORITY_MAX),
            attempt=_count(self.attempt),
            items=_count(self.items),
            lane=None if self.lane is None else _count(self.lane),
            progress=min(_number(self.progress), 1.0),
            done=_count(self.done),
            total=_count(self.total),
            unit=shown(self.unit),
            cpu_s=_number(self.cpu_s),
            waited_s=_number(self.waited_s),
            ran_s=_number(self.ran_s),
        )

    @property
    def runs(self) -> bool:
        """Whether it is at work, and doesn't wait."""
        return self.state in ("running", "prefill")

    def later(self, seconds: float) -> ThreadView:
        """The same so many seconds later, if nothing else has changed."""
        if self.runs:
            return replace(self, ran_s=self.ran_s + seconds)
        return replace(self, waited_s=self.waited_s + seconds)


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """A lane. pid: of the process it is in. cpu_s: CPU time since it began, in seconds."""

    id: int
    state: LaneState
    pid: int
    cpu_s: float

    def bounded(self) -> LaneView:
        """The same with numbers within their ranges."""
        return replace(self, id=_count(self.id), pid=_count(self.pid), cpu_s=_number(self.cpu_s))


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

    def bounded(self, lanes_max: int, threads_max: int) -> PoolView:
        """The same with at most so many lanes and threads, each of them bounded."""
        return replace(
            self,
            name=shown(self.name),
            kind=shown(self.kind),
            policy=shown(self.policy),
            wanted=_count(self.wanted),
            queued=_count(self.queued),
            running=_count(self.running),
            submitted=_count(self.submitted),
            succeeded=_count(self.succeeded),
            failed=_count(self.failed),
            cancelled=_count(self.cancelled),
            retried=_count(self.retried),
            lanes_died=_count(self.lanes_died),
            lanes=[lane.bounded() for lane in self.lanes[:lanes_max]],
            threads=[thread.bounded() for thread in self.threads[:threads_max]],
        )


class ProcessThreads(msgspec.Struct, frozen=True, kw_only=True):
    """The pools of one process of a task. pid: as the process itself sees it."""

    pid: int
    pools: list[PoolView]

    @property
    def count(self) -> int:
        """Threads that run or wait, those that aren't shown among them."""
        return sum(pool.running + pool.queued for pool in self.pools)

    def bounded(self) -> ProcessThreads:
        """The same with at most POOLS_REPORTED_MAX pools, and THREADS_REPORTED_MAX of all their
        lanes and of all their threads.
        """
        lanes_left = threads_left = limits.THREADS_REPORTED_MAX
        pools: list[PoolView] = []
        for pool in self.pools[: limits.POOLS_REPORTED_MAX]:
            made = pool.bounded(lanes_left, threads_left)
            lanes_left -= len(made.lanes)
            threads_left -= len(made.threads)
            pools.append(made)
        return replace(self, pid=_count(self.pid), pools=pools)

    def later(self, seconds: float) -> ProcessThreads:
        """The same so many seconds later, if nothing else has changed."""
        pools = [replace(p, threads=[t.later(seconds) for t in p.threads]) for p in self.pools]
        return replace(self, pools=pools)

    def still(self) -> ProcessThreads:
        """The same without what changes by itself as time passes: how long threads wait and run."""
        pools = [
            replace(p, threads=[replace(t, waited_s=0.0, ran_s=0.0) for t in p.threads])
            for p in self.pools
        ]
        return replace(self, pools=pools)


def shown(text: str) -> str:
    """A text as it may be shown: no control characters, no lone surrogates, not too long."""
    cut = text[: limits.NAME_SHOWN_CHARS_MAX]
    return "".join(one if one.isprintable() else "\ufffd" for one in cut)


def _count(value: int) -> int:
    return min(max(value, 0), NUMBER_MAX)


def _number(value: float) -> float:
    """Milliseconds are enough, and keep reports small."""
    return round(min(max(value, 0.0), float(NUMBER_MAX)), 3) if math.isfinite(value) else 0.0
