"""What executes tasks, as the system knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zenos.core.task import Task
from zenos.workers.freezing import How


class Executor(Protocol):
    """Executes tasks: on this machine here, on a cluster's engine elsewhere."""

    async def start(self, task: Task) -> None:
        """Start the task's present generation. Idempotent; what comes of it is posted as events."""
        ...

    async def stop(self, task: str, generation: int, grace_s: float, save: bool) -> None:
        """End a generation's whole process group: SIGTERM, after the grace time SIGKILL."""
        ...

    async def pause(self, task: str, generation: int, how: How, grace_s: float) -> None:
        """Stop a program where it is; a WorkerPaused says when nothing of it runs any more."""
        ...

    async def resume(self, task: str, generation: int) -> None:
        """Let a program go on that was paused, or is being so. Nothing to one that is not."""
        ...

    def make_room(self, task: str, generation: int, *, on: bool) -> None:
        """Tell a host of calls whether others wait for its room."""
        ...

    async def recover(self, tasks: Sequence[Task], next_task: int) -> None:
        """At boot: adopt, finish, start or report as lost each task that held an allocation.

        next_task: the number of the next one. What there is of that and later ones is no task's.
        """
        ...

    def discard(self, tasks: Sequence[str]) -> None:
        """Remove what ended trainings have saved to go on from."""
        ...

    def forget(self, tasks: Sequence[str]) -> None:
        """Remove what ended tasks have left on the disk."""
        ...

    def authenticate(self, task: str, generation: int, token: str) -> bool:
        """Whether that token is that generation's, which is its task's newest one here."""
        ...

    async def close(self) -> None:
        """Stop watching. Workers go on."""
        ...
