"""The steps of a training as a thread: what `zenos ps --threads` shows beside its pools."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from zenos.core import limits
from zenos.core.thread_views import PoolView, ThreadView
from zenos.threads import reporting


class ShownSteps:
    """What the OS thread that makes this does: the steps. Looked at from any thread.

    rank: of the process in a gang. count: steps done, and steps in all where that is known.
    """

    def __init__(self, rank: int, count: Callable[[], tuple[int, int | None]]) -> None:
        self._rank, self._count = rank, count
        self._begun = time.monotonic()
        self._clock: int | None = None
        with suppress(OSError, AttributeError):  # macOS has no such clocks
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self.finished = False
        reporting.watch(self)

    def snapshot(self, threads_max: int = limits.THREADS_SHOWN_MAX) -> PoolView:
        """A pool of one thread, which runs for as long as the training does."""
        done, total = self._count()
        thread = ThreadView(
            id=self._rank,
            name=f"steps of rank {self._rank}",
            state="running",
            priority=limits.PRIORITY_NORMAL,
            attempt=1,
            items=1,
            progress=done / total if total else 0.0,
            done=done,
            total=total or 0,
            unit="steps",
            cpu_s=0.0 if self._clock is None else time.clock_gettime(self._clock),
            ran_s=time.monotonic() - self._begun,
        )
        return PoolView(
            name="training",
            kind="thread",
            policy="fifo",
            wanted=1,
            queued=0,
            running=1,
            submitted=1,
            succeeded=0,
            failed=0,
            cancelled=0,
            retried=0,
            lanes_died=0,
            lanes=[],
            threads=[thread][:threads_max],
        )
