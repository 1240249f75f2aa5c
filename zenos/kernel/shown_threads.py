"""What the processes of tasks have last said of their threads. In memory alone: it is of the moment
and is gone with the process, or the task, that said it.
"""

from __future__ import annotations

from zenos.core import limits
from zenos.core.thread_views import ProcessThreads


class ShownThreads:
    """By task, the newest report of each of its processes. Times in monotonic seconds."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, tuple[float, ProcessThreads]]] = {}

    def heard(self, task: str, who: str, report: ProcessThreads, now: float) -> None:
        """One of a task's processes says what its threads do; those too many are passed over."""
        known = self._reports.setdefault(task, {})
        if who in known or len(known) < limits.THREAD_PROCESSES_MAX:
            known[who] = (now, report)

    def gone(self, task: str, who: str) -> None:
        """A process says no more."""
        known = self._reports.get(task, {})
        known.pop(who, None)
        if not known:
            self._reports.pop(task, None)

    def forget(self, task: str) -> None:
        """Nothing of a task runs any more."""
        self._reports.pop(task, None)

    def of(self, task: str, now: float) -> list[ProcessThreads]:
        """Of each process with pools, in the order in which they first said something."""
        reports = self._reports.get(task, {}).values()
        return [report.later(max(0.0, now - then)) for then, report in reports if report.pools]

    def count(self, task: str) -> int:
        """How many threads of a task run or wait."""
        return sum(report.count for _, report in self._reports.get(task, {}).values())
