"""The gate before everything else: who asks, from where, and how much.

A pure ASGI middleware, so that no path, method or framework feature lies outside of it. In order:

1. header and path sizes (431, 414);
2. Host and Origin against the allow-list (403): a browser is a way in even on 127.0.0.1, since any
   page can have its own name resolve to it;
3. the bearer token, the home's, a user's or a task's, on all but GET and HEAD of `/health` (401):
   it says on whose behalf the request is; who fails at 2 or 3 has a row in the audit (refusals.py);
4. the body: its size, alone and together with all others (413, 503), and its time (408).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zenos.api import errors
from zenos.core import asking, inside, limits
from zenos.core.addresses import address_of, is_wildcard
from zenos.core.config import Config
from zenos.core.errors import (
    RefusedError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    ZenosError,
)
from zenos.core.task import Principal
from zenos.core.tokens import Token, Tokens

log = logging.getLogger(__name__)

PRINCIPAL: Final = "zenos.principal"
# On whose behalf a task's generation runs, by its secret; None for one that isn't running.
PrincipalOf = Callable[[str, int, str], Principal | None]
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SECURITY_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_HOST: Final = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]@/\\\s]+))(?::[0-9]{1,5})?$")


def no_tasks(task: str, generation: int, secret: str) -> Principal | None:
    """Nobody is a task."""
    return None


class Gate:
    """Lets in what may come in, with its body read; answers the rest itself."""

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        token: str,
        users: Tokens,
        tasks: PrincipalOf,
        refused: Callable[[Scope, ZenosError], None],
    ) -> None:
        self.app = app
        self._tasks = tasks
        self._refused = refused
        self._token = token.encode()
        self._users = users
        # Pages that call it by a wildcard would reach it from any browser on this machine.
        own = set() if is_wildcard(config.host) else {config.host.lower()}
        self._hosts = _LOOPBACK_NAMES | own | {host.lower() for host in config.allowed_hosts}
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There is no WebSocket here; none gets past.
            await send({"type": "websocket.close", "code": 1008})
            return
        answering = _Answering(send)
        held = _Held(self)
        asking.TOKEN.set("")
        try:
            refusal = self._check(scope, answering)
            if refusal is None:
                body = await self._body(scope, receive, held)
                await self.app(scope, _Replay(body, receive), answering.holding(held))
                return
        except _RefusedBody as refused:
            refusal = refused.response
        except _Revoked:
            log.info("cut a stream: its token was revoked, or has expired")
            return
        except ZenosError as error:
            if isinstance(error, RefusedError | UnauthorizedError):
                self._refused(scope, error)
            refusal = errors.respond(error)
        except asyncio.CancelledError:
            if answering.started:
                raise
            # Only the server cancels, when it ends; its client hears why.
            refusal = errors.respond(UnavailableError("cannot answer: the daemon is going down"))
        except Exception as error:  # noqa: BLE001 - the last line: logged, and answered with 500
            refusal = errors.respond(errors.unexpected(error))
            if answering.started:
                # Too late to say so: the missing end tells the client.
                raise ConnectionAbortedError from None
        finally:
            held.release()
        await refusal(scope, receive, answering)

    # -- 1 to 3

    def _check(self, scope: Scope, answering: _Answering) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > limits.HEADER_BYTES_MAX:
            return errors.answer(
                431,
                "too_large",
                f"cannot take headers of more than {limits.HEADER_BYTES_MAX} bytes",
            )
        path_bytes = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if path_bytes > limits.PATH_CHARS_MAX:
            return errors.answer(
                414,
                "too_large",
                f"cannot take a path and query of more than {limits.PATH_CHARS_MAX} characters",
            )
        self._check_host(headers, scope)
        if not (scope["path"] == "/health" and scope["method"] in ("GET", "HEAD")):
            said = _bearer(_values(headers, b"authorization"))
            task = inside.parse(said.decode("latin-1"))
            if task is not None:
                scope[PRINCIPAL] = self._of_task(*task)
                asking.TOKEN.set(f"task {task[0].task}")
                return None
            user = self._user(said)
            asking.TOKEN.set("" if user is None else user.name)
            scope[PRINCIPAL] = Principal() if user is None else user.principal
            if user is not None:
                answering.may_go_on = partial(self._users.admits, user)
        return None

    def _check_host(self, headers: list[tuple[bytes, bytes]], scope: Scope) -> None:
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or not self._is_ours(_host_name(hosts[0].decode("latin-1")), scope):
            raise RefusedError(
                "cannot answer for this Host: call the daemon by its address, "
                "or add the name to allowed_hosts in zenos.yaml"
            )
        for origin in _values(headers, b"origin"):
            if not self._is_ours(_origin_name(origin.decode("latin-1")), scope):
                raise RefusedError(
                    "cannot answer pages of this Origin: add its host to allowed_hosts in "
                    "zenos.yaml if you trust it"
                )

    def _is_ours(self, name: str | None, scope: Scope) -> bool:
        """Whether it is in the list, or the very address on which the connection came in."""
        if name is None:
            return False
        if name in self._hosts:
            return True
        server = scope.get("server")
        return server is not None and _same_address(name, server[0])

    def _user(self, token: bytes) -> Token | None:
        """Whose token that is; None: the home's."""
        # Both in any case, so that the time does not tell why it was refused.
        same = hmac.compare_digest(token, self._token)
        user = self._users.find(token)
        if not token:
            raise UnauthorizedError
        if not same and user is None:
            raise UnauthorizedError(
                "cannot let you in: this daemon doesn't know that token; its own stands in the "
                "file 'token' of its home ($ZENOS_HOME/token), a user's may have been revoked"
            )
        return None if same else user

    def _of_task(self, who: inside.Inside, secret: str) -> Principal:
        """On whose behalf that task runs."""
        principal = self._tasks(who.task, who.generation, secret)
        if principal is None:
            raise UnauthorizedError(
                f"cannot let you in as task {who.task}: it has ended, was started again since, or "
                "is another daemon's; set ZENOS_TOKEN to a token"
            )
        return principal

    # -- 4

    async def _body(self, scope: Scope, receive: Receive, held: _Held) -> bytes:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        lengths = _values(headers, b"content-length")
        if lengths and (len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18):
            raise _RefusedBody(errors.answer(400, "invalid", "cannot read the Content-Length"))
        if lengths and int(lengths[0]) > limits.BODY_BYTES_MAX:
            raise _too_large()
        if _values(headers, b"content-encoding"):
            raise _RefusedBody(
                errors.answer(415, "invalid", "cannot read an encoded body: send it as it is")
            )
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _RefusedBody(errors.answer(400, "invalid", "cannot read the body"))
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limits.BODY_BYTES_MAX:
                        raise _too_large()
                    held.add(len(part))
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise _RefusedBody(
                errors.answer(
                    408,
                    "timeout",
                    f"cannot wait longer than {limits.BODY_TIMEOUT_S:g} s for the body",
                    headers={"Connection": "close"},
                )
            ) from None

    def take(self, size: int) -> None:
        """Count bytes of bodies that are being read; all together are bounded."""
        if self._bodies_bytes + size > limits.BODIES_BYTES_MAX:
            raise _RefusedBody(
                errors.answer(
                    503,
                    "busy",
                    "cannot take more request bodies at the moment: try again shortly",
                    headers={"Retry-After": "1"},
                )
            )
        self._bodies_bytes += size

    def give_back(self, size: int) -> None:
        """The counterpart of `take`."""
        self._bodies_bytes -= size


def _bearer(given: list[bytes]) -> bytes:
    """The token of an Authorization header; empty where there is none, or something else."""
    scheme, _, said = (given[0] if len(given) == 1 else b"").partition(b" ")
    return said.strip() if scheme.lower() == b"bearer" else b""


class _RefusedBody(Exception):  # noqa: N818 - carries an answer out of the reading
    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class _Revoked(Exception):  # noqa: N818 - ends a stream, and is nobody's error
    """The token with which a stream was asked for lets nobody in any more."""


class _Held:
    """The bytes that one request holds until its answer begins."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._size = 0

    def add(self, size: int) -> None:
        self._gate.take(size)
        self._size += size

    def release(self) -> None:
        self._gate.give_back(self._size)
        self._size = 0


class _Answering:
    """`send` that knows whether the answer has begun, and adds the headers that all have."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: _Held | None = None
        self.started = False
        self.may_go_on: Callable[[], bool] = lambda: True

    def holding(self, held: _Held) -> _Answering:
        self._held = held
        return self

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self._held is not None:
                self._held.release()
            message = {**message, "headers": [*message.get("headers", ()), *_SECURITY_HEADERS]}
        elif not self.may_go_on():
            # A stream would else go on for ever to who had the token once.
            raise _Revoked
        await self._send(message)


class _Replay:
    """`receive` that gives the body that was read, then what the server says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message


def _too_large() -> _RefusedBody:
    error = TooLargeError(f"cannot take a body of more than {limits.BODY_BYTES_MAX} bytes")
    return _RefusedBody(errors.respond(error))


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _host_name(host: str) -> str | None:
    match = _HOST.match(host.strip())
    return (match[1] or match[2]).lower() if match else None


def _origin_name(origin: str) -> str | None:
    try:
        parts = urlsplit(origin.strip())
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.username:
        return None
    return _host_name(parts.netloc)


def _same_address(name: str, address: str) -> bool:
    found = address_of(name)
    return found is not None and found == address_of(address)
