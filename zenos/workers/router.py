"""The router: brings requests to ready replicas and their answers back.

It lives in the daemon's event loop, beside the kernel's loop: tokens don't go through the loop, but
what needs a decision does (`Demand`, `Used`). A request waits here, with its deadline, until a
replica is ready; its client sees nothing but time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

import msgspec
from msgspec.structs import replace

from zenos.bus.envelope import Kind as MessageKind
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.config import Config
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    InvalidError,
    WorkerError,
    from_code,
)
from zenos.core.names import ModelRef
from zenos.core.specs import DeploymentSpec
from zenos.core.task import Deployment, Principal, State, Task
from zenos.core.wire import Abort, Chunk, GenerateRequest
from zenos.kernel.control import View
from zenos.models.records import ModelVersion

Send = Callable[[str, MessageKind, str, bytes, int], bool]  # task, kind, topic, body, priority


RETRY_AFTER_S: Final = 5.0  # the turn of a model that was not loaded in time may come by then


class Flight:
    """One request on its way: the chunks that have arrived and were not read yet, bounded."""

    def __init__(self, request: GenerateRequest, replica: str) -> None:
        self.request = request
        self.replica = replica
        self.chunks: asyncio.Queue[Chunk] = asyncio.Queue(limits.STREAM_CHUNKS_WAITING_MAX)
        self.lost = False  # the replica has gone
        self.refused = False  # it is going, and takes nothing more
        self.cut = False  # nothing more is taken in
        self.delivered = False  # something was given to the client

    def end(self, error: str) -> None:
        """End with an error that the reader finds after what is there already."""
        self.cut = True
        if self.chunks.full():
            self.chunks.get_nowait()
        self.chunks.put_nowait(Chunk(request=self.request.id, error=error, code="unavailable"))


class Stopwatch:
    """Where the time of one request goes; see `Times`."""

    def __init__(self) -> None:
        self._arrived = time.monotonic()
        self._load_s = 0.0
        self._queue_s = math.inf

    def loaded(self, begun: float) -> None:
        """It has waited for a replica since then."""
        self._load_s += time.monotonic() - begun

    def complete(self, chunk: Chunk) -> Chunk:
        """The chunk, with all of its times where the worker has said its own.

        What is neither load nor compute is queue, until the first piece of what counts; together
        they are never more than has passed. So what was computed in vain, because a replica ended
        or a new version came, and the way to the worker are in it too.
        """
        if chunk.again:
            self._queue_s = math.inf
        times = chunk.times
        if times is None:
            return chunk
        rest_s = time.monotonic() - self._arrived - self._load_s - times.compute_s
        self._queue_s = max(0.0, min(self._queue_s, rest_s))
        return replace(chunk, times=replace(times, queue_s=self._queue_s, load_s=self._load_s))


class Router:
    """Requests in flight, by deployment and replica."""

    def __init__(
        self,
        config: Config,
        view: View,
        post: Callable[[ev.Event], None],
        demand: Callable[[ev.Demand], Awaitable[Deployment]],
        send: Send,
        connected: Callable[[str], bool],
        find_model: Callable[[str], ModelVersion],
    ) -> None:
        self._config = config
        self._view = view
        self._post = post
        self._demand = demand
        self._send = send
        self._connected = connected
        self._arrived = asyncio.Event()
        self._find_model = find_model
        self._flights: dict[str, Flight] = {}
        self._per_replica: dict[str, int] = {}
        self._per_deployment: dict[str, int] = {}
        self._waiting: dict[str, int] = {}  # of those, for a replica

    def configure(self, config: Config) -> None:
        """Go on with other settings."""
        self._config = config

    # -- what workers say

    def on_chunk(self, task: str, body: bytes) -> None:
        """A piece of an answer. A reader that is too slow loses its request, not its neighbours."""
        chunk = msgspec.msgpack.decode(body, type=Chunk)
        flight = self._flights.get(chunk.request)
        if flight is None or flight.replica != task or flight.cut:
            return
        if flight.chunks.full():
            flight.end("cannot go on: the client reads too slowly")
            self._abort(flight)
        else:
            flight.chunks.put_nowait(chunk)

    def on_gone(self, task: str) -> None:
        """A replica has gone: its requests fail, or try another if nothing was delivered yet."""
        for flight in self._flights.values():
            if flight.replica == task and not flight.cut:
                flight.lost = True
                flight.end("cannot finish the answer: its worker has ended; send it again")

    def on_connect(self) -> None:
        """A worker has connected: requests that wait for its replica can go."""
        self._arrived.set()
        self._arrived = asyncio.Event()

    # -- what clients ask

    async def generate(
        self, model: str, request: GenerateRequest, principal: Principal, deadline_s: float
    ) -> AsyncGenerator[Chunk]:
        """The answer to a request, chunk by chunk.

        Raises NotFoundError for an unknown model, BusyError when too many wait, DeadlineError when
        no replica is ready in time, and what the worker raised. Closing the iterator frees the
        slot.
        """
        watch = Stopwatch()
        name = await self._deployment_name(model)
        if self._per_deployment.get(name, 0) >= self._requests_max(name):
            raise BusyError(
                f"cannot take more requests for {name}: too many wait already", retry_after_s=1
            )
        deadline = time.monotonic() + deadline_s
        refusing = set[str]()
        self._count(name, +1)
        try:
            while True:
                begun = time.monotonic()
                replica = await self._ready_replica(name, model, principal, deadline, refusing)
                watch.loaded(begun)
                flight = Flight(request, replica)
                async with aclosing(self._fly(flight, deadline)) as chunks:
                    async for chunk in chunks:
                        flight.delivered = True
                        yield watch.complete(chunk)
                if flight.delivered or not flight.lost:
                    return
                if flight.refused:  # heard before we have read that it was told to end
                    refusing.add(replica)
        finally:
            self._count(name, -1)

    async def _fly(self, flight: Flight, deadline: float) -> AsyncGenerator[Chunk]:
        """Send the request to its replica and yield what comes back."""
        request, replica = flight.request, flight.replica
        self._flights[request.id] = flight
        self._per_replica[replica] = self._per_replica.get(replica, 0) + 1
        finished = False
        try:
            body = msgspec.msgpack.encode(request)
            if not self._send(replica, "data", "request", body, request.priority):
                flight.lost = True
                return
            while not finished:
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        chunk = await flight.chunks.get()
                except TimeoutError:
                    raise DeadlineError from None
                if chunk.error is not None:
                    finished = True
                    if flight.lost and not flight.delivered:
                        return
                    raise from_code(chunk.code or "worker", chunk.error)
                if chunk.refused:
                    flight.lost = flight.refused = True
                    return
                finished = chunk.usage is not None
                yield chunk
        finally:
            del self._flights[request.id]
            self._per_replica[replica] -= 1
            if self._per_replica[replica] == 0:
                del self._per_replica[replica]
            if not finished and not flight.lost:
                self._abort(flight)

    def _abort(self, flight: Flight) -> None:
        body = msgspec.msgpack.encode(Abort(request=flight.request.id))
        with suppress(BusyError):
            self._send(flight.replica, "command", "abort", body, flight.request.priority)

    # -- which replica

    async def _deployment_name(self, model: str) -> str:
        """The deployment that a request names: by its name, or by the model it serves.

        Raises NotFoundError when no such model is registered, InvalidError for one that doesn't
        generate text.
        """
        name = str(ModelRef.parse(model))
        if name not in self._view.deployments:
            version = await asyncio.to_thread(self._find_model, name)  # it reads files
            try:
                version.check_servable()
            except InvalidError as error:
                error.param = "model"
                raise
        return name

    def _requests_max(self, name: str) -> int:
        deployment = self._view.deployments.get(name)
        slots = deployment.spec.slots * deployment.spec.max_replicas if deployment else 0
        return limits.REQUESTS_WAITING_MAX + slots

    async def _ready_replica(
        self, name: str, model: str, principal: Principal, deadline: float, refusing: set[str]
    ) -> str:
        """The ready replica with the fewest requests; asks the kernel for one and waits for it.

        refusing: not one of these. Raises UnfittableError at once where no node can ever hold one.
        """
        replica = self._least_loaded(self._view.deployments.get(name), refusing)
        if replica is not None:
            return replica
        asked = False
        self._wait(name, +1)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while True:
                    deployment = self._view.deployments.get(name)
                    replica = self._least_loaded(deployment, refusing)
                    if replica is not None:
                        return replica
                    if not asked:
                        # Answered after the commit: the view shows what came of it by then.
                        await self._demand(await self._wanted(name, model, principal))
                        asked = True
                        continue
                    if deployment is not None and deployment.error:
                        error = deployment.error
                        known = error.startswith(("cannot serve", "cannot open"))
                        raise WorkerError(error if known else f"cannot serve {name}: {error}")
                    await self._change()
        except TimeoutError:
            raise DeadlineError(
                f"cannot answer in time: {name} was not loaded before the deadline; try again, "
                "or give it more time (timeout_s)",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        finally:
            self._wait(name, -1)

    async def _wanted(self, name: str, model: str, principal: Principal) -> ev.Demand:
        """That a model is wanted; with what it takes to make a deployment, should there be none.

        Always with that: one that we see may be forgotten by the time the kernel hears of this.
        """
        version = await asyncio.to_thread(self._find_model, model)
        return ev.Demand(
            name=name,
            spec=DeploymentSpec(model=model, keep_alive_s=self._config.keep_alive_s),
            version=version.ref,
            memory=version.replica_bytes,
            build=version.build,
            principal=principal,
        )

    async def _change(self) -> None:
        """Wait until something is committed, or a worker connects."""
        waits = {
            asyncio.ensure_future(self._view.changed()),
            asyncio.ensure_future(self._arrived.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _least_loaded(self, deployment: Deployment | None, refusing: set[str]) -> str | None:
        if deployment is None:
            return None
        replicas = (replica for replica in deployment.replicas if replica not in refusing)
        tasks = (self._view.tasks.get(replica) for replica in replicas)
        ready = [t.id for t in tasks if t is not None and _can_answer(t) and self._connected(t.id)]
        return min(ready, key=lambda t: self._per_replica.get(t, 0)) if ready else None

    def _count(self, name: str, change: int) -> None:
        _add(self._per_deployment, name, change)
        self._tell(name)

    def _wait(self, name: str, change: int) -> None:
        _add(self._waiting, name, change)
        self._tell(name)

    def _tell(self, name: str) -> None:
        """Have the kernel know how many there are: it makes room for those that wait."""
        in_flight, waiting = self._per_deployment.get(name, 0), self._waiting.get(name, 0)
        self._post(ev.Used(name=name, in_flight=in_flight, waiting=waiting))


def _add(counts: dict[str, int], name: str, change: int) -> None:
    count = counts.get(name, 0) + change
    if count:
        counts[name] = count
    else:
        del counts[name]


def _can_answer(task: Task) -> bool:
    return task.ready and task.state is State.RUNNING and not task.stopping
