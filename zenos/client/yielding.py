"""Pausing, suspending, resuming tasks and changing their priority: of both clients and handles."""

from __future__ import annotations

from typing import TypeVar

from zenos.client import calls
from zenos.client.build import parse_priority
from zenos.client.calls import Call
from zenos.client.types import TaskView
from zenos.core.task import Task

T = TypeVar("T")


class Yielding:
    """What a client can have tasks do beside ending."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def pause(self, id_: str) -> Task:
        """Have a task give its CPU back and keep its memory, until it is resumed.

        It has done so when its state is `paused`. ConflictError where there is nothing to pause,
        RefusedError for a replica.
        """
        return self._run(calls.pause(id_))

    def suspend(self, id_: str) -> Task:
        """Have a task save its state and give everything back, until it is resumed.

        It has done so when it is `queued` and `held`. RefusedError for a program that cannot save.
        """
        return self._run(calls.suspend(id_))

    def resume(self, id_: str, *, inexact: bool = False) -> Task:
        """Let a paused or held task go on; inexact: a training may with other numerics."""
        return self._run(calls.resume(id_, inexact=inexact))

    def nice(self, id_: str, priority: int | str) -> Task:
        """Give a task another priority: 0 to 100, `low`, `normal` or `high`."""
        return self._run(calls.nice(id_, parse_priority(priority)))


class AsyncYielding:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def pause(self, id_: str) -> Task:
        """Have a task give its CPU back and keep its memory, until it is resumed."""
        return await self._run(calls.pause(id_))

    async def suspend(self, id_: str) -> Task:
        """Have a task save its state and give everything back, until it is resumed."""
        return await self._run(calls.suspend(id_))

    async def resume(self, id_: str, *, inexact: bool = False) -> Task:
        """Let a paused or held task go on; inexact: a training may with other numerics."""
        return await self._run(calls.resume(id_, inexact=inexact))

    async def nice(self, id_: str, priority: int | str) -> Task:
        """Give a task another priority: 0 to 100, `low`, `normal` or `high`."""
        return await self._run(calls.nice(id_, parse_priority(priority)))


class HandleYielding:
    """The same of a task at hand."""

    view: TaskView
    _client: Yielding

    def pause(self) -> Task:
        """Have it give its CPU back and keep its memory, until it is resumed."""
        return self._seen(self._client.pause(self.view.task.id))

    def suspend(self) -> Task:
        """Have it save its state and give everything back, until it is resumed."""
        return self._seen(self._client.suspend(self.view.task.id))

    def resume(self, *, inexact: bool = False) -> Task:
        """Let it go on; inexact: a training may with other numerics."""
        return self._seen(self._client.resume(self.view.task.id, inexact=inexact))

    def nice(self, priority: int | str) -> Task:
        """Give it another priority: 0 to 100, `low`, `normal` or `high`."""
        return self._seen(self._client.nice(self.view.task.id, priority))

    def _seen(self, task: Task) -> Task:
        self.view = TaskView(task=task, progress=self.view.progress)
        return task


class AsyncHandleYielding:
    """The same of a task at hand, awaited."""

    view: TaskView
    _client: AsyncYielding

    async def pause(self) -> Task:
        """Have it give its CPU back and keep its memory, until it is resumed."""
        return self._seen(await self._client.pause(self.view.task.id))

    async def suspend(self) -> Task:
        """Have it save its state and give everything back, until it is resumed."""
        return self._seen(await self._client.suspend(self.view.task.id))

    async def resume(self, *, inexact: bool = False) -> Task:
        """Let it go on; inexact: a training may with other numerics."""
        return self._seen(await self._client.resume(self.view.task.id, inexact=inexact))

    async def nice(self, priority: int | str) -> Task:
        """Give it another priority: 0 to 100, `low`, `normal` or `high`."""
        return self._seen(await self._client.nice(self.view.task.id, priority))

    def _seen(self, task: Task) -> Task:
        self.view = TaskView(task=task, progress=self.view.progress)
        return task
