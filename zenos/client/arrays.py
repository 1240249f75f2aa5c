"""Arrays of tasks, and several tasks at once: of both clients."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from zenos.client import build, calls
from zenos.client.calls import Call
from zenos.client.types import ArrayView, TaskView
from zenos.core.arrays import ArraySpec, Indices, parse_indices
from zenos.core.task import State, Task, TaskSpec

T = TypeVar("T")


def _spec(
    argv: Sequence[str],
    indices: str | Indices,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> ArraySpec:
    task = build.options(options).task(build.program(argv, env, cwd))
    chosen = indices if isinstance(indices, Indices) else parse_indices(indices)
    return ArraySpec(task=task, indices=chosen)


class Arrays:
    """What a client can do with arrays."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def submit_array(
        self,
        work: Sequence[str] | ArraySpec,
        indices: str | Indices = "0",
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> ArrayView:
        """Submit a program once for each index: `"0-99"`, `"0-99:2"`, `"0-99%4"` (four at once).

        It finds its index in `ZENOS_ARRAY_INDEX`. options: fields of TaskOptions. All of it is
        accepted, or nothing.
        """
        spec = work if isinstance(work, ArraySpec) else _spec(work, indices, env, cwd, options)
        return self._run(calls.submit_array(spec, key))

    def submit_batch(self, tasks: Sequence[TaskSpec], *, key: str | None = None) -> list[Task]:
        """Submit several tasks, each with a name: all of them are accepted, or none.

        `after` of one may name another of them. They come back each after those that it waits for.
        """
        batch = self._run(calls.submit_batch(tasks, key))
        return batch.tasks

    def array(self, id_: str) -> ArrayView:
        """One array, by id or name; NotFoundError when there is none."""
        return self._run(calls.array(id_))

    def array_tasks(
        self,
        id_: str,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        limit: int | None = None,
    ) -> list[TaskView]:
        """The tasks of an array that are remembered; as `tasks`, only some of them."""
        return (self._run(calls.tasks_of(id_, state, kind, limit))).tasks

    def cancel_array(self, id_: str) -> ArrayView:
        """Cancel all tasks of an array."""
        return self._run(calls.cancel_array(id_))

    def collapsed(
        self, *, state: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> tuple[list[TaskView], list[ArrayView]]:
        """As `tasks`, with arrays as wholes instead of their tasks."""
        found = self._run(calls.collapsed(state, kind, limit))
        return found.tasks, found.arrays


class AsyncArrays:
    """The same, awaited."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def submit_array(
        self,
        work: Sequence[str] | ArraySpec,
        indices: str | Indices = "0",
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        key: str | None = None,
        **options: Any,
    ) -> ArrayView:
        """Submit a program once for each index: `"0-99"`, `"0-99:2"`, `"0-99%4"` (four at once).

        It finds its index in `ZENOS_ARRAY_INDEX`. options: fields of TaskOptions. All of it is
        accepted, or nothing.
        """
        spec = work if isinstance(work, ArraySpec) else _spec(work, indices, env, cwd, options)
        return await self._run(calls.submit_array(spec, key))

    async def submit_batch(
        self, tasks: Sequence[TaskSpec], *, key: str | None = None
    ) -> list[Task]:
        """Submit several tasks, each with a name: all of them are accepted, or none.

        `after` of one may name another of them. They come back each after those that it waits for.
        """
        batch = await self._run(calls.submit_batch(tasks, key))
        return batch.tasks

    async def array(self, id_: str) -> ArrayView:
        """One array, by id or name; NotFoundError when there is none."""
        return await self._run(calls.array(id_))

    async def array_tasks(
        self,
        id_: str,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        limit: int | None = None,
    ) -> list[TaskView]:
        """The tasks of an array that are remembered; as `tasks`, only some of them."""
        return (await self._run(calls.tasks_of(id_, state, kind, limit))).tasks

    async def cancel_array(self, id_: str) -> ArrayView:
        """Cancel all tasks of an array."""
        return await self._run(calls.cancel_array(id_))

    async def collapsed(
        self, *, state: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> tuple[list[TaskView], list[ArrayView]]:
        """As `tasks`, with arrays as wholes instead of their tasks."""
        found = await self._run(calls.collapsed(state, kind, limit))
        return found.tasks, found.arrays
