"""Threads: a big task cut into pieces that run on lanes, within the task's allocation.

    with Pool() as pool:
        for digest in pool.map(digest_of, paths):
            ...

A *thread* is a piece of work, a *lane* what it runs on: an OS thread or a warm worker process. See
docs/threads.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zenos.threads.allocation import cpus
    from zenos.threads.current import cancelled, report
    from zenos.threads.decomposition import decompose
    from zenos.threads.future import Future, wait_all
    from zenos.threads.job import Options
    from zenos.threads.mapping import Results
    from zenos.threads.pool import Pool
    from zenos.threads.shared import Shared, Snapshot
    from zenos.threads.views import LaneView, PoolView, ThreadView

__all__ = [
    "Future",
    "LaneView",
    "Options",
    "Pool",
    "PoolView",
    "Results",
    "Shared",
    "Snapshot",
    "ThreadView",
    "cancelled",
    "cpus",
    "decompose",
    "report",
    "wait_all",
]

# A lane's process needs few of them, and starts for each what it imports.
_HOMES: Final = {
    "Future": "future",
    "LaneView": "views",
    "Options": "job",
    "Pool": "pool",
    "PoolView": "views",
    "Results": "mapping",
    "Shared": "shared",
    "Snapshot": "shared",
    "ThreadView": "views",
    "cancelled": "current",
    "cpus": "allocation",
    "decompose": "decomposition",
    "report": "current",
    "wait_all": "future",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
