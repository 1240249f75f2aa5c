"""The one map from errors to exit codes, and how an error is shown: one line, no traceback."""

from __future__ import annotations

import os
import sys
from typing import Final

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


def exit_code(error: ZenosError) -> int:
    """The exit code that stands for an error."""
    return EXIT_CODES.get(error.code, FAILED)


def show(error: BaseException) -> int:
    """Print an error on stderr; returns the exit code."""
    if isinstance(error, ZenosError):
        say_error(error.message)
        return exit_code(error)
    if os.environ.get("ZENOS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    else:
        kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        say_error(f"cannot go on: {kind} (ZENOS_DEBUG=1 shows where)")
    return FAILED


def say_error(message: str) -> None:
    """One message on stderr; red where that is a terminal."""
    from zenos.cli.output import clean

    text = f"zenos: {clean(message, lines=True)}"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        text = f"\033[31m{text}\033[0m"
    print(text, file=sys.stderr)  # noqa: T201 - this is where messages are shown


def quiet_stdout() -> None:
    """Nobody reads on: let what is still buffered go nowhere, without a word."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
