"""Decide, remember, act: in that order, also when remembering fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.kernel.harness import node, spec
from zenos.core import events as ev
from zenos.core.actions import Action, Changes, Reply, Snapshot, StartWorker
from zenos.core.clock import SystemClock
from zenos.core.config import Config
from zenos.core.errors import StorageError, UnavailableError, UnfittableError
from zenos.core.task import Principal, State
from zenos.core.wire import Progress
from zenos.kernel import loop
from zenos.kernel.control import SUBSCRIBER_EVENTS_MAX, Control, Inbox, TaskProgress, View
from zenos.kernel.step import Kernel

ME = Principal()


class Disk:
    """Remembers; fails as often as it is told to."""

    def __init__(self) -> None:
        self.committed: list[Changes] = []
        self.attempts: list[Changes] = []
        self.failures = 0
        self.failed = asyncio.Event()

    async def commit(self, changes: Changes) -> None:
        self.attempts.append(changes)
        if self.failures:
            self.failures -= 1
            self.failed.set()
            raise StorageError("cannot write the database: the disk is full")
        self.committed.append(changes)


class System:
    """A loop with everything around it."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.inbox = Inbox()
        self.view = View(Snapshot())
        self.control = Control(self.inbox)
        self.performed: list[Action] = []
        self.kernel = Kernel(Config())
        self.inbox.put(ev.NodeUp(node=node()))

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, StartWorker):
                known = [c.tasks.get(action.task.id) for c in self.disk.committed]
                assert action.task in known, "performed before it was remembered"
            if isinstance(action, Reply):
                self.control.resolve(action)
            self.performed.append(action)

    async def __aenter__(self) -> System:
        self.running = asyncio.create_task(
            loop.run(
                self.kernel, self.disk, self.inbox, SystemClock(), self.view.apply, self.perform
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inbox.close()
        self.control.close()
        self.view.close()
        await self.running


async def test_a_caller_hears_accepted_after_the_commit() -> None:
    async with System() as system:
        task = await system.control.submit(spec(), ME, None)
        assert any(task.id in changes.tasks for changes in system.disk.committed)
        assert system.view.tasks[task.id].state is State.STARTING
        with pytest.raises(UnfittableError):
            await system.control.submit(spec(cpu=99), ME, None)


async def test_what_comes_at_once_is_one_transaction() -> None:
    system = System()
    waiting = [
        asyncio.create_task(system.control.submit(spec(cpu=0.01), ME, None)) for _ in range(20)
    ]
    await asyncio.sleep(0)  # all are in the inbox
    async with system:
        tasks = await asyncio.gather(*waiting)
    (changes,) = [changes for changes in system.disk.committed if changes.tasks]
    assert changes.tasks.keys() == {task.id for task in tasks}
    assert len(tasks) == 20


async def test_others_have_their_turn_where_the_loop_comes_again_at_once() -> None:
    inbox, turns = Inbox(), list[int]()
    for number in range(3):
        asyncio.get_running_loop().call_soon(turns.append, number)
        assert await inbox.drain(0.0) == []
        assert turns == [*range(number + 1)]


async def test_a_failing_commit_is_tried_again_with_the_same_batch_and_callers_get_503(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "COMMIT_RETRY_S", 0.0)
    async with System() as system:
        await system.control.submit(spec(), ME, None)
        system.disk.failures = 3
        waiting = asyncio.create_task(system.control.submit(spec(), ME, None))
        await system.disk.failed.wait()
        performed = len(system.performed)
        with pytest.raises(UnavailableError, match="disk is full"):
            await system.control.submit(spec(), ME, None)
        assert len(system.performed) == performed
        task = await waiting
        tries = [c for c in system.disk.attempts if task.id in c.tasks and len(c.events) > 0]
        assert len(tries) == 4
        assert all(changes is tries[0] for changes in tries)
        assert await system.control.submit(spec(), ME, None)
        said = [r.getMessage() for r in caplog.records]
        assert said.count("the store works again") == 1
        # A disk that is full for a night does not fill what is left of it with such lines.
        assert sum("trying again" in line for line in said) == 1


async def test_requests_in_flight_are_answered_when_the_loop_ends() -> None:
    system = System()
    waiting = asyncio.create_task(system.control.submit(spec(), ME, None))
    await asyncio.sleep(0)
    system.inbox.close()
    system.control.close()
    with pytest.raises(UnavailableError):
        await waiting
    with pytest.raises(UnavailableError):
        await system.control.submit(spec(), ME, None)


async def test_subscribers_see_history_and_progress_in_order_and_slow_ones_are_cut() -> None:
    async with System() as system, system.view.subscribe() as events:
        task = await system.control.submit(spec(), ME, None)
        system.view.report(task.id, Progress(stage="reading", done=1))
        seen = [await anext(events) for _ in range(3)]
        assert [getattr(e, "type", "progress") for e in seen] == [
            "submitted",
            "starting",
            "progress",
        ]
        for number in range(SUBSCRIBER_EVENTS_MAX + 1):
            system.view.report(task.id, Progress(stage="reading", done=number))
        assert [e async for e in events] == []


async def test_progress_is_kept_for_readers() -> None:
    view = View(Snapshot())
    view.report("t1", Progress(stage="training", done=3))
    assert view.progress["t1"].done == 3
    async with view.subscribe() as events:
        view.report("t1", Progress(stage="training", done=4))
        view.close()
        assert [e async for e in events] == [
            TaskProgress(task="t1", progress=Progress(stage="training", done=4))
        ]
