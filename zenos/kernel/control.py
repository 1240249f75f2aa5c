"""The way into the loop and the view out of it, for the API and the effects.

Everything here runs in the daemon's one event loop. Nobody outside the loop sees a state that is
not yet remembered: `View` is made from committed changes alone.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec.structs import replace

from zenos.core import asking
from zenos.core import events as ev
from zenos.core.actions import Changes, Reply, Snapshot
from zenos.core.arrays import Array, ArraySpec
from zenos.core.audit import AuditRow
from zenos.core.batches import Batch, BatchSpec
from zenos.core.config import Config
from zenos.core.errors import NotFoundError, StorageError, UnavailableError, ZenosError
from zenos.core.node import Cordon, Node
from zenos.core.outlook import Picture
from zenos.core.predictions import Estimate
from zenos.core.resources import Resources
from zenos.core.task import (
    HOLDING,
    Deployment,
    IdempotencyKey,
    Once,
    Principal,
    Task,
    TaskEvent,
    TaskSpec,
)
from zenos.core.wire import Progress
from zenos.kernel import accounts
from zenos.kernel.shown_threads import ShownThreads

REPLY_TIMEOUT_S = 10.0
SUBSCRIBER_EVENTS_MAX = 4096
ENDED_STAGE = "ended"
Answer = Task | Array | Batch | Deployment | Node | AuditRow | IdempotencyKey | Picture


class Inbox:
    """Events on their way to the kernel, in order."""

    def __init__(self) -> None:
        self._events: list[ev.Event] = []
        self._there = asyncio.Event()
        self.closed = False
        self.storage_error: StorageError | None = None

    def put(self, event: ev.Event) -> None:
        """Add an event; never blocks. Call from the event loop's thread only."""
        self._events.append(event)
        self._there.set()

    async def drain(self, wait_s: float) -> list[ev.Event]:
        """All events that are there; waits up to `wait_s` seconds (or for ever) for the first.

        Where it isn't to wait, others have their turn: the loop may come again and again.
        """
        if wait_s <= 0:
            await asyncio.sleep(0)
        if not self._events and wait_s > 0 and not self.closed:
            try:
                async with asyncio.timeout(None if math.isinf(wait_s) else wait_s):
                    await self._there.wait()
            except TimeoutError:
                pass
        self._there.clear()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Let the loop end after what it is doing."""
        self.closed = True
        self._there.set()


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A task's progress, streamed beside the loop; not stored."""

    task: str
    progress: Progress


class Listening(AsyncIterator[TaskEvent | TaskProgress]):
    """Events from a moment on; ends when its reader is too slow or the view closes.

    since: the `seq` of the last event before, from which a reader that heard nothing yet goes on.
    """

    def __init__(self, since: int, queue: asyncio.Queue[TaskEvent | TaskProgress | None]) -> None:
        self.since = since
        self._queue = queue
        self._over = False

    async def __anext__(self) -> TaskEvent | TaskProgress:
        event = None if self._over else await self._queue.get()
        if event is None:
            self._over = True
            raise StopAsyncIteration
        return event


class View:
    """What is remembered, and live progress, for readers; with subscriptions to what changes."""

    def __init__(self, snapshot: Snapshot, config: Config | None = None) -> None:
        self.accounts = accounts.restore(config or Config(), snapshot)
        self.tasks: dict[str, Task] = dict(snapshot.tasks)
        self.arrays: dict[str, Array] = dict(snapshot.arrays)
        self.deployments: dict[str, Deployment] = dict(snapshot.deployments)
        self.nodes: dict[str, Node] = dict(snapshot.nodes)
        self.estimates: dict[str, Estimate] = dict(snapshot.estimates)
        self.progress: dict[str, Progress] = {}
        self.threads = ShownThreads()
        self._last_seq = snapshot.next_seq - 1  # of the events that were told
        self._subscribers: set[asyncio.Queue[TaskEvent | TaskProgress | None]] = set()
        self._changed = asyncio.Event()
        self._holding = {task.id for task in self.tasks.values() if task.state in HOLDING}

    def boots_on(self, node: Node) -> ev.NodeUp:
        """That this machine is there. Readers know it at once: the API is up before a step."""
        known = self.nodes.get(node.name)
        self._put_nodes({node.name: replace(node, cordon=known.cordon if known else None)})
        return ev.NodeUp(node=node)

    def _put_nodes(self, nodes: Mapping[str, Node]) -> None:
        self.nodes.update(nodes)
        if nodes:
            self.accounts.resize(sum((n.there for n in self.nodes.values()), Resources()))

    def apply(self, changes: Changes) -> None:
        """Take over what one step has committed."""
        self.accounts.begin(max(changes.now, self.accounts.now))
        for task in changes.tasks.values():
            self.accounts.change(self.tasks.get(task.id), task)
        self.tasks.update(changes.tasks)
        for task in changes.tasks.values():
            (self._holding.add if task.state in HOLDING else self._holding.discard)(task.id)
            if task.state not in HOLDING:
                self.threads.forget(task.id)
            if task.is_ended and task.id in self.progress:
                # How far it came stays; it does nothing of it any more.
                last = replace(self.progress[task.id], stage=ENDED_STAGE, left_s=None)
                self.progress[task.id] = last
        self._holding.difference_update(changes.deleted_tasks)
        self.arrays.update(changes.arrays)
        for array in changes.deleted_arrays:
            self.arrays.pop(array, None)
        self.deployments.update(changes.deployments)
        self._put_nodes(changes.nodes)
        self.estimates.update(changes.estimates)
        for signature in changes.deleted_estimates:
            self.estimates.pop(signature, None)
        for task_id in changes.deleted_tasks:
            self.tasks.pop(task_id, None)
            self.progress.pop(task_id, None)
        for name in changes.deleted_deployments:
            self.deployments.pop(name, None)
        for event in changes.events:
            self._last_seq = event.seq
            self._publish(event)
        if changes:
            self._changed.set()
            self._changed = asyncio.Event()

    def report(self, task: str, progress: Progress) -> None:
        """A worker says how far it is."""
        self.progress[task] = progress
        self._publish(TaskProgress(task=task, progress=progress))

    def changed(self) -> Coroutine[Any, Any, bool]:
        """Wait until something has been committed since this call, even if awaited only later."""
        return self._changed.wait()

    def used(self) -> dict[str, Resources]:
        """What tasks hold, by node."""
        used = {name: Resources() for name in self.nodes}
        for task in (self.tasks[task_id] for task_id in self._holding):
            for part in task.allocation.parts if task.allocation is not None else ():
                used[part.node] = used.get(part.node, Resources()) + part.resources
        return used

    def _publish(self, event: TaskEvent | TaskProgress) -> None:
        for queue in list(self._subscribers):
            if queue.full():
                # A reader that slow is cut: it can come again from its last event.
                self._subscribers.discard(queue)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Listening]:
        """Events from now on. The iterator ends when the reader is too slow or the view closes."""
        queue: asyncio.Queue[TaskEvent | TaskProgress | None] = asyncio.Queue(SUBSCRIBER_EVENTS_MAX)
        self._subscribers.add(queue)
        try:
            yield Listening(self._last_seq, queue)
        finally:
            self._subscribers.discard(queue)

    def close(self) -> None:
        """End all subscriptions."""
        for queue in list(self._subscribers):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._subscribers.clear()


class Control:
    """Requests to the kernel, each answered after its commit."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def submit(
        self,
        spec: TaskSpec,
        principal: Principal,
        key: str | None,
        asked: TaskSpec | None = None,
        warning: str = "",
    ) -> Task:
        """Submit a task; returns when it is accepted, that is, remembered. asked: see Submit."""
        number = next(self._numbers)
        event = ev.Submit(
            request=number, spec=spec, asked=asked, warning=warning, principal=principal, key=key
        )
        return _task(await self._ask(number, event))

    async def cancel(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Cancel a task; one that runs is ended within the grace time, after the return."""
        number = next(self._numbers)
        event = ev.Cancel(request=number, task=task, principal=principal, once=once)
        return _task(await self._ask(number, event))

    async def submit_array(self, spec: ArraySpec, principal: Principal, key: str | None) -> Array:
        """Submit an array; returns when all of it is remembered."""
        number = next(self._numbers)
        event = ev.SubmitArray(request=number, spec=spec, principal=principal, key=key)
        return _array(await self._ask(number, event))

    async def submit_batch(
        self,
        spec: BatchSpec,
        principal: Principal,
        key: str | None,
        asked: BatchSpec | None = None,
        warnings: dict[str, str] | None = None,
    ) -> Batch:
        """Submit several tasks as one; returns when all are remembered. Others: see SubmitBatch."""
        number = next(self._numbers)
        event = ev.SubmitBatch(
            request=number,
            spec=spec,
            asked=asked,
            principal=principal,
            key=key,
            warnings=warnings or {},
        )
        answer = await self._ask(number, event)
        if not isinstance(answer, Batch):
            raise TypeError("the kernel answered with another type")
        return answer

    async def cancel_array(self, array: str, principal: Principal) -> Array:
        """Cancel all tasks of an array."""
        number = next(self._numbers)
        event = ev.CancelArray(request=number, array=array, principal=principal)
        return _array(await self._ask(number, event))

    async def pause(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Have a task give its CPU back; it has done so when it is `paused`."""
        number = next(self._numbers)
        event = ev.Pause(request=number, task=task, principal=principal, once=once)
        return _task(await self._ask(number, event))

    async def suspend(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        """Have a task save and give everything back; it has done so when it is `queued`."""
        number = next(self._numbers)
        event = ev.Suspend(request=number, task=task, principal=principal, once=once)
        return _task(await self._ask(number, event))

    async def resume(
        self, task: str, principal: Principal, once: Once | None = None, *, inexact: bool
    ) -> Task:
        """Let a paused or held task go on; inexact: see Resume."""
        number = next(self._numbers)
        event = ev.Resume(
            request=number, task=task, inexact=inexact, principal=principal, once=once
        )
        return _task(await self._ask(number, event))

    async def nice(
        self, task: str, priority: int, principal: Principal, once: Once | None = None
    ) -> Task:
        """Give a task another priority."""
        number = next(self._numbers)
        event = ev.Nice(
            request=number, task=task, priority=priority, principal=principal, once=once
        )
        return _task(await self._ask(number, event))

    async def set_cordon(
        self, node: str, cordon: Cordon | None, principal: Principal, once: Once | None = None
    ) -> Node:
        """Have nothing new start on a node; None: let things start there again."""
        number = next(self._numbers)
        event = ev.SetCordon(
            request=number, node=node, cordon=cordon, principal=principal, once=once
        )
        answer = await self._ask(number, event)
        if not isinstance(answer, Node):
            raise TypeError("the kernel answered with another type")
        return answer

    async def deploy(self, event: ev.Deploy) -> Deployment:
        """Deploy a model, or change its deployment."""
        number = next(self._numbers)
        return _deployment(await self._ask(number, replace(event, request=number)))

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        """Stop a deployment."""
        number = next(self._numbers)
        event = ev.Undeploy(request=number, name=name, principal=principal)
        return _deployment(await self._ask(number, event))

    async def roll_back(self, event: ev.Rollback) -> Deployment:
        """Send a deployment to another version."""
        number = next(self._numbers)
        return _deployment(await self._ask(number, replace(event, request=number)))

    async def demand(self, event: ev.Demand) -> Deployment:
        """Ask for a model that requests wait for; raises UnfittableError where that is in vain."""
        number = next(self._numbers)
        return _deployment(await self._ask(number, replace(event, request=number)))

    async def record(self, event: ev.Record) -> None:
        """Write a row of what was done beside the kernel; returns when it is remembered."""
        number = next(self._numbers)
        await self._ask(number, replace(event, request=number))

    async def look(self, task: str | None = None) -> Picture:
        """A picture of the state, with that task in it."""
        number = next(self._numbers)
        answer = await self._ask(number, ev.Look(request=number, task=task))
        if not isinstance(answer, Picture):
            raise TypeError("the kernel answered with another type")
        return answer

    async def recall(self, principal: Principal, once: Once) -> str | None:
        """What a request that was carried out already is remembered with; ConflictError."""
        number = next(self._numbers)
        event = ev.Recall(request=number, principal=principal, once=once)
        try:
            answer = await self._ask(number, event)
        except NotFoundError:
            return None
        return answer.subject if isinstance(answer, IdempotencyKey) else None

    def resolve(self, reply: Reply) -> None:
        """Give a caller its answer."""
        future = self._waiting.pop(reply.request, None)
        if future is None or future.done():
            return
        if isinstance(reply.result, ZenosError):
            future.set_exception(reply.result)
        else:
            future.set_result(reply.result)

    def close(self) -> None:
        """Nobody will answer any more."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError("cannot answer: the daemon is going down"))
        self._waiting.clear()

    async def _ask(self, number: int, event: ev.Event) -> Answer:
        if self._inbox.closed:
            raise UnavailableError("cannot answer: the daemon is going down")
        if self._inbox.storage_error is not None:
            raise UnavailableError(str(self._inbox.storage_error), retry_after_s=5)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if isinstance(event, ev.Asked):
            event = replace(event, token=asking.TOKEN.get())
        self._inbox.put(event)
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                return await future
        except TimeoutError:
            error = self._inbox.storage_error
            why = f" ({error})" if error is not None else ""
            raise UnavailableError(
                f"cannot say whether this was accepted: the store does not answer{why}; look "
                "before you repeat it, which is safe without a look if it was sent with a key",
                retry_after_s=5,
            ) from None
        finally:
            self._waiting.pop(number, None)


def _task(answer: Answer) -> Task:
    if not isinstance(answer, Task):
        raise TypeError("the kernel answered with another type")
    return answer


def _deployment(answer: Answer) -> Deployment:
    if not isinstance(answer, Deployment):
        raise TypeError("the kernel answered with another type")
    return answer


def _array(answer: Answer) -> Array:
    if not isinstance(answer, Array):
        raise TypeError("the kernel answered with another type")
    return answer
