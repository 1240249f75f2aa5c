"""What is done beside the work of a process, and is seen as a thread of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from zenos.threads import Future, Options, Pool

T = TypeVar("T")


def beside(pool: str, name: str, work: Callable[[], T]) -> Future[T]:
    """Do the work on a lane of its own, which ends with it. pool, name: as it is shown.

    Whoever ends meanwhile doesn't wait for it.
    """
    lane = Pool(1, name=pool)
    future = lane.submit(work, options=Options(name=name))
    lane.close(timeout=0)
    return future
