"""A broker in a thread of its own, and programs that are connected to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zenos.bus.broker import Broker
from zenos.bus.durable_topics import DurableTopics
from zenos.bus.envelope import Envelope, Hello
from zenos.bus.stream import Heartbeat
from zenos.bus.sync import Bus
from zenos.core.clock import SystemClock
from zenos.core.messages import TopicSettings
from zenos.store.memory import MemoryStore

T = TypeVar("T")
GRANTS = {("t1", "shared")}


class Station:
    """A broker with durable topics in memory. Any token but `wrong` is right."""

    def __init__(
        self, path: Path, heartbeat: Heartbeat | None = None, **settings: TopicSettings
    ) -> None:
        self.path = path
        self.heartbeat = heartbeat
        self.paused: set[str] = set()  # tasks that may be frozen
        self.store = MemoryStore()
        self.heard: list[tuple[str, Envelope]] = []  # what the daemon was told
        self.gone: list[tuple[str, str]] = []
        self._settings = settings
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main)
        self._clients = ExitStack()
        self.start()

    def start(self) -> None:
        """Run, with what was remembered."""
        self._ready = Future()
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        self._ready.result(30)

    def stop(self) -> None:
        """Cut all connections, and end."""
        self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)

    def close(self) -> None:
        self._clients.close()
        if self._thread.is_alive():
            self.stop()

    def do(self, what: Callable[[], T]) -> T:
        """Do something in the broker's thread."""

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def connect(self, task: str = "", token: str = "right") -> Bus:
        """A program, closed at the end."""
        hello = Hello(task=task, generation=1 if task else 0, token=token, program=True)
        return self._clients.enter_context(Bus(self.path, hello, timeout_s=30))

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        messages = await self.store.load_messages()
        clock = SystemClock(floor=(await self.store.load()).now)
        topics = self.topics = DurableTopics(self.store, clock, messages, self.settings)
        looping = asyncio.create_task(topics.run())
        self.broker = Broker(
            lambda task, generation, token: token != "wrong",
            lambda task, _, envelope: self.heard.append((task, envelope)),
            on_program_gone=lambda task, name: self.gone.append((task, name)),
            durable=topics,
            may_use=lambda task, topic: (task, topic) in GRANTS,
            settings=self.settings,
            heartbeat=self.heartbeat,
            is_paused=lambda task: task in self.paused,
        )
        await self.broker.start(self.path)
        self._ready.set_result(None)
        await self._stopped.wait()
        await self.broker.close()
        topics.close()
        await looping

    def requests(self) -> int:
        """How much peers have asked for and not been answered yet."""
        return sum(len(peer.requests) + peer.parts for peer in self.broker._peers)

    def settings(self, topic: str) -> TopicSettings:
        return self._settings.get(topic, TopicSettings())


@contextmanager
def station(
    path: Path, heartbeat: Heartbeat | None = None, **settings: TopicSettings
) -> Iterator[Station]:
    """A broker while the block runs; afterwards nobody is connected, and nothing is left of it."""
    made = Station(path, heartbeat, **settings)
    try:
        yield made
    finally:
        made.close()
    assert not path.exists()


def in_thread(do: Callable[..., T], *arguments: Any) -> Future[T]:
    """What comes of it, from a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(do(*arguments))
        except Exception as error:  # noqa: BLE001 - it is raised where it is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
