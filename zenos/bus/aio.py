"""The bus for event loops: `zenos.bus.connect_async()`. What it does is in session.py too."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from zenos.bus import address
from zenos.bus.aio_topics import Topic
from zenos.bus.bodies import Own
from zenos.bus.checks import checked
from zenos.bus.deadlines import Deadlines
from zenos.bus.envelope import WELCOME, FrameError, Hello, body_of, with_body
from zenos.bus.inbox import Slot
from zenos.bus.session import Session, Steps
from zenos.bus.stream import FrameReader, FrameWriter, Heartbeat, Welcome, hello_of
from zenos.bus.sync import BACKOFF_S, BACKOFF_S_MAX, CONNECT_S
from zenos.core import limits
from zenos.core.errors import NoDaemonError, UnauthorizedError, UnavailableError
from zenos.core.messages import check_topic

T = TypeVar("T")


@checked
def connect_async(
    *,
    home: str | Path | None = None,
    timeout_s: float = CONNECT_S,
    shared_bytes_max: int = limits.SHARED_BYTES_MAX,
) -> Connecting:
    """As `connect`, for the event loop that runs.

    Used in `async with connect_async() as bus`, or `bus = await connect_async()` and at the end
    `await bus.close()`.
    """
    return Connecting(_connect(home, timeout_s, shared_bytes_max))


async def _connect(home: str | Path | None, timeout_s: float, shared_bytes_max: int) -> AsyncBus:
    where, hello = address.find(home)
    bus = AsyncBus(where, hello, shared_bytes_max=shared_bytes_max)
    try:
        await bus.run(bus.session.arrive(time.monotonic() + timeout_s))
    except BaseException as error:
        await bus.close()
        if isinstance(error, NoDaemonError) and bus.was_refused:
            raise UnauthorizedError(
                "cannot use the bus: the daemon doesn't know this token; is ZENOS_HOME its home, "
                "and this task still its own?"
            ) from None
        raise
    return bus


class Connecting(Coroutine[Any, Any, "AsyncBus"]):
    """A connection that is being made: to be awaited, or used in `async with`."""

    def __init__(self, work: Coroutine[Any, Any, AsyncBus]) -> None:
        self._work = work
        self._bus: AsyncBus | None = None

    def __await__(self) -> Generator[Any, Any, AsyncBus]:
        return self._work.__await__()

    # What tasks do with coroutines.

    def send(self, value: Any) -> Any:
        """See `coroutine.send`."""
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        """See `coroutine.throw`."""
        return self._work.throw(*error)

    def close(self) -> None:
        """See `coroutine.close`."""
        self._work.close()

    async def __aenter__(self) -> AsyncBus:
        self._bus = await self._work
        return self._bus

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bus is not None:
            await self._bus.close()


class AsyncBus:
    """A connection that comes back by itself. Belongs to one event loop."""

    def __init__(
        self,
        path: Path | Callable[[], Path],
        hello: Hello,
        *,
        shared_bytes_max: int = limits.SHARED_BYTES_MAX,
    ) -> None:
        # Asked for at each connection: the next daemon may listen elsewhere.
        self._where = path if callable(path) else lambda: path
        self._hello = hello
        self._loop = asyncio.get_running_loop()
        self.session = Session(hello.generation, self._mark, gathers=True)
        self.own = Own(shared_bytes_max)
        self.was_refused = False
        self._socket: socket.socket | None = None
        self._reader: FrameReader | None = None
        self._writer: FrameWriter | None = None
        self._deadlines = Deadlines(self._loop)
        self._marked = False
        self._unheard = 0  # beats since the broker was heard last
        self._beating: asyncio.TimerHandle | None = None
        self._doing: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self._connecting = self._loop.create_task(self._connect_for_ever())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def name(self) -> str:
        """What messages from here say as their sender."""
        return self.session.name

    @property
    def task(self) -> str:
        """The task that this belongs to; empty outside of any. Its own topics begin with it."""
        return self._hello.task

    def topic(self, name: str, *, durable: bool = False, prefetch: int = 1) -> Topic:
        """A topic. prefetch: how many messages may come before they are asked for."""
        return Topic(self, check_topic(name), durable=durable, prefetch=prefetch)

    async def close(self) -> None:
        """Write what can be written at once, and end. What is leased goes to others."""
        if self.session.closed is not None:
            return
        self.session.hand_back()
        self._write()
        self.own.close()
        self.session.close(UnavailableError("cannot use the bus: it was closed"))
        self._drop_connection()
        ending = [self._connecting, *self._doing]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        self._deadlines.close()

    async def run(self, steps: Steps[T]) -> T:
        """Do the steps of an operation, waiting where they wait."""
        try:
            slot, deadline = next(steps)
            while True:
                slot, deadline = steps.send(await self._wait(slot, deadline))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()

    def begin(self, doing: Coroutine[Any, Any, None]) -> Awaitable[None]:
        """Do something that goes on whether it is awaited or not; at most until the bus closes."""
        task = self._loop.create_task(doing)
        self._doing.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._doing.discard(task)
            if not task.cancelled():
                task.exception()  # for who awaits it; nobody else need hear

        task.add_done_callback(end)
        return task

    def done(self) -> Awaitable[None]:
        """What needn't be waited for."""
        future: asyncio.Future[None] = self._loop.create_future()
        future.set_result(None)
        return future

    async def in_thread(
        self, make: Callable[..., T], *arguments: Any, drop: Callable[[T], object]
    ) -> T:
        """What may take long, in a thread. drop: what to do with it if nobody waits any more."""
        future = self._loop.run_in_executor(None, make, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: done.exception() or drop(done.result()))
            raise

    def act(self, do: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do something that needn't be waited for."""
        return do(self.session, *arguments, **options)

    async def _wait(self, slot: Slot, deadline: float | None) -> bool:
        if slot.done:
            return True
        future: asyncio.Future[bool] = self._loop.create_future()
        slot.on_done = lambda: None if future.done() else future.set_result(True)
        if deadline is not None:
            self._deadlines.watch(future, deadline)
        try:
            return await future or slot.done
        except BaseException:
            slot.abandon()
            raise

    # -- the connection

    async def _connect_for_ever(self) -> None:
        wait_s = BACKOFF_S
        while self.session.closed is None:
            self._lost.clear()
            try:
                async with asyncio.timeout(CONNECT_S):
                    welcome = await self._enter()
            except (OSError, TimeoutError, FrameError):
                self._drop_connection()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S_MAX)
                continue
            wait_s = BACKOFF_S
            self.session.connect(welcome.name, welcome.policy, several=welcome.several)
            self._write()
            if welcome.heartbeat is not None:
                self._unheard = 0
                self._beat(welcome.heartbeat)
            await self._lost.wait()

    async def _enter(self) -> Welcome:
        connection = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        await self._loop.sock_connect(connection, str(self._where()))
        await self._loop.sock_sendall(connection, hello_of(self._hello, beats=True, several=True))
        reader = self._reader = FrameReader(connection)
        self._writer = FrameWriter(connection, self.session.output)
        welcomed: asyncio.Future[Welcome] = self._loop.create_future()
        self._loop.add_reader(connection, self._readable, reader, welcomed)
        return await welcomed

    def _readable(self, reader: FrameReader, welcomed: asyncio.Future[Welcome]) -> None:
        """Take what has come, first of all the welcome."""
        if reader is not self._reader:
            return
        try:
            frames = reader.read()
            if frames is None:
                raise FrameError("cannot go on: the connection has ended")
            self._unheard = 0
            for frame in frames:
                if frame[0].topic == WELCOME and not welcomed.done():
                    welcomed.set_result(body_of(with_body(*frame[:2]), Welcome))
                else:
                    self.session.take(*frame)
        except BlockingIOError:
            return
        except (OSError, FrameError) as error:
            if welcomed.done():
                self._end()
                return
            self.was_refused = True
            welcomed.set_exception(error)
            if self._socket is not None:
                self._loop.remove_reader(self._socket)

    def _beat(self, heartbeat: Heartbeat) -> None:
        """Say that we are there, and ask whether the broker is. Gives up one that never answers.

        Beats are counted, and not the time: were we stopped ourselves, that is not its silence.
        """
        self._beating = None
        if self._unheard * heartbeat.every_s > heartbeat.silent_s:
            self._end()
            return
        self._unheard += 1
        if not self.session.output:  # else enough is said anyway
            self.session.emit("beat", "", kind="command", to=1)
        self._beating = self._loop.call_later(heartbeat.every_s, self._beat, heartbeat)

    def _end(self) -> None:
        """The connection has ended: another one is looked for."""
        self._drop_connection()
        self.session.disconnect()
        self._lost.set()

    def _drop_connection(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
        self._socket = self._reader = self._writer = None

    # -- writing

    def _mark(self) -> None:
        """Something is to be sent: with what else this turn of the loop brings."""
        if not self._marked:
            self._marked = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._marked = True  # what is gathered is written below
        self.session.gather()
        self._marked = False
        writer, connection = self._writer, self._socket
        if writer is None or connection is None or not self.session.is_connected:
            return
        try:
            done = writer.write()
        except OSError:
            self._end()
            return
        if done:
            self._loop.remove_writer(connection)
        else:
            self._loop.add_writer(connection, self._write)
