"""The running system as the API sees it: the kernel's control and view, the router, the registry.

Also the effects, what the kernel's actions do: `perform` only enqueues; results are events.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from zenos import __version__
from zenos.bus.broker import Broker
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import Envelope
from zenos.bus.envelope import Kind as MessageKind
from zenos.core import events as ev
from zenos.core import failpoints, limits
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
from zenos.core.config import Config
from zenos.core.errors import BusyError, InvalidError, NotFoundError
from zenos.core.home import Home
from zenos.core.resources import Resources, parse_size
from zenos.core.specs import CreateSpec, DeploymentSpec, ProgramSpec, TrainSpec
from zenos.core.task import (
    HOLDING,
    Deployment,
    Kind,
    Node,
    Principal,
    State,
    Task,
    TaskEvent,
    TaskSpec,
)
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Chunk, GenerateRequest, Pause, Progress, Published, Stop
from zenos.kernel.control import Control, Inbox, TaskProgress, View
from zenos.kernel.supervision import saves
from zenos.models.presets import check_arch
from zenos.models.registry import Registry
from zenos.store.base import Store
from zenos.workers.executor import Executor
from zenos.workers.publishing import Publishing
from zenos.workers.router import Router

log = logging.getLogger(__name__)
Mode = Literal["suspend", "drain", "leave"]


class LocalSystem:
    """One machine's system; implements `zenos.api.ports.System`."""

    def __init__(
        self,
        home: Home,
        config: Config,
        store: Store,
        inbox: Inbox,
        view: View,
        registry: Registry,
        topics: DurableTopics,
        zygote_ready: Any,
    ) -> None:
        self.home = home
        self.config = config
        self.registry = registry
        self.topics = topics
        self.control = Control(inbox)
        self.view = view
        self.executor: Executor | None = None
        self.broker: Broker | None = None
        self.stop_requests: asyncio.Queue[Mode] = asyncio.Queue()
        self._store = store
        self._inbox = inbox
        self._zygote_ready = zygote_ready
        self._started = time.monotonic()
        self._effects: set[asyncio.Task[None]] = set()
        self.router = Router(
            config,
            view,
            inbox.put,
            self.control.demand,
            self._send,
            self._connected,
            registry.resolve,
        )
        self.publishing = Publishing(view, registry, inbox.put, self._send)

    def configure(self, config: Config) -> None:
        """Go on with other settings."""
        self.config = config
        self.router.configure(config)
        self._inbox.put(ev.Configured(config=config))

    # -- effects

    def perform(self, actions: Sequence[Action]) -> None:
        """Enqueue what the kernel decided."""
        executor = self.executor
        assert executor is not None  # noqa: S101 - boot gives it before the loop runs
        for action in actions:
            match action:
                case Reply():
                    self.control.resolve(action)
                case StartWorker(task=task):
                    self._spawn(executor.start(task), f"start {task.id}")
                case StopWorker(task=name, generation=generation, grace_s=grace_s, save=save):
                    self._say_stop(name, save=save)
                    work = executor.stop(name, generation, grace_s, save)
                    self._spawn(work, f"stop {name}")
                case PauseWorker(how="step", task=name) | ResumeWorker(how="step", task=name):
                    self._say_pause(name, on=isinstance(action, PauseWorker))
                case PauseWorker(task=name, generation=generation, how=how, grace_s=grace_s):
                    self._spawn(executor.pause(name, generation, how, grace_s), f"pause {name}")
                case ResumeWorker(task=name, generation=generation):
                    self._spawn(executor.resume(name, generation), f"resume {name}")
                case Update(deployment=deployment):
                    self.publishing.tell(deployment)
                case Forget(tasks=tasks):
                    self._spawn(asyncio.to_thread(executor.forget, tasks), "forget")
                case Discard(tasks=tasks):
                    self._spawn(asyncio.to_thread(executor.discard, tasks), "discard")
                case _:
                    raise TypeError(f"no effect for {type(action).__name__}")
            failpoints.passing("loop.action")

    def _say_stop(self, task: str, *, save: bool) -> None:
        """To a worker that is connected, before it gets SIGTERM, which alone means to save."""
        with suppress(BusyError):  # a worker that reads nothing still gets the signal
            self._send(task, "command", "stop", msgspec.msgpack.encode(Stop(save=save)), 100)

    def _say_pause(self, task: str, *, on: bool) -> None:
        """To a worker that is connected; any other hears it when it connects."""
        with suppress(BusyError):
            self._send(task, "command", "pause", msgspec.msgpack.encode(Pause(on=on)), 100)

    def _spawn(self, work: Any, what: str) -> None:
        task = asyncio.ensure_future(work)
        self._effects.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._effects.discard(finished)
            if not finished.cancelled() and finished.exception() is not None:
                log.error("effect failed: %s", what, exc_info=finished.exception())

        task.add_done_callback(done)

    def tidy(self, snapshot: Snapshot) -> None:
        """Remove what a crash has left, beside everything else.

        In the registry; of tasks that were forgotten just before it; of trainings that had ended.
        """
        self._spawn(asyncio.to_thread(self.registry.collect_garbage), "collect garbage")
        executor = self.executor
        assert executor is not None  # noqa: S101 - boot gives it before
        kept = (self.home.runs, self.home.checkpoints)
        left = {path.name for folder in kept for path in folder.iterdir()}
        gone = [
            name
            for name in left
            if re.fullmatch(r"t[0-9]+", name)
            and name not in snapshot.tasks
            and int(name[1:]) < snapshot.next_task
        ]
        if gone:
            self._spawn(asyncio.to_thread(executor.forget, gone), "forget")
        over = [task.id for task in snapshot.tasks.values() if task.is_ended and task.id in left]
        self._spawn(asyncio.to_thread(executor.discard, over), "discard")

    async def effects_done(self) -> None:
        """Wait until everything that was enqueued has been done."""
        while self._effects:
            await asyncio.wait(list(self._effects))

    # -- what workers say

    def on_message(self, task: str, generation: int, envelope: Envelope) -> None:
        """A message of a worker; one of an older generation is dropped."""
        known = self.view.tasks.get(task)
        if known is None or known.generation != generation or known.state not in HOLDING:
            return
        match envelope.topic:
            case "chunk":
                self.router.on_chunk(task, envelope.body)
            case "progress":
                self.view.report(task, msgspec.msgpack.decode(envelope.body, type=Progress))
            case "threads":
                self._on_threads(task, envelope)
            case "published":
                said = msgspec.msgpack.decode(envelope.body, type=Published)
                self._spawn(self.publishing.heard(known, said), f"publish {said.version}")
            case "ready":
                self._inbox.put(ev.WorkerReady(task=task, generation=generation))
            case "paused":
                if msgspec.msgpack.decode(envelope.body, type=Pause).on:
                    self._inbox.put(ev.WorkerPaused(task=task, generation=generation))
            case topic:
                log.warning("%s sent a message on the unknown topic %r", task, topic)

    def _on_threads(self, task: str, envelope: Envelope) -> None:
        if len(envelope.body) > limits.THREADS_REPORT_BYTES_MAX:
            raise InvalidError(
                f"cannot take {len(envelope.body)} bytes about threads: at most "
                f"{limits.THREADS_REPORT_BYTES_MAX}"
            )
        report = msgspec.msgpack.decode(envelope.body, type=ProcessThreads).bounded()
        self.view.threads.heard(task, envelope.sender, report, time.monotonic())

    def on_program_gone(self, task: str, name: str) -> None:
        """One of a task's programs has disconnected: what it said of its threads goes with it."""
        self.view.threads.gone(task, name)

    def on_disconnect(self, task: str, generation: int) -> None:
        """A worker's connection has ended: its requests cannot be answered any more."""
        known = self.view.tasks.get(task)
        if known is not None and known.kind is Kind.SERVE:
            self.router.on_gone(task)
        log.debug("%s generation %d disconnected", task, generation)

    def on_connect(self, task: str, generation: int) -> None:
        """A worker has connected, for the first time or again."""
        log.debug("%s generation %d connected", task, generation)
        known = self.view.tasks.get(task)
        if known is not None and known.generation == generation and known.stopping:
            self._say_stop(task, save=saves(known))  # it was told before it could hear
        elif known is not None and known.generation == generation and known.kind is Kind.TRAIN:
            self._say_pause(task, on=known.state in (State.PAUSING, State.PAUSED))
        if known is not None and known.kind is Kind.SERVE:
            self.publishing.tell_replica(known)
        self.router.on_connect()

    def may_use(self, task: str, topic: str) -> bool:
        """Whether a task was granted that topic of the bus, or one above it."""
        known = self.view.tasks.get(task)
        if known is None or not isinstance(known.spec.work, ProgramSpec):
            return False
        granted = known.spec.work.topics
        return any(topic == name or topic.startswith(f"{name}/") for name in granted)

    def _connected(self, task: str) -> bool:
        return self.broker is not None and self.broker.connected(task)

    def _send(self, task: str, kind: MessageKind, topic: str, body: bytes, priority: int) -> bool:
        return self.broker is not None and self.broker.send(
            task, kind, topic, body, priority=priority
        )

    # -- zenos.api.ports.System

    async def submit(self, spec: TaskSpec, principal: Principal, key: str | None) -> Task:
        asked = spec
        if isinstance(spec.work, TrainSpec | CreateSpec):
            if spec.work.arch is not None:
                check_arch(spec.work.arch, spec.work.settings)
            work = await asyncio.to_thread(self._pinned, spec.work)
            spec = msgspec.structs.replace(spec, work=work)
        return await self.control.submit(spec, principal, key, asked)

    def _pinned(self, work: TrainSpec | CreateSpec) -> TrainSpec | CreateSpec:
        """With the versions that its models mean now: later ones are not what was asked for."""
        exact = {}
        for name in ("base", "tokenizer"):
            ref = getattr(work, name, None)
            if ref is not None:
                exact[name] = self.registry.resolve(ref).ref
        return msgspec.structs.replace(work, **exact) if exact else work

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
        spec.check()
        version = await asyncio.to_thread(self.registry.resolve, spec.model)
        memory = parse_size(spec.memory) if spec.memory is not None else None
        version.check_servable(spec.context, memory)
        return await self.control.deploy(
            spec, principal, key, version.ref, version.serving_bytes, version.build
        )

    async def roll_back(self, name: str, to: int | None, principal: Principal) -> Deployment:
        event = await self.publishing.rollback(name, to, principal)
        return await self.control.roll_back(event)

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        return await self.control.undeploy(name, principal)

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
        return await self._store.events(after_seq, limit, task)

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        return await self._store.audit(query)

    async def record(self, event: ev.Record) -> None:
        await self.control.record(event)

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[TaskEvent | TaskProgress]]:
        return self.view.subscribe()

    def log_path(self, task: str, generation: int | None = None) -> Path | None:
        known = self.view.tasks.get(task)
        if known is None:
            raise NotFoundError(f"cannot find task {task!r}: 'zenos ps --all' lists them")
        if known.generation == 0:
            return None
        return self.home.run(known.id, generation or known.generation) / "log"

    def status(self) -> dict[str, Any]:
        states: dict[str, int] = {}
        for task in self.view.tasks.values():
            states[task.state.value] = states.get(task.state.value, 0) + 1
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "home": str(self.home.root),
            "zygote_ready": bool(self._zygote_ready()),
            "store": "failing" if self._inbox.storage_error else "ok",
            "tasks": states,
        }

    async def generate(
        self, model: str, request: GenerateRequest, principal: Principal, deadline_s: float
    ) -> AsyncIterator[Chunk]:
        answer = self.router.generate(model, request, principal, deadline_s)
        async with aclosing(answer) as chunks:  # so that a client that goes away frees its slot
            async for chunk in chunks:
                yield chunk

    def shut_down(self, mode: Mode) -> None:
        """Ask the daemon to go down; returns at once. The last word counts: a drain can be cut."""
        self.stop_requests.put_nowait(mode)
