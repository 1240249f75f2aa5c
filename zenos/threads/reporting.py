"""In a task, the daemon is told of its threads: for `zenos ps --threads`.

One OS thread of the process looks at its pools once a second, and tells what has changed. There is
none outside of tasks, and none before there is a pool; where there is no daemon, nothing is told.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Final, Protocol

import msgspec

from zenos.bus.telling import Teller
from zenos.core import limits
from zenos.core.thread_views import PoolView, ProcessThreads

log = logging.getLogger(__name__)

FIRST_S: Final = 0.2  # what ends sooner isn't told of
IDLE_S: Final = 10.0  # so long after the last pool the connection is given back


class Source(Protocol):
    """A pool, as it is looked at."""

    @property
    def finished(self) -> bool:
        """Whether its last lane has ended."""
        ...

    def snapshot(self, threads_max: int) -> PoolView:
        """Its lanes, and at most so many of its threads."""
        ...


class Reporter:
    """Tells of the pools of this process."""

    def __init__(self) -> None:
        self._teller = Teller()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def watch(self, source: Source) -> None:
        """Tell of a pool until it has finished; nothing outside of a task."""
        if not os.environ.get("ZENOS_TASK"):
            return
        with self._lock:
            self._sources.add(source)
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="threads-report", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no OS thread to give, or the program ends
                return
            self._thread = thread

    def _run(self) -> None:
        try:
            self._tell_for_ever()
        except Exception:  # the program must not hear of it
            log.debug("threads aren't reported any more", exc_info=True)

    def _tell_for_ever(self) -> None:
        told: ProcessThreads | None = None
        busy_at = time.monotonic()
        wait_s = FIRST_S
        while True:
            time.sleep(wait_s)
            wait_s = limits.THREADS_REPORT_EVERY_S
            report = self._look()
            if report.pools:
                busy_at = time.monotonic()
            elif time.monotonic() - busy_at > IDLE_S and self._end():
                return
            told = self._tell(report, told)

    def _tell(self, report: ProcessThreads, told: ProcessThreads | None) -> ProcessThreads | None:
        """Say it if it is news; what the daemon knows then."""
        if not self._teller.is_connected():
            told = None
        still = report.still()
        if still == told or (told is None and not report.pools):
            return told
        body = msgspec.msgpack.encode(report)
        return still if self._teller.tell("threads", body) else None

    def _look(self) -> ProcessThreads:
        with self._lock:
            sources = [source for source in self._sources if not source.finished]
        threads_left = limits.THREADS_REPORTED_MAX
        pools: list[PoolView] = []
        for source in sources[: limits.POOLS_REPORTED_MAX]:
            pools.append(source.snapshot(threads_left))
            threads_left -= len(pools[-1].threads)
        pools.sort(key=lambda pool: pool.name)  # a set has no order that stays
        return ProcessThreads(pid=os.getpid(), pools=pools).bounded()

    def _end(self) -> bool:
        """Give the connection back, unless a pool was made meanwhile."""
        with self._lock:
            if any(not source.finished for source in self._sources):
                return False
            self._sources.clear()
            self._thread = None
            # The next one's thread has the next one's connection.
            teller, self._teller = self._teller, Teller()
        teller.close()
        return True

    def forget(self) -> None:
        """In a fork, which has none of its parent's OS threads."""
        self._teller.forget()
        self._begin()


_reporter: Final = Reporter()
watch = _reporter.watch
os.register_at_fork(after_in_child=_reporter.forget)
