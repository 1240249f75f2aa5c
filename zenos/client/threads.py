"""What the threads of tasks do: of both clients and handles."""

from __future__ import annotations

from typing import TypeVar

from zenos.client import calls
from zenos.client.calls import Call
from zenos.client.types import TaskThreads, TaskView

T = TypeVar("T")


class Threads:
    """What a client sees of tasks from inside."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def threads(self, id_: str) -> TaskThreads:
        """What the threads of a task's pools do, by process; NotFoundError without the task."""
        return self._run(calls.threads(id_))


class AsyncThreads:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def threads(self, id_: str) -> TaskThreads:
        """What the threads of a task's pools do, by process; NotFoundError without the task."""
        return await self._run(calls.threads(id_))


class HandleThreads:
    """The same of a task at hand."""

    view: TaskView
    _client: Threads

    def threads(self) -> TaskThreads:
        """What the threads of its pools do, by process."""
        return self._client.threads(self.view.task.id)


class AsyncHandleThreads:
    """The same of a task at hand, awaited."""

    view: TaskView
    _client: AsyncThreads

    async def threads(self) -> TaskThreads:
        """What the threads of its pools do, by process."""
        return await self._client.threads(self.view.task.id)
