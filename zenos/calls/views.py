"""Lanes and calls of a host as people see them."""

from __future__ import annotations

from typing import Any

from zenos.calls import wire
from zenos.calls.lanes import Lane, Work
from zenos.core import limits
from zenos.core.thread_views import LaneView, ThreadView


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
        waited_s=max(0.0, begun - work.since),
        ran_s=max(0.0, now - begun),
    )
