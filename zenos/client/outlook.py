"""Why a task waits, and the schedule ahead: of both clients and handles."""

from __future__ import annotations

from typing import TypeVar

from zenos.client import calls
from zenos.client.build import parse_duration
from zenos.client.calls import Call
from zenos.client.types import History, TaskView
from zenos.core.outlook import Plan, Why

T = TypeVar("T")


class Ahead:
    """What a client hears of what lies ahead."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def why(self, id_: str) -> Why:
        """Why a task waits, with what would let it start now; why it is where it is, or ended."""
        return self._run(calls.why(id_))

    def history(self, id_: str) -> History:
        """What has become of a task, the latest last; of very many events those."""
        return self._run(calls.history(id_))

    def plan(self, ahead: float | str | None = None) -> Plan:
        """The schedule as it is expected, a forecast; ahead: how far, `"2h"` or seconds."""
        return self._run(calls.plan(parse_duration(ahead, "ahead")))


class AsyncAhead:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def why(self, id_: str) -> Why:
        """Why a task waits, with what would let it start now; why it is where it is, or ended."""
        return await self._run(calls.why(id_))

    async def history(self, id_: str) -> History:
        """What has become of a task, the latest last; of very many events those."""
        return await self._run(calls.history(id_))

    async def plan(self, ahead: float | str | None = None) -> Plan:
        """The schedule as it is expected, a forecast; ahead: how far, `"2h"` or seconds."""
        return await self._run(calls.plan(parse_duration(ahead, "ahead")))


class HandleAhead:
    """The same of a task at hand."""

    view: TaskView
    _client: Ahead

    def why(self) -> Why:
        """Why it waits, with what would let it start now; why it is where it is, or ended."""
        return self._client.why(self.view.task.id)

    def history(self) -> History:
        """What has become of it, the latest last."""
        return self._client.history(self.view.task.id)


class AsyncHandleAhead:
    """The same of a task at hand, awaited."""

    view: TaskView
    _client: AsyncAhead

    async def why(self) -> Why:
        """Why it waits, with what would let it start now; why it is where it is, or ended."""
        return await self._client.why(self.view.task.id)

    async def history(self) -> History:
        """What has become of it, the latest last."""
        return await self._client.history(self.view.task.id)
