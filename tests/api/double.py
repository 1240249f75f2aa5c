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

import msgspec

from zenos.bus.durable_topics import DurableTopics
from zenos.core import events as ev
from zenos.core import limits
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
from zenos.core.arrays import Array, ArraySpec
from zenos.core.audit import AuditQuery, AuditRow
from zenos.core.batches import Batch, BatchSpec
from zenos.core.clock import SystemClock
from zenos.core.config import Config
from zenos.core.errors import NotFoundError, ZenosError
from zenos.core.messages import settings_for
from zenos.core.node import Cordon, Node
from zenos.core.outlook import Plan, Why
from zenos.core.predictions import Estimate
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Once, Outcome, Principal, Task, TaskEvent, TaskSpec
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Chunk, GenerateRequest, Progress, Times, TokenLogprob, Usage
from zenos.kernel import loop
from zenos.kernel.accounts import Accounts
from zenos.kernel.control import Control, Inbox, View
from zenos.kernel.explanation import ended
from zenos.kernel.picture import slim
from zenos.kernel.step import Kernel
from zenos.models import footprint
from zenos.models.registry import ModelVersion, Registry
from zenos.simulate.ahead import Question, answer
from zenos.store.memory import MemoryStore


def publish(registry: Registry, directory: Path, name: str) -> ModelVersion:
    """A model of one small tensor."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (directory / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + name.encode().ljust(8)[:8]
    )
    (directory / "config.json").write_bytes(b'{"model_type":"llama"}')
    (directory / "tokenizer.json").write_bytes(b'{"model":{}}')
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
        self.view = View(Snapshot(), config)
        self.control = Control(self.inbox)
        self.kernel = Kernel(config, Snapshot())
        self.topics = DurableTopics(
            self.store, SystemClock(), [], partial(settings_for, given=config.topics)
        )
        self.stopped: list[str] = []
        # What the engine says, and what it was asked.
        self.words = ["Hello", ",", " wörld"]
        self.version = ""
        self.begin_again = False  # after the first word of what nobody has seen, with another one
        self.failure: ZenosError | None = None
        self.disk_free = limits.TIB
        self.fail_after: int | None = None
        self.gate: asyncio.Event | None = None
        self.hold_at = 1
        self.asked: list[tuple[str, GenerateRequest]] = []
        self.deadlines: list[float] = []
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

    async def cancel(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        return await self.control.cancel(task, principal, once)

    async def submit_array(self, spec: ArraySpec, principal: Principal, key: str | None) -> Array:
        return await self.control.submit_array(spec, principal, key)

    async def submit_batch(self, spec: BatchSpec, principal: Principal, key: str | None) -> Batch:
        return await self.control.submit_batch(spec, principal, key)

    async def cancel_array(self, array: str, principal: Principal) -> Array:
        return await self.control.cancel_array(array, principal)

    def arrays(self) -> Mapping[str, Array]:
        return self.view.arrays

    async def pause(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        return await self.control.pause(task, principal, once)

    async def suspend(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        return await self.control.suspend(task, principal, once)

    async def resume(
        self, task: str, principal: Principal, once: Once | None = None, *, inexact: bool
    ) -> Task:
        return await self.control.resume(task, principal, once, inexact=inexact)

    async def nice(
        self, task: str, priority: int, principal: Principal, once: Once | None = None
    ) -> Task:
        return await self.control.nice(task, priority, principal, once)

    async def why(self, task: str) -> Why:
        picture = await self.control.look(task)
        if not any(one.id == task for one in picture.tasks):
            return ended(self.view.tasks[task], picture.now)
        said = answer(Question(picture=slim(picture), task=task))
        assert isinstance(said, Why)
        return said

    async def plan(self, ahead_s: float) -> Plan:
        picture = await self.control.look()
        said = answer(Question(picture=slim(picture), ahead_s=ahead_s))
        assert isinstance(said, Plan)
        return said

    async def deploy(
        self, spec: DeploymentSpec, principal: Principal, key: str | None
    ) -> Deployment:
        version = self.registry.resolve(spec.model)
        said = footprint.serving_warning(spec, version, None, self.view.nodes.values())
        event = ev.Deploy(request=0, spec=spec, principal=principal, key=key, warning=said)
        return await self.control.deploy(event)

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        return await self.control.undeploy(name, principal)

    async def roll_back(
        self, name: str, to: int | None, principal: Principal, once: Once | None = None
    ) -> Deployment:
        event = ev.Rollback(request=0, name=name, version=f"{name}:{to or 1}", principal=principal)
        return await self.control.roll_back(msgspec.structs.replace(event, once=once))

    def tasks(self) -> Mapping[str, Task]:
        return self.view.tasks

    def deployments(self) -> Mapping[str, Deployment]:
        return self.view.deployments

    def nodes(self) -> Mapping[str, Node]:
        return self.view.nodes

    async def set_cordon(
        self, node: str, cordon: Cordon | None, principal: Principal, once: Once | None = None
    ) -> Node:
        return await self.control.set_cordon(node, cordon, principal, once)

    def used(self) -> Mapping[str, Resources]:
        return self.view.used()

    def accounts(self) -> Accounts:
        return self.view.accounts

    def estimates(self) -> Mapping[str, Estimate]:
        return self.view.estimates

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

    async def recall(self, principal: Principal, once: Once) -> str | None:
        return await self.control.recall(principal, once)

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
            "disk_free": self.disk_free,
            "going_down": self.stopped[-1] if self.stopped else None,
            "tasks": states,
        }

    async def generate(
        self, model: str, request: GenerateRequest, principal: Principal, deadline_s: float
    ) -> AsyncIterator[Chunk]:
        self.registry.resolve(model)
        if self.failure is not None and self.fail_after is None:
            raise self.failure
        self.asked.append((model, request))
        self.deadlines.append(deadline_s)
        self.open += 1
        try:
            if self.begin_again and request.whole:
                old = f"{model}:0"
                yield Chunk(request=request.id, text="old", token_count=1, version=old)
                yield Chunk(request=request.id, again=True)
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
            first = index == number == 0
            yield Chunk(
                request=request.id,
                index=index,
                text=word,
                version=self.version,
                token_count=1,
                logprobs=logprobs,
                times=Times(queue_s=0.25, load_s=1.5, compute_s=0.125) if first else None,
            )
            await asyncio.sleep(0)
        last = index == request.sampling.n - 1
        usage = Usage(prompt_tokens=3, completion_tokens=len(self.words) * request.sampling.n)
        times = Times(queue_s=0.25, load_s=1.5, compute_s=2.5)
        yield Chunk(
            request=request.id,
            index=index,
            finish="length",
            usage=usage if last else None,
            times=times if last else None,
        )

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
