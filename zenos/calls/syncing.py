"""One OS thread that makes a journal durable while its host goes on."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

from zenos.calls.lanes import Work
from zenos.core import durable


class Syncer:
    """Syncs one batch at a time. done: works, and the error if they aren't on the disk."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.done: deque[tuple[list[Work], OSError | None]] = deque()
        self._wake = wake
        self._jobs: queue.SimpleQueue[tuple[list[int], list[Work]] | None] = queue.SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name="calls-sync", daemon=True)
        self._thread.start()

    @property
    def is_free(self) -> bool:
        """Whether another batch may be started: all that were are done and taken."""
        return self._pending == 0 and not self.done

    def start(self, fds: list[int], works: list[Work]) -> None:
        """Sync the files, to which these works were written, and close them here."""
        self._pending += 1
        self._jobs.put((fds, works))

    def close(self, timeout_s: float) -> None:
        """Finish what was started, if that can be in time. Nobody was told that it is kept."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            fds, works = job
            self.done.append((works, sync(fds)))
            self._pending -= 1
            self._wake()


def sync(fds: list[int]) -> OSError | None:
    """Make files durable, and close their descriptors; what keeps one from being so."""
    error: OSError | None = None
    for fd in fds:
        try:
            try:
                durable.sync(fd)
            finally:
                os.close(fd)
        except OSError as failed:
            error = failed
    return error
