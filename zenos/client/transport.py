"""What a client does about each answer and each failure, the same for the sync and async one.

1. An answer that is no error is decoded; an error becomes its class of core.errors, by its code.
2. A connection that is refused means that no daemon is there: said at once, unless an earlier
   try of this very request got through; then the daemon may be starting again.
3. A connection that is lost, and an answer "unavailable", are tried again with the same
   Idempotency-Key, with growing pauses, until `retry_s` have passed. So nothing is done twice.
"""

from __future__ import annotations

import ssl
import time
from typing import Any, Generic, TypeVar

import httpx
import msgspec

from zenos import __version__
from zenos.client.address import Address, wrong_token
from zenos.client.calls import Call
from zenos.client.decoding import decode
from zenos.core import limits
from zenos.core.errors import (
    DeadlineError,
    InvalidError,
    NoDaemonError,
    NotFoundError,
    UnavailableError,
    ZenosError,
)
from zenos.core.wording import from_answer

T = TypeVar("T")
RETRY_S = 15.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 2.0
GONE_S = 0.2  # for a process that was killed
CONNECT_TIMEOUT_S = 5.0
LASTING_S = 1.0  # a stream that was there for so long was no part of an outage
STREAM_SILENCE_S = 60.0  # events and logs: the daemon's heartbeat is far below this
# All that httpx raises of its own: none of it leaves this package.
HTTP_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)
_BY_STATUS = {
    400: "invalid",
    401: "unauthorized",
    403: "refused",
    404: "not_found",
    405: "invalid",
    409: "conflict",
    413: "too_large",
    414: "too_large",
    422: "unfittable",
    431: "too_large",
    503: "unavailable",
    504: "deadline",
}


class _Detail(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Detail


def error_of(
    status: int, headers: httpx.Headers, content: bytes, address: Address | None = None
) -> ZenosError:
    """The error that an answer with such a status and body stands for.

    address: whose answer it is; then the message says what to do here, in the words of this side.
    """
    try:
        detail = decode(content, _ErrorBody).error
    except UnavailableError:
        detail = _Detail(f"cannot understand the answer: HTTP status {status}, not from zenos?")
    code = detail.code if detail.code and detail.code not in ("timeout",) else None
    message = detail.message
    if code == "unauthorized" and address is not None:
        message = wrong_token(address)
    elif address is not None and address.home is not None:
        message = message.replace("$ZENOS_HOME", address.home)  # others aren't told the path
    return from_answer(
        code or _BY_STATUS.get(status, "internal"),
        message,
        detail.param,
        retry_after_s=_seconds(headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() and len(text) < 8 else None


def options(address: Address) -> dict[str, Any]:
    """How httpx is to be set up. No proxy stands between us and this machine's daemon."""
    plain = address.is_loopback and address.url.startswith("http://")
    return {
        "base_url": address.url,
        "headers": {
            "Authorization": f"Bearer {address.token}",
            "User-Agent": f"zenos/{__version__}",
        },
        "timeout": httpx.Timeout(60.0, connect=CONNECT_TIMEOUT_S),
        "trust_env": not address.is_loopback,
        "verify": without_authorities() if plain else True,
        "follow_redirects": False,
    }


def without_authorities() -> ssl.SSLContext:
    """For where there is no TLS: to read all authorities takes longer than most calls.

    Should TLS be spoken after all, nobody is trusted.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def request_options(call: Call[Any], *, silence_s: float | None = None) -> dict[str, Any]:
    """httpx's arguments for one call; silence_s: for streams, the longest wait for a piece."""
    timeout = httpx.Timeout(silence_s or call.timeout_s, connect=CONNECT_TIMEOUT_S)
    if silence_s is None and call.into is bytes:
        # A generation may wait for its turn, and for its model to load.
        timeout = httpx.Timeout(limits.REQUEST_DEADLINE_S + 10, connect=CONNECT_TIMEOUT_S)
    return {
        "content": call.body,
        "params": dict(call.params) or None,
        "headers": dict(call.headers),
        "timeout": timeout,
    }


def check_open(http: httpx.Client | httpx.AsyncClient) -> None:
    """Raises InvalidError for a client that was closed."""
    if http.is_closed:
        raise InvalidError("cannot ask the daemon: this client was closed; connect again")


class Attempts(Generic[T]):
    """The tries of one call: after each either its value, an error, or a pause in seconds."""

    def __init__(
        self, call: Call[T], address: Address, retry_s: float, *, patient: bool = False
    ) -> None:
        self.call = call
        self.address = address
        self.uncertain = patient
        self.pause_s: float | None = None
        self._end = time.monotonic() + retry_s
        self._next_s = PAUSE_S_MIN

    def answered(self, response: httpx.Response) -> T | None:
        """The value, or None after setting `pause_s`: send it again. Raises what it stands for."""
        if response.is_success:
            return self.call.decode(response.content)
        error = error_of(response.status_code, response.headers, response.content, self.address)
        if isinstance(error, NotFoundError) and self.uncertain and self.call.gone is not None:
            return self.call.gone
        if not isinstance(error, UnavailableError) or not self._again(error.retry_after_s):
            raise error
        return None

    def failed(self, error: Exception) -> None:
        """Sets `pause_s` when it is to be sent again; raises otherwise. error: of HTTP_ERRORS."""
        if not isinstance(error, httpx.TransportError):
            raise _not_understood(error) from None
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            raise DeadlineError(
                f"cannot wait longer than {self.call.timeout_s:g} s for the daemon's answer"
            ) from None
        refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        if not refused:
            self.uncertain = True
        if not refused and not self.call.repeatable:
            raise UnavailableError(
                "cannot say whether it was done: the connection was lost; look before you repeat it"
            ) from None
        if (refused and not self.uncertain) or not self._again(None):
            raise no_daemon(self.address, error) from None

    def _again(self, wait_s: float | None) -> bool:
        pause_s = self._next_s if wait_s is None else wait_s
        if time.monotonic() + pause_s > self._end:
            return False
        self.pause_s = pause_s
        self._next_s = min(self._next_s * 2, PAUSE_S_MAX)
        return True


class Outage:
    """A stream that broke: pauses between connecting again, until `retry_s` without success."""

    def __init__(self, address: Address, retry_s: float) -> None:
        self._address = address
        self._retry_s = retry_s
        self._since: float | None = None
        self._opened: float | None = None
        self._next_s = PAUSE_S_MIN
        self.ever_connected = False

    def opened(self) -> None:
        """The stream is there; one that is cut right then, over and over, is an outage still."""
        self.ever_connected = True
        self._opened = self._opened or time.monotonic()

    def connected(self) -> None:
        """Something came in it."""
        self._since = None
        self._next_s = PAUSE_S_MIN
        self.ever_connected = True

    def pause_s(self, error: Exception | None) -> float:
        """How long to wait before connecting again; raises when it is time to give up."""
        now = time.monotonic()
        if self._opened is not None and now - self._opened >= LASTING_S:
            self.connected()
        self._opened = None
        self._since = self._since or now
        if not self.ever_connected or now - self._since > self._retry_s:
            if isinstance(error, ZenosError):
                raise error
            raise no_daemon(self._address, error) from None
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, PAUSE_S_MAX)
        return pause_s


def broken(address: Address, error: Exception) -> ZenosError:
    """What stands for the end of a stream that came by one of HTTP_ERRORS."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return no_daemon(address, error)
    if isinstance(error, httpx.TimeoutException):
        return UnavailableError("cannot go on: nothing comes from the daemon any more")
    if not isinstance(error, httpx.TransportError):
        return _not_understood(error)
    # Of an answer that was cut the library tells what HTTP says of that.
    reason = "" if isinstance(error, httpx.ProtocolError) else str(error).strip()
    return UnavailableError(
        f"cannot go on: the connection to the daemon was lost{f' ({reason})' if reason else ''}"
    )


def _not_understood(error: Exception) -> UnavailableError:
    return UnavailableError(f"cannot understand the daemon's answer ({error}): is it zenos?")


def no_daemon(address: Address, error: Exception | None) -> NoDaemonError:
    """That nobody answers there.

    A process that was killed closes its sockets a moment before it is gone: so it is looked at for
    that long whether the daemon of a home is.
    """
    end = time.monotonic() + GONE_S
    while address.daemon is not None and address.daemon.is_alive and time.monotonic() < end:
        time.sleep(0.005)
    if address.daemon is not None and not address.daemon.is_alive:
        return NoDaemonError(
            f"cannot reach a daemon: none runs on {address.home}; start it with 'zenos up'"
        )
    reason = str(error).strip() if error is not None else ""
    shown = f" ({reason})" if reason else ""
    if address.daemon is None and not address.is_loopback:
        return NoDaemonError(
            f"cannot reach a daemon at {address.url}{shown}: is it up there, and ZENOS_HOST right?"
        )
    return NoDaemonError(f"cannot reach a daemon at {address.url}{shown}: start it with 'zenos up'")
