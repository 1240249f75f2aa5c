"""A system in memory under the API: the real kernel, loop, view and control over a MemoryStore.

Only workers and the engine are stood in for: workers start at once and end when told; the engine
says the words it is told to say.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zenos.bus.durable_topics import DurableTopics
from zenos.core import events as ev
from zenos.core.actions import (
    Action,
    Discard,
    Forget,
    PauseWorker,
    Reply,
    ResumeWorker,
    Snapshot,
    StartWorker,
    StopWorker,
    Update,
)
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.clock import SystemClock
from zenos.core.config import Config
from zenos.core.errors import NotFoundError, ZenosError
from zenos.core.messages import settings_for
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Node, Outcome, Principal, Task, TaskEvent, TaskSpec
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Chunk, GenerateRequest, Progress, TokenLogprob, Usage
from zenos.kernel import loop
from zenos.kernel.control import Control, Inbox, View
from zenos.kernel.step import Kernel
from zenos.models.registry import ModelVersion, Registry
from zenos.store.memory import MemoryStore


def publish(registry: Registry, directory: Path, name: str) -> ModelVersion:
    """A model of one small tensor."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (directory / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + name.encode().ljust(8)[:8]
    )
    (directory / "config.json").write_bytes(b'{"model_type":"llama"}')
    (directory / "tokenizer.json").write_bytes(b"{}")
    names = ("config.json", "model.safetensors", "tokenizer.json")
    files = {file: directory / file for file in names}
    curve = [[1, 3.0, None], [2, 2.5, 2.6]]
    return registry.publish(name, files, metrics={"loss": 2.5}, curve=curve)


class Double:
    """Implements `zenos.api.ports.System`."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        self.source = root / "source"
        self.source.mkdir()
        self.registry = Registry(root / "models")
        for name in ("tiny", "other"):
            publish(self.registry, self.source, name)
        self.store = MemoryStore()
        self.inbox = Inbox()
        self.view = View(Snapshot())
        self.control = Control(self.inbox)
        self.kernel = Kernel(config, Snapshot())
        self.topics = DurableTopics(
            self.store, SystemClock(), [], partial(settings_for, given=config.topics)
        )
        self.stopped: list[str] = []
        # What the engine says, and what it was asked.
        self.words = ["Hello", ",", " wörld"]
        self.failure: ZenosError | None = None
        self.fail_after: int | None = None
        self.gate: asyncio.Event | None = None
        self.hold_at = 1
        self.asked: list[tuple[str, GenerateRequest]] = []
        self.said: dict[str, int] = {}
        self.open = 0
        self.closed = 0

    async def run(self) -> None:
        node = Node(name="local", capacity=Resources.of(4, 2, "8GiB"), gpus=2, virtual_gpus=True)
        self.inbox.put(ev.NodeUp(node=node))
        looping = loop.run(
            self.kernel, self.store, self.inbox, SystemClock(), self.view.apply, self.perform
        )
        await asyncio.gather(looping, self.topics.run())

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    self.control.resolve(action)
                case StartWorker(task=task):
                    started = ev.WorkerStarted(task=task.id, generation=task.generation, pid=1)
                    self.inbox.put(started)
                case PauseWorker(task=name, generation=generation):
                    self.inbox.put(ev.WorkerPaused(task=name, generation=generation))
                case StopWorker(task=name, generation=generation):
                    self.end(name, generation, Outcome(signal=15))
                case Forget() | Discard() | ResumeWorker() | Update():
                    pass

    def end(self, task: str, generation: int, outcome: Outcome) -> None:
        self.inbox.put(ev.WorkerExited(task=task, generation=generation, outcome=outcome))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await self.view.changed()

    def close(self) -> None:
        self.inbox.close()
        self.topics.close()
        self.control.close()
        self.view.close()

    # -- zenos.api.ports.System

    async def submit(self, spec: TaskSpec, principal: Principal, key: str | None) -> Task:
        return await self.control.submit(spec, principal, key)

    async def cancel(self, task: str, principal: Principal) -> Task:
        return await self.control.cancel(task, principal)

    async def pause(self, task: str, principal: Principal) -> Task:
        return await self.control.pause(task, principal)

    async def suspend(self, task: str, principal: Principal) -> Task:
        return await self.control.suspend(task, principal)

    async def resume(self, task: str, principal: Principal, *, inexact: bool) -> Task:
        return await self.control.resume(task, principal, inexact=inexact)

    async def nice(self, task: str, priority: int, principal: Principal) -> Task:
        return await self.control.nice(task, priority, principal)

    async def deploy(
        self, spec: DeploymentSpec, principal: Principal, key: str | None
    ) -> Deployment:
        self.registry.resolve(spec.model)
        return await self.control.deploy(spec, principal, key)

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        return await self.control.undeploy(name, principal)

    async def roll_back(self, name: str, to: int | None, principal: Principal) -> Deployment:
        event = ev.Rollback(request=0, name=name, version=f"{name}:{to or 1}", principal=principal)
        return await self.control.roll_back(event)

    def tasks(self) -> Mapping[str, Task]:
        return self.view.tasks

    def deployments(self) -> Mapping[str, Deployment]:
        return self.view.deployments

    def nodes(self) -> Mapping[str, Node]:
        return self.view.nodes

    def used(self) -> Mapping[str, Resources]:
        return self.view.used()

    def progress(self, task: str) -> Progress | None:
        return self.view.progress.get(task)

    def threads(self, task: str) -> list[ProcessThreads]:
        return self.view.threads.of(task, time.monotonic())

    def thread_count(self, task: str) -> int:
        return self.view.threads.count(task)

    async def events(self, after_seq: int, limit: int, task: str | None = None) -> list[TaskEvent]:
        return await self.store.events(after_seq, limit, task)

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        return await self.store.audit(query)

    async def record(self, event: ev.Record) -> None:
        await self.control.record(event)

    def subscribe(self) -> Any:
        return self.view.subscribe()

    def log_path(self, task: str, generation: int | None = None) -> Path | None:
        known = self.view.tasks.get(task)
        if known is None:
            raise NotFoundError(f"cannot find the task {task!a}")
        number = generation or known.generation
        return self.root / f"{task}-{number}.log" if number else None

    def status(self) -> dict[str, Any]:
        states: dict[str, int] = {}
        for task in self.view.tasks.values():
            states[task.state.value] = states.get(task.state.value, 0) + 1
        return {
            "pid": os.getpid(),
            "version": "test",
            "uptime_s": 1.5,
            "home": str(self.root),
            "tasks": states,
        }

    async def generate(
        self, model: str, request: GenerateRequest, principal: Principal, deadline_s: float
    ) -> AsyncIterator[Chunk]:
        self.registry.resolve(model)
        if self.failure is not None and self.fail_after is None:
            raise self.failure
        self.asked.append((model, request))
        self.open += 1
        try:
            for index in range(request.sampling.n):
                async for chunk in self._choice(request, index):
                    yield chunk
        finally:
            self.open -= 1
            self.closed += 1

    async def _choice(self, request: GenerateRequest, index: int) -> AsyncIterator[Chunk]:
        wants = request.sampling.logprobs
        for number, word in enumerate(self.words):
            if self.gate is not None and number == self.hold_at:
                await self.gate.wait()
            if self.failure is not None and self.fail_after == number:
                raise self.failure
            top = [(word, list(word.encode()), -0.5), ("x", [120], -2.0)][: wants or 0]
            token = TokenLogprob(token=word, bytes=list(word.encode()), logprob=-0.5, top=top)
            logprobs = [] if wants is None else [token]
            self.said[request.id] = self.said.get(request.id, 0) + 1
            yield Chunk(
                request=request.id, index=index, text=word, token_count=1, logprobs=logprobs
            )
            await asyncio.sleep(0)
        last = index == request.sampling.n - 1
        usage = Usage(prompt_tokens=3, completion_tokens=len(self.words) * request.sampling.n)
        yield Chunk(request=request.id, index=index, finish="length", usage=usage if last else None)

    def shut_down(self, mode: str) -> None:
        self.stopped.append(mode)


@asynccontextmanager
async def running(root: Path, config: Config) -> AsyncIterator[Double]:
    """A system whose loop runs."""
    double = Double(root, config)
    task = asyncio.ensure_future(double.run())
    try:
        await double.until(lambda: bool(double.view.nodes))
        yield double
    finally:
        double.close()
        await task
