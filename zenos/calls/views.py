"""Lanes and calls of a host as people see them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from zenos.calls import wire
from zenos.calls.lanes import Lane, Work
from zenos.core import limits
from zenos.core.thread_views import LaneView, PoolView, ThreadView


class Counts:
    """Of calls that have ended, or begun again, and of lanes that have died."""

    def __init__(self) -> None:
        self.succeeded = self.failed = self.cancelled = self.retried = self.died = 0

    def end(self, outcome: int) -> None:
        """A call has ended."""
        if outcome == wire.DONE:
            self.succeeded += 1
        elif outcome == wire.CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1


def pool(
    lanes: Mapping[int, Lane],
    works: Mapping[Any, Work],
    counts: Counts,
    wanted: int,
    threads_max: int,
) -> PoolView:
    """A host. wanted: how many lanes there are to be."""
    now = time.monotonic()
    there = list(lanes.values())
    heads = [(one, head) for one in there if (head := one.head) is not None]
    running = {id(head) for _, head in heads}
    waiting = [w for w in list(works.values()) if id(w) not in running and not w.is_over]
    calls = [call(head, now, one) for one, head in heads]
    calls += [call(work, now, None) for work in waiting[: threads_max - len(calls)]]
    return PoolView(
        name="calls",
        kind="process",
        policy="fifo",
        wanted=wanted,
        queued=len(waiting),
        running=len(heads),
        submitted=len(works) + counts.succeeded + counts.failed + counts.cancelled,
        succeeded=counts.succeeded,
        failed=counts.failed,
        cancelled=counts.cancelled,
        retried=counts.retried,
        lanes_died=counts.died,
        lanes=[lane(one) for one in there],
        threads=calls[:threads_max],
    )


def lane(shown: Lane) -> LaneView:
    """A lane."""
    state: Any = "opening" if not shown.is_ready else "busy" if shown.given else "idle"
    if shown.stopping:
        state = "stopping"
    return LaneView(id=shown.number, state=state, pid=shown.pid, cpu_s=shown.cpu_s())


def call(work: Work, now: float, lane: Lane | None) -> ThreadView:
    """A call, on a lane or waiting."""
    fraction = 0.0
    if lane is not None:
        done, said = lane.progress()
        if work.call.flags & wire.MANY:
            fraction = min(1.0, (done + said) / max(1, work.call.items))
        elif done == work.serial:
            fraction = said
    begun = work.given if lane is not None else now
    return ThreadView(
        id=work.serial & 0xFFFFFFFF,
        name=work.function.name,
        state="queued" if lane is None else "running",
        priority=limits.PRIORITY_NORMAL,
        attempt=work.attempts + (lane is not None),
        items=work.call.items,
        lane=None if lane is None else lane.number,
        progress=fraction,
        cpu_s=0.0 if lane is None else lane.used_s(work.serial),
        waited_s=max(0.0, begun - work.since),
        ran_s=max(0.0, now - begun),
    )
