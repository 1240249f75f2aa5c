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
    MakeRoom,
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
from zenos.core.config import Config
from zenos.core.errors import BusyError, InvalidError, NotFoundError, ZenosError
from zenos.core.free import free_bytes
from zenos.core.home import Home
from zenos.core.names import calls_topic, is_internal
from zenos.core.node import Cordon, Node
from zenos.core.outlook import Plan, Why
from zenos.core.predictions import Estimate
from zenos.core.resources import Resources, parse_size
from zenos.core.specs import CreateSpec, DeploymentSpec, ProgramSpec, TrainSpec
from zenos.core.task import (
    HOLDING,
    Deployment,
    Kind,
    Once,
    Principal,
    State,
    Task,
    TaskEvent,
    TaskSpec,
)
from zenos.core.thread_views import ProcessThreads
from zenos.core.wire import Chunk, GenerateRequest, Pause, Progress, Published, Stop
from zenos.kernel.accounts import Accounts
from zenos.kernel.control import Control, Inbox, Listening, View
from zenos.kernel.explanation import ended
from zenos.kernel.supervision import grace_s, saves
from zenos.models import footprint
from zenos.models.presets import check_arch, check_train
from zenos.models.registry import Registry
from zenos.store.base import Store
from zenos.workers.execution import Executor
from zenos.workers.outlook import Outlook
from zenos.workers.publishing import Publishing
from zenos.workers.router import Router

log = logging.getLogger(__name__)
Mode = Literal["suspend", "drain", "leave"]
SIGNAL_ROW_WAIT_S = 2.0  # a store that doesn't answer keeps nobody from ending the daemon


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
        self.going_down: Mode | None = None
        self._store = store
        self._inbox = inbox
        self._zygote_ready = zygote_ready
        self._started = time.monotonic()
        self._effects: set[asyncio.Task[None]] = set()
        self._outlook = Outlook()
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
        self.view.accounts.configure(config)
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
                    self._say_stop(name, grace_s, save=save)
                    work = executor.stop(name, generation, grace_s, save)
                    self._spawn(work, f"stop {name}")
                case PauseWorker(how="step", task=name) | ResumeWorker(how="step", task=name):
                    self._say_pause(name, on=isinstance(action, PauseWorker))
                case PauseWorker(task=name, generation=generation, how=how, grace_s=grace_s):
                    self._spawn(executor.pause(name, generation, how, grace_s), f"pause {name}")
                case ResumeWorker(task=name, generation=generation):
                    self._spawn(executor.resume(name, generation), f"resume {name}")
                case MakeRoom(task=name, generation=generation, on=on):
                    executor.make_room(name, generation, on=on)
                case Update(deployment=deployment):
                    self.publishing.tell(deployment)
                case Forget(tasks=tasks):
                    self._spawn(asyncio.to_thread(executor.forget, tasks), "forget")
                case Discard(tasks=tasks):
                    self._spawn(asyncio.to_thread(executor.discard, tasks), "discard")
                case _:
                    raise TypeError(f"no effect for {type(action).__name__}")
            failpoints.passing("loop.action")

    def _say_stop(self, task: str, grace_s: float, *, save: bool) -> None:
        """To a worker that is connected, before it gets SIGTERM, which alone means to save."""
        word = msgspec.msgpack.encode(Stop(save=save, grace_s=grace_s))
        with suppress(BusyError):  # a worker that reads nothing still gets the signal
            self._send(task, "command", "stop", word, 100)

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
            # It was told before it could hear.
            self._say_stop(task, grace_s(known, self.config), save=saves(known))
        elif known is not None and known.generation == generation and known.kind is Kind.TRAIN:
            self._say_pause(task, on=known.state in (State.PAUSING, State.PAUSED))
        if known is not None and known.kind is Kind.SERVE:
            self.publishing.tell_replica(known)
        self.router.on_connect()

    def may_use(self, task: str, topic: str) -> bool:
        """Whether a task was granted that topic of the bus, or one above it."""
        known = self.view.tasks.get(task)
        if known is None:
            return False
        if is_internal(topic):  # of a host of calls, its own alone
            return known.kind is Kind.CALL and topic == calls_topic(task)
        if not isinstance(known.spec.work, ProgramSpec):
            return False
        granted = known.spec.work.topics
        return any(topic == name or topic.startswith(f"{name}/") for name in granted)

    def may_be_frozen(self, task: str) -> bool:
        """Whether a task's programs may be stopped because somebody has paused it."""
        known = self.view.tasks.get(task)
        return known is not None and known.state in (State.PAUSING, State.PAUSED)

    def _connected(self, task: str) -> bool:
        return self.broker is not None and self.broker.connected(task)

    def _send(self, task: str, kind: MessageKind, topic: str, body: bytes, priority: int) -> bool:
        return self.broker is not None and self.broker.send(
            task, kind, topic, body, priority=priority
        )

    # -- zenos.api.ports.System

    async def submit(self, spec: TaskSpec, principal: Principal, key: str | None) -> Task:
        exact, warning = await self._exact(spec)
        return await self.control.submit(exact, principal, key, spec, warning)

    async def submit_batch(self, spec: BatchSpec, principal: Principal, key: str | None) -> Batch:
        exact = [await self._exact(task) for task in spec.tasks]
        made = BatchSpec(tasks=tuple(task for task, _ in exact))
        warnings = {task.name: warning for task, warning in exact if warning}
        return await self.control.submit_batch(made, principal, key, spec, warnings)

    async def _exact(self, spec: TaskSpec) -> tuple[TaskSpec, str]:
        """A task with the versions that its models mean now, and what speaks against it."""
        if not isinstance(spec.work, TrainSpec | CreateSpec):
            return spec, ""
        if isinstance(spec.work, TrainSpec):
            check_train(spec.work)
        else:
            check_arch(spec.work.arch, spec.work.settings)
        return await asyncio.to_thread(self._pinned, spec, spec.work)

    def _pinned(self, spec: TaskSpec, work: TrainSpec | CreateSpec) -> tuple[TaskSpec, str]:
        """With the versions that its models mean now: later ones are not what was asked for.

        And what speaks against it, in words.
        """
        found = {
            name: self.registry.resolve(ref)
            for name in ("base", "tokenizer")
            if (ref := getattr(work, name, None)) is not None
        }
        warning = ""
        if isinstance(work, TrainSpec):
            wants, base = spec.resources, found.get("base")
            warning = footprint.training_warning(work, wants.memory, base, wants.gpu)
        exact = {name: version.ref for name, version in found.items()}
        return msgspec.structs.replace(spec, work=msgspec.structs.replace(work, **exact)), warning

    async def cancel(self, task: str, principal: Principal, once: Once | None = None) -> Task:
        return await self.control.cancel(task, principal, once)

    async def submit_array(self, spec: ArraySpec, principal: Principal, key: str | None) -> Array:
        return await self.control.submit_array(spec, principal, key)

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
        return await self._outlook.why(picture, task, self.progress(task))

    async def plan(self, ahead_s: float) -> Plan:
        return await self._outlook.plan(await self.control.look(), ahead_s)

    async def deploy(
        self, spec: DeploymentSpec, principal: Principal, key: str | None
    ) -> Deployment:
        spec.check()
        version = await asyncio.to_thread(self.registry.resolve, spec.model)
        memory = parse_size(spec.memory) if spec.memory is not None else None
        version.check_servable(spec.context, memory)
        event = ev.Deploy(
            request=0,
            spec=spec,
            version=version.ref,
            memory=version.replica_bytes,
            build=version.build,
            warning=footprint.serving_warning(spec, version, memory, self.view.nodes.values()),
            principal=principal,
            key=key,
        )
        return await self.control.deploy(event)

    async def roll_back(
        self, name: str, to: int | None, principal: Principal, once: Once | None = None
    ) -> Deployment:
        event = await self.publishing.rollback(name, to, principal)
        return await self.control.roll_back(msgspec.structs.replace(event, once=once))

    async def undeploy(self, name: str, principal: Principal) -> Deployment:
        return await self.control.undeploy(name, principal)

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
        return await self._store.events(after_seq, limit, task)

    async def audit(self, query: AuditQuery) -> list[AuditRow]:
        return await self._store.audit(query)

    async def recall(self, principal: Principal, once: Once) -> str | None:
        return await self.control.recall(principal, once)

    async def record(self, event: ev.Record) -> None:
        await self.control.record(event)

    def subscribe(self) -> AbstractAsyncContextManager[Listening]:
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
            "disk_free": free_bytes(self.home.root),
            "zygote_ready": bool(self._zygote_ready()),
            "going_down": self.going_down,
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

    def end_by_signal(self) -> None:
        """SIGTERM or SIGINT: as `shut_down`, after a row of it, if that can be written."""
        self._spawn(self._end_by_signal(), "end by a signal")

    async def _end_by_signal(self) -> None:
        row = ev.Record(
            request=0, principal=Principal(), action="down", subject="suspend", via="signal"
        )
        with suppress(ZenosError, TimeoutError):
            async with asyncio.timeout(SIGNAL_ROW_WAIT_S):
                await self.record(row)
        self.shut_down("suspend")

    def shut_down(self, mode: Mode) -> None:
        """Ask the daemon to go down; returns at once. The last word counts: a drain can be cut."""
        self.going_down = mode
        self.stop_requests.put_nowait(mode)
