"""The one map from errors to exit codes, and how an error is shown: one line, no traceback.

With --json that line is an object of the form that the HTTP API's errors have.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Final

from zenos.cli.streams import OutputError, ReaderGoneError, quiet
from zenos.core.errors import ZenosError

FINE, FAILED, USAGE, NOT_FOUND, REFUSED, NO_DAEMON = range(6)
# As shells have it: ended by a signal, 128 and its number.
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

EXIT_CODES: Final[dict[str, int]] = {
    "internal": FAILED,
    "storage": FAILED,
    "transition": FAILED,
    "worker": FAILED,
    "rank": FAILED,
    "busy": FAILED,
    "unavailable": FAILED,
    "deadline": FAILED,
    "invalid": USAGE,
    "context_length_exceeded": USAGE,
    "too_large": USAGE,
    "not_found": NOT_FOUND,
    "refused": REFUSED,
    "numerics": REFUSED,
    "quota": REFUSED,
    "unauthorized": REFUSED,
    "expired": REFUSED,
    "conflict": REFUSED,
    "unfittable": REFUSED,
    "no_daemon": NO_DAEMON,
}
# As the HTTP API says it. It is for people and logs; programs go by the code.
_TYPES: Final[dict[str, str]] = {
    "unauthorized": "authentication_error",
    "expired": "authentication_error",
    "refused": "permission_error",
    "numerics": "permission_error",
    "quota": "permission_error",
}
# Whether the command that runs was given --json.
as_json: ContextVar[bool] = ContextVar("as_json", default=False)


def exit_code(error: ZenosError) -> int:
    """The exit code that stands for an error."""
    return EXIT_CODES.get(error.code, FAILED)


def show(error: BaseException) -> int:
    """Print an error on stderr; returns the exit code."""
    if isinstance(error, OutputError):
        quiet(sys.stdout)  # else what is still buffered fails once more
    if isinstance(error, ReaderGoneError):
        return BROKEN_PIPE  # without a word
    if isinstance(error, ZenosError):
        tell(error)
        return exit_code(error)
    if os.environ.get("ZENOS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    else:
        kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        say_error(f"cannot go on: {kind} (ZENOS_DEBUG=1 shows where)")
    return FAILED


def tell(error: ZenosError) -> None:
    """One error on stderr."""
    say_error(error.message, error.code, getattr(error, "param", None))


def say_error(message: str, code: str = "internal", param: str | None = None) -> None:
    """One message on stderr; red where that is a terminal. With --json one line of JSON.

    code: one of EXIT_CODES; param: what was wrong, a field or a flag, where that is known.
    """
    from zenos.cli.output import clean

    if as_json.get():
        import json

        text = json.dumps({"error": error_object(message, code, param)})
        with suppress(OSError):  # nobody can be told
            print(text, file=sys.stderr, flush=True)  # noqa: T201
        return
    text = f"zenos: {clean(message, lines=True)}"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        text = f"\033[31m{text}\033[0m"
    with suppress(OSError):  # nobody can be told
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is where messages are shown


def error_object(message: str, code: str, param: str | None) -> dict[str, str | None]:
    """An error for machines, with the fields of the HTTP API's."""
    failed = EXIT_CODES.get(code, FAILED) in (FAILED, NO_DAEMON)
    kind = _TYPES.get(code, "server_error" if failed else "invalid_request_error")
    return {"message": message, "type": kind, "code": code, "param": param}
