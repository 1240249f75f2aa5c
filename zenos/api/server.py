"""uvicorn in the daemon's own event loop, over sockets that are bound already.

What uvicorn leaves open is closed here, per connection: time and size of the headers, clients that
take nothing of an answer, the number of connections. Signals are the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator, Sequence
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zenos.api import errors
from zenos.core import limits

log = logging.getLogger(__name__)
KEEP_ALIVE_S: Final = 30
STOP_GRACE_S: Final = 5


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with bounds."""

    _headers_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; with too many open, one that has asked nothing makes room."""
        super().connection_made(transport)
        if len(self.connections) > limits.CONNECTIONS_MAX:
            waiting = next((c for c in self.connections if _asks_nothing(c, self)), self)
            waiting.transport.abort()
        self._headers_timer = self.loop.call_later(limits.HEADER_TIMEOUT_S, transport.abort)

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
        lines = [b"HTTP/1.1 400 Bad Request", *(b"%b: %b" % pair for pair in answer.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", bytes(answer.body)]))
        self.transport.close()

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


def _asks_nothing(connection: Any, but: Any) -> bool:
    """Whether it is idle or still sends its headers."""
    if connection is but or connection.transport is None:
        return False
    cycle = connection.cycle
    return cycle is None or cycle.response_complete


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
