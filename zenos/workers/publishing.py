"""Versions that trainings publish, on their way to the deployments that serve them.

The kernel decides which version a deployment serves; what is here carries the word. A training
says `published` once its version is registered, and says it again to each daemon that it meets. A
replica is told its version when that changes and whenever it connects. So a word that is lost with
a daemon or a worker is said again, and of several the newest counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import msgspec

from zenos.bus.envelope import Kind as MessageKind
from zenos.core import events as ev
from zenos.core.errors import BusyError, NotFoundError, ZenosError
from zenos.core.names import ModelRef
from zenos.core.resources import parse_size
from zenos.core.specs import ServeSpec, TrainSpec
from zenos.core.task import Deployment, Principal, Task
from zenos.core.wire import Held, Published, Weights
from zenos.kernel.control import View
from zenos.models import publishing
from zenos.models.registry import Registry

log = logging.getLogger(__name__)

Send = Callable[[str, MessageKind, str, bytes, int], bool]  # task, kind, topic, body, priority
_PRIORITY = 100


class Publishing:
    """Carries published versions to replicas, and removes those that nobody needs any more."""

    def __init__(
        self, view: View, registry: Registry, post: Callable[[ev.Event], None], send: Send
    ) -> None:
        self._view = view
        self._registry = registry
        self._post = post
        self._send = send

    async def heard(self, task: Task, said: Published) -> None:
        """A training has published a version: tell the kernel, and tidy up behind it."""
        work = task.spec.work
        if not isinstance(work, TrainSpec) or not work.publish:
            log.warning("%s published %s unasked: left out", task.id, said.version)
            return
        try:
            version = await asyncio.to_thread(self._registry.resolve, said.version)
        except ZenosError as error:
            log.warning("%s published what cannot be served: %s", task.id, error)
            return
        if version.name not in (work.publish, work.model) or version.lineage.task != task.id:
            log.warning("%s published %s, which is not its own: left out", task.id, version.ref)
            return
        self._post(
            ev.Published(
                version=version.ref,
                memory=version.replica_bytes,
                build=version.build,
                task=task.id,
            )
        )
        self._tell_held(task, version.name)
        await asyncio.to_thread(self._remove_surplus, task.id, work, self._in_use())

    def _tell_held(self, task: Task, model: str) -> None:
        """Say to a training that somebody has rolled back what it publishes."""
        for deployment in self._view.deployments.values():
            if deployment.pinned and ModelRef.parse(deployment.spec.model).name == model:
                held = Held(deployment=deployment.name, version=deployment.version)
                self._tell(task.id, "held", held)

    def _in_use(self) -> set[str]:
        used = {deployment.version for deployment in self._view.deployments.values()}
        for task in self._view.tasks.values():
            if not task.is_ended:
                work = task.spec.work
                used |= {str(getattr(work, name, "")) for name in ("model", "base", "tokenizer")}
        return used

    def _remove_surplus(self, task: str, work: TrainSpec, used: set[str]) -> None:
        name = work.publish or ""
        try:
            found = publishing.surplus(self._registry.list(), name, task, work.publish_keep, used)
            for ref in found:
                with suppress(NotFoundError):
                    self._registry.remove(ref)
        except (ZenosError, OSError) as error:
            log.warning("old versions of %s stay: %s", name, error)

    # -- to replicas

    def tell(self, deployment: Deployment) -> None:
        """Tell all replicas of a deployment which version to serve."""
        for replica in deployment.replicas:
            task = self._view.tasks.get(replica)
            if task is not None and not task.is_ended:
                self._say(task, deployment)

    def tell_replica(self, task: Task) -> None:
        """Tell a replica that has connected."""
        work = task.spec.work
        name = work.deployment if isinstance(work, ServeSpec) else ""
        deployment = self._view.deployments.get(name)
        if deployment is not None and deployment.turn and task.id in deployment.replicas:
            self._say(task, deployment)

    def _say(self, task: Task, deployment: Deployment) -> None:
        work = task.spec.work
        # One of another build is being replaced, and answers as it is until then.
        if isinstance(work, ServeSpec) and work.build == deployment.build:
            self._tell(
                task.id,
                "weights",
                Weights(version=deployment.version, turn=deployment.turn, source=deployment.source),
            )

    def _tell(self, task: str, topic: str, body: msgspec.Struct) -> None:
        with suppress(BusyError):  # who reads nothing is told when it connects again
            self._send(task, "state", topic, msgspec.msgpack.encode(body), _PRIORITY)

    # -- back

    async def rollback(self, name: str, to: int | None, principal: Principal) -> ev.Rollback:
        """What the kernel is to do for `zenos rollback`; NotFoundError, InvalidError."""
        deployment = self._view.deployments.get(name)
        if deployment is None:
            raise NotFoundError(f"cannot find a deployment of {name!r}: it isn't served")
        model = ModelRef.parse(deployment.spec.model).name
        served = deployment.version or deployment.spec.model
        current = await asyncio.to_thread(self._registry.resolve, served)
        versions = await asyncio.to_thread(self._registry.list)
        ref = publishing.target(versions, model, current.version, to)
        version = await asyncio.to_thread(self._registry.resolve, ref)
        spec = deployment.spec
        memory = parse_size(spec.memory) if spec.memory is not None else None
        version.check_servable(spec.context, memory)
        return ev.Rollback(
            request=0,
            name=name,
            version=version.ref,
            memory=version.replica_bytes,
            build=version.build,
            principal=principal,
        )
