"""The one map from errors to HTTP, in the shape that OpenAI's clients know."""

from __future__ import annotations

import http
import json
import logging
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec
from starlette.responses import Response

from zenos.api.shapes import ErrorAnswer, ErrorDetail
from zenos.core.errors import InvalidError, RefusedError, ZenosError
from zenos.core.wording import SHOWN_CHARS_MAX, FieldError, field_error, plain_reason

log = logging.getLogger(__name__)

STATUS: Final[dict[str, int]] = {
    "invalid": 400,
    "context_length_exceeded": 400,
    "unauthorized": 401,
    "expired": 401,
    "refused": 403,
    "numerics": 403,
    "quota": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unfittable": 422,
    "internal": 500,
    "transition": 500,
    "worker": 500,
    "rank": 500,
    "busy": 503,
    "unavailable": 503,
    "no_daemon": 503,
    "storage": 503,
    "deadline": 504,
}
# OpenAI's clients choose their exception by the status; `type` is for people and logs.
_TYPES: Final[dict[int, str]] = {401: "authentication_error", 403: "permission_error"}
_RETRY_AFTER_S: Final = 5.0
MESSAGE_CHARS_MAX: Final = 4000
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def answer(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error as a response."""
    detail = detail_of(status, code, message, param)
    body = msgspec.json.encode(ErrorAnswer(error=detail))
    return Response(body, status, headers, media_type="application/json")


def detail_of(status: int, code: str, message: str, param: str | None = None) -> ErrorDetail:
    """The error object; text that UTF-8 cannot hold is shown with question marks."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    clean = message[:MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode()
    return ErrorDetail(message=clean, type=kind, code=code, param=param)


def status_of(error: ZenosError) -> int:
    """The HTTP status of an error."""
    return STATUS.get(error.code, 500)


def respond(error: ZenosError, home: str | None = None) -> Response:
    """A ZenosError as a response. Paths in `home` are shown from `$ZENOS_HOME` on."""
    status = status_of(error)
    headers = {}
    if status == 503 or (status == 504 and error.retry_after_s is not None):
        wait_s = _RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    param = error.param
    return answer(status, error.code, shown(error.message, home), param=param, headers=headers)


def shown(message: str, home: str | None) -> str:
    """A message without where `home` is."""
    return message.replace(home, "$ZENOS_HOME") if home else message


def in_stream(error: Exception, home: str | None = None) -> bytes:
    """An error after the headers have gone: the body of one server-sent event."""
    if not isinstance(error, ZenosError):
        error = unexpected(error)
    detail = detail_of(status_of(error), error.code, shown(error.message, home), error.param)
    return msgspec.json.encode(ErrorAnswer(error=detail))


def at_start(error: ZenosError, form: str) -> str:
    """Why the daemon ends, as the command line shows its errors, whose place it has taken.

    form: `json` or `text`. What isn't the fault of who started it is one of storage, as for `up`
    in the background, which knows it by the exit code alone.
    """
    if form != "json":
        return f"zenos: {error.message}"
    code = next((k.code for k in (RefusedError, InvalidError) if isinstance(error, k)), "storage")
    detail = detail_of(STATUS[code], code, error.message, error.param)
    return msgspec.json.encode(ErrorAnswer(error=detail)).decode()


def unexpected(error: BaseException) -> ZenosError:
    """What the client hears of a fault of ours: nothing; the log has the traceback."""
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return ZenosError()


def of_status(status: int, path: str, method: str) -> Response:
    """The framework's own refusals: no such path, no such method on it."""
    if status == 404:
        return answer(404, "not_found", f"cannot find the path {path[:200]!a}: see /openapi.json")
    if status == 405:
        return answer(405, "method_not_allowed", f"cannot {method} this path: see /openapi.json")
    phrase = http.HTTPStatus(status).phrase.lower()
    return answer(status, "invalid" if status < 500 else "internal", f"cannot do that: {phrase}")


def of_parameters(problems: list[dict[str, Any]]) -> FieldError:
    """Path, query and header parameters that FastAPI refused."""
    first = problems[0]
    where = [str(part) for part in first.get("loc", ())]
    name = where[-1] if where else "request"
    place = where[0] if len(where) > 1 else "request"
    shown = repr(first.get("input"))[:SHOWN_CHARS_MAX]
    reason = plain_reason(str(first.get("msg", "it is not valid")))
    return FieldError(f"cannot use the {place} parameter {name} {shown}: {reason}", name)


def decode(raw: bytes, type_: Any, what: str = "body") -> Any:
    """A JSON body as a struct.

    Raises FieldError that says which field is wrong, with the nearest name for a typo.
    """
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise field_error(error, type_) from None
    except UnicodeDecodeError:
        raise InvalidError(f"cannot read the {what}: it is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        param, reason = _malformed(raw)
        reason = reason or str(error)[:SHOWN_CHARS_MAX]
        text = (
            f"cannot use {param}: {reason}"
            if param
            else f"cannot read the {what} as JSON: {reason}"
        )
        raise FieldError(text, param) from None
    except RecursionError:
        raise InvalidError(f"cannot read the {what}: it is nested too deeply") from None


_HALF: Final = "half of a surrogate pair (\\ud…) is no character"
_NO_NUMBER: Final = "JSON has no NaN and no Infinity; give a finite number"


def _malformed(raw: bytes) -> tuple[str | None, str]:
    """Which field is no JSON, and why, where msgspec's own words would mislead."""
    if not raw:
        return None, "it is empty"
    with suppress(ValueError, RecursionError):
        # Python's reader takes half a character, and numbers that JSON hasn't.
        return _no_json(json.loads(raw, parse_constant=_NoNumber)) or (None, "")
    return None, ""


class _NoNumber(str):
    """NaN, Infinity or -Infinity, as it stood there."""

    __slots__ = ()


def _no_json(value: Any) -> tuple[str | None, str] | None:
    """The first field whose value JSON doesn't have, as a path, and why.

    A path is put together for that one alone, and of bounded names: a body may have a million
    values below a name of a million letters.
    """
    found = _without_json(value)
    if found is None:
        return None
    path, reason = found
    return path.removeprefix(".")[:SHOWN_CHARS_MAX] or None, reason


def _without_json(value: Any) -> tuple[str, str] | None:
    if isinstance(value, _NoNumber):
        return "", _NO_NUMBER
    if isinstance(value, str):
        return ("", _HALF) if _SURROGATE.search(value) else None
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list):
        inside = enumerate(value)
    elif isinstance(value, dict):
        if any(_SURROGATE.search(name) for name in value):
            return "", _HALF
        inside = value.items()
    for name, item in inside:
        if (found := _without_json(item)) is not None:
            step = f"[{name}]" if isinstance(name, int) else f".{name[:SHOWN_CHARS_MAX]}"
            return step + found[0], found[1]
    return None
