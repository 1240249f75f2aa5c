"""The router by itself: requests that wait for a replica, their times, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.api.conftest import until
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import Changes, Snapshot
from zenos.core.config import Config
from zenos.core.errors import DeadlineError, UnavailableError, WorkerError
from zenos.core.specs import DeploymentSpec, ServeSpec
from zenos.core.task import Deployment, Kind, Principal, State, Task, TaskSpec
from zenos.core.wire import Abort, Chunk, GenerateRequest, Times, Usage
from zenos.kernel.control import View
from zenos.workers import router as module
from zenos.workers.router import Router

USAGE = Usage(prompt_tokens=1, completion_tokens=1)


class World:
    """A router, with what it is told of and what it asks for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.view = View(Snapshot())
        self.posted: list[ev.Event] = []
        self.sent: list[tuple[str, str, Any]] = []
        self.arrived = asyncio.Event()
        self.asked = asyncio.Event()
        version: Any = SimpleNamespace(
            ref="m:1", replica_bytes=1, build="b", check_servable=lambda: None
        )
        self.router = Router(
            Config(),
            self.view,
            self.posted.append,
            self._demand,
            self._send,
            lambda task: True,
            lambda name: version,
        )

    async def _demand(self, event: ev.Demand) -> Deployment:
        self.deployment = Deployment(
            name="m",
            spec=DeploymentSpec(model="m"),
            principal=Principal(),
            created=0.0,
            used=0.0,
            replicas=["t1"],
        )
        self.view.apply(Changes(deployments={"m": self.deployment}))
        self.posted.append(event)
        self.asked.set()
        return self.deployment

    def _send(self, task: str, kind: str, topic: str, body: bytes, priority: int) -> bool:
        kinds: dict[str, Any] = {"request": GenerateRequest, "abort": Abort}
        self.sent.append((task, topic, msgspec.msgpack.decode(body, type=kinds[topic])))
        self.arrived.set()
        return True

    def ready(self, replica: str = "t1") -> None:
        """The replica has loaded."""
        task = Task(
            id=replica,
            spec=TaskSpec(work=ServeSpec(model="m:1", deployment="m")),
            principal=Principal(),
            submitted=0.0,
            kind=Kind.SERVE,
            state=State.RUNNING,
            ready=True,
        )
        self.view.apply(Changes(tasks={replica: task}))

    def answer(self, replica: str = "t1", **said: Any) -> None:
        self.router.on_chunk(replica, msgspec.msgpack.encode(Chunk(request="r", **said)))

    def generate(self, request: str = "r", deadline_s: float = 600.0) -> AsyncIterator[Chunk]:
        return self.router.generate("m", GenerateRequest(id=request), Principal(), deadline_s)

    def used(self) -> list[ev.Used]:
        return [event for event in self.posted if isinstance(event, ev.Used)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


async def soon(chunks: AsyncIterator[Chunk]) -> Chunk:
    async with asyncio.timeout(10):
        return await anext(chunks)


async def test_the_times_of_a_request_are_all_that_has_passed(world: World) -> None:
    chunks = world.generate()
    first = asyncio.ensure_future(soon(chunks))
    await world.asked.wait()
    world.now += 7  # it is loaded
    world.ready()
    await world.arrived.wait()
    world.now += 3  # it waits for a slot, and is computed for one second
    world.answer(text="a", times=Times(compute_s=1.0))
    assert (await first).times == Times(load_s=7.0, queue_s=2.0, compute_s=1.0)
    world.now += 5
    world.answer(text="b")
    assert (await soon(chunks)).times is None
    world.answer(finish="length", usage=USAGE, times=Times(compute_s=6.0))
    assert (await soon(chunks)).times == Times(load_s=7.0, queue_s=2.0, compute_s=6.0)


async def test_what_was_computed_in_vain_counts_as_queue(world: World) -> None:
    chunks = world.generate()
    first = asyncio.ensure_future(soon(chunks))
    await world.asked.wait()
    world.ready()
    await world.arrived.wait()
    world.answer(text="a", times=Times(compute_s=0.0))
    assert (await first).times == Times(load_s=0.0, queue_s=0.0, compute_s=0.0)
    world.answer(again=True)
    assert (await soon(chunks)).again
    world.now += 5
    world.answer(finish="length", usage=USAGE, times=Times(compute_s=1.0))
    assert (await soon(chunks)).times == Times(load_s=0.0, queue_s=4.0, compute_s=1.0)


async def test_a_client_that_goes_away_while_it_waits_gives_up_its_claim(world: World) -> None:
    first, second = world.generate(), world.generate("s")
    waiting = [asyncio.ensure_future(soon(chunks)) for chunks in (first, second)]
    await until(lambda: bool(world.used()) and world.used()[-1].waiting == 2)
    for chunks, left in ((waiting[0], 1), (waiting[1], 0)):
        chunks.cancel()
        await asyncio.gather(chunks, return_exceptions=True)
        await until(lambda left=left: world.used()[-1].in_flight == left)  # type: ignore[misc]
        assert world.used()[-1] == ev.Used(name="m", in_flight=left, waiting=left)
    world.ready()
    await asyncio.sleep(0)
    assert not world.sent


async def test_a_model_that_is_not_loaded_in_time_is_an_error_that_says_so(world: World) -> None:
    with pytest.raises(DeadlineError, match="m was not loaded before the deadline") as caught:
        await soon(world.generate(deadline_s=0.01))
    assert caught.value.retry_after_s
    assert world.used()[-1] == ev.Used(name="m", in_flight=0, waiting=0)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("out of memory", "cannot serve m: out of memory"),
        ("cannot open m:1: a file is gone", "cannot open m:1: a file is gone"),
        ("cannot serve m:1: it is no decoder", "cannot serve m:1: it is no decoder"),
    ],
)
async def test_why_a_model_cannot_be_loaded_is_said_once(
    world: World, error: str, says: str
) -> None:
    first = asyncio.ensure_future(soon(world.generate()))
    await world.asked.wait()
    world.view.apply(Changes(deployments={"m": replace(world.deployment, error=error)}))
    with pytest.raises(WorkerError) as caught:
        await first
    assert caught.value.message == says


async def test_who_finds_a_replica_does_not_wait_for_one(world: World) -> None:
    await world._demand(ev.Demand(name="m"))
    world.ready()
    answer = asyncio.ensure_future(soon(world.generate()))
    await world.arrived.wait()
    world.answer(finish="length", usage=USAGE, times=Times(compute_s=0.0))
    assert (await answer).finish == "length"
    assert all(used.waiting == 0 for used in world.used())


async def test_what_a_replica_that_is_going_down_refuses_another_answers(world: World) -> None:
    await world._demand(ev.Demand(name="m"))
    world.ready()
    answer = asyncio.ensure_future(soon(world.generate()))
    await world.arrived.wait()
    # It was told to end before we have read so: here it is as ready as before.
    world.posted.clear()
    world.asked.clear()
    world.answer(refused=True)
    await world.asked.wait()
    assert world.used()[-1] == ev.Used(name="m", in_flight=1, waiting=1)
    world.arrived.clear()
    more = msgspec.structs.replace(world.deployment, replicas=["t1", "t2"])
    world.view.apply(Changes(deployments={"m": more}))
    world.ready("t2")
    await world.arrived.wait()
    assert [task for task, topic, _ in world.sent if topic == "request"] == ["t1", "t2"]
    world.answer("t2", finish="length", usage=USAGE)
    assert (await answer).finish == "length"
    assert not any(topic == "abort" for _, topic, _ in world.sent)


async def begun(world: World) -> AsyncIterator[Chunk]:
    """An answer of which the client has read the first word."""
    await world._demand(ev.Demand(name="m"))
    world.ready()
    chunks = world.generate()
    first = asyncio.ensure_future(soon(chunks))
    await world.arrived.wait()
    world.answer(text="a")
    assert (await first).text == "a"
    return chunks


async def test_the_replica_hears_of_a_client_that_goes_away(world: World) -> None:
    chunks = await begun(world)
    await chunks.aclose()  # type: ignore[attr-defined]
    assert world.sent[-1] == ("t1", "abort", Abort(request="r"))
    assert world.used()[-1].in_flight == 0


async def test_a_client_that_reads_too_slowly_is_cut_and_frees_its_slot(world: World) -> None:
    chunks = await begun(world)
    for _ in range(limits.STREAM_CHUNKS_WAITING_MAX):
        world.answer(text="b")
    assert world.sent[-1][1] == "request"
    for _ in range(3):
        world.answer(text="c")
    assert [topic for _, topic, _ in world.sent] == ["request", "abort"]
    with pytest.raises(UnavailableError, match="the client reads too slowly"):
        _ = [chunk async for chunk in chunks]
    assert world.used()[-1].in_flight == 0
