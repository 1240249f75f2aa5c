"""uvicorn in the daemon's own event loop, over sockets that are bound already.

What uvicorn leaves open is closed here, per connection: time and size of the headers, clients that
take nothing of an answer, the number of connections. Signals are the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Generator, Sequence
from typing import Final

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from zenos.api import errors
from zenos.core import limits
from zenos.core.seldom import Seldom
from zenos.core.wording import counted

log = logging.getLogger(__name__)
KEEP_ALIVE_S: Final = 30
STOP_GRACE_S: Final = 5
# So long a connection has for its headers before it may have to make room for others.
SETTLED_S: Final = 1.0
LOG_EVERY_S: Final = 10.0  # between two lines about refused connections
REFUSED_S: Final = 2.0  # for who is refused to take the answer
_GONE: Final = getattr(select, "POLLRDHUP", 0)  # the client has closed


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with bounds."""

    _headers_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _refused = False
    _refusals = Seldom(LOG_EVERY_S)  # of all connections
    _silent_since = 0.0  # on the loop's clock: it was made, has its answer, or began to ask

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; with too many open another one makes room, or this one is refused."""
        super().connection_made(transport)
        self._silent_since = self.loop.time()
        if self._too_many() and not self._make_room():
            self._refuse()
            return
        self._headers_timer = self.loop.call_later(limits.HEADER_TIMEOUT_S, transport.abort)

    def _too_many(self) -> bool:
        if len(self.connections) <= limits.CONNECTIONS_MAX:
            return False
        return len(self.connections) - self._refused_count() > limits.CONNECTIONS_MAX

    def _refused_count(self) -> int:
        return sum(one._refused for one in self.connections)  # type: ignore[union-attr]

    def _make_room(self) -> bool:
        """Close one connection on which nothing is asked; whether there was one.

        1. Those that are kept alive between two requests, the longest idle first.
        2. Those that have kept us waiting for longer than SETTLED_S, likewise.
        None whose next bytes are here already: its client would not know what became of them.
        """
        others: list[BoundedProtocol] = [c for c in self.connections if c is not self]  # type: ignore[misc]
        idle = [c for c in others if c.is_idle]
        settled = self._silent_since - SETTLED_S
        slow = [c for c in others if c.is_slow and c._silent_since <= settled]
        for one in (*sorted(idle, key=_silence), *sorted(slow, key=_silence)):
            if not _has_unread(one.transport):
                # Its end is told to it by and by; it counts no more from now on.
                self.connections.discard(one)
                one.transport.abort()
                return True
        return False

    def _refuse(self) -> None:
        """Say that there is no room, and close once the client has heard it, or soon.

        A client that still writes when this side is closed may lose the answer to a reset. Those of
        a flood, of which too many would be waited for, are closed at once.
        """
        if count := self._refusals.times(self.loop.time()):
            refused = counted(count, "connection")
            log.info("refused %s: %d are open", refused, limits.CONNECTIONS_MAX)
        waited_for = self._refused_count()
        self._refused = True
        self._write(
            errors.answer(
                503,
                "busy",
                f"cannot take more than {limits.CONNECTIONS_MAX} connections: try again shortly",
                headers={"Retry-After": "1"},
            )
        )
        if waited_for < limits.CONNECTIONS_REFUSED_MAX:
            self.transport.write_eof()
            self._drain_timer = self.loop.call_later(REFUSED_S, self.transport.abort)
        else:
            self.connections.discard(self)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Of who was refused nothing is read any more."""
        if not self._refused:
            super().data_received(data)

    @property
    def is_idle(self) -> bool:
        """Whether it has taken its answer and asks nothing more yet."""
        return self.cycle is not None and self._asks_nothing and not self.is_slow

    @property
    def is_slow(self) -> bool:
        """Whether its client has still to send headers, or the rest of what was answered."""
        timers = (self._headers_timer, self._drain_timer)
        return self._asks_nothing and any(timer is not None for timer in timers)

    @property
    def _asks_nothing(self) -> bool:
        if self._refused or self.transport.get_write_buffer_size():
            return False  # it has still to take an answer
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        for timer in (self._headers_timer, self._stall_timer, self._drain_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # -- headers: bounded in size and time

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._header_bytes = 0
        if self._headers_timer is None:
            self._silent_since = self.loop.time()
            self._headers_timer = self.loop.call_later(
                limits.HEADER_TIMEOUT_S, self.transport.abort
            )

    def on_url(self, url: bytes) -> None:
        """A piece of the path."""
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole."""
        self._count_header(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The application takes over."""
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told in the shape of every other error."""
        answer = errors.answer(
            400, "invalid", f"cannot read this request: {msg[:1].lower()}{msg[1:]}"
        )
        self._write(answer)
        self.transport.close()

    def _write(self, answer: Response) -> None:
        """An answer that is not the application's, and the last one."""
        lines = [STATUS_LINE[answer.status_code].rstrip()]
        lines += [b"%b: %b" % pair for pair in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)]))

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        # The gate answers 431 above the limit; far above it nothing more is even stored.
        if self._header_bytes > 2 * limits.HEADER_BYTES_MAX + limits.PATH_CHARS_MAX:
            self.headers.clear()
            raise ValueError("headers too large")

    # -- a client that takes nothing is cut

    def pause_writing(self) -> None:
        """The client takes nothing: what was written waits here."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(limits.SEND_STALL_S, self._cut)

    def resume_writing(self) -> None:
        """The client took it."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked: close; and cut, should the last answer not be taken either."""
        super().timeout_keep_alive_handler()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(limits.SEND_STALL_S, self._cut)

    def _cut(self) -> None:
        log.info("cut a client that takes nothing: %s", self.client)
        self.transport.abort()

    # -- an answer given before the body was read: the rest is read and dropped, for a while

    def on_response_complete(self) -> None:
        """The answer is out."""
        super().on_response_complete()
        self._silent_since = self.loop.time()
        if self.cycle is not None and self.cycle.more_body and not self.transport.is_closing():
            # Closing now would reset the connection and the client might lose the answer.
            self._unset_keepalive_if_required()
            self._drain_timer = self.loop.call_later(limits.HEADER_TIMEOUT_S, self.transport.abort)

    def on_message_complete(self) -> None:
        """The request's body is in."""
        super().on_message_complete()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def _silence(connection: BoundedProtocol) -> float:
    """Since when nothing has come."""
    return connection._silent_since


def _has_unread(transport: asyncio.Transport) -> bool:
    """Whether bytes have come that were not read yet, in which a request may stand."""
    looking = select.poll()
    looking.register(transport.get_extra_info("socket").fileno(), select.POLLIN | _GONE)
    return any(seen & select.POLLIN and not seen & _GONE for _, seen in looking.poll(0))


class _Server(uvicorn.Server):
    """Runs until told to stop, without signals and without a tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        await self.stopping.wait()


async def serve(app: FastAPI, sockets: Sequence[socket.socket]) -> None:
    """Answer on sockets that are bound, until cancelled; then end gracefully and close them.

    Open streams are told through `app.state.closing`; what has not ended after STOP_GRACE_S seconds
    is cancelled, so that its clients' `finally` run.
    """
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_GRACE_S,
    )
    server = _Server(config)
    # A worry about a single bad request is not the log's business.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    running = asyncio.ensure_future(server.serve(sockets=list(sockets)))
    try:
        await asyncio.shield(running)
    finally:
        app.state.closing.set()
        server.stopping.set()
        await asyncio.gather(running, return_exceptions=True)
        left = list(server.server_state.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in list(server.server_state.connections):
            connection.transport.abort()
