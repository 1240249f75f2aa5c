"""stdout and stderr of the command: what can't be written is told, what can't be shown replaced."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zenos.core.errors import StorageError

INSTEAD: Final = "zenos.instead"  # the name of `instead` among the handlers of codecs
# As wide as what they stand for, so that tables and bars stay straight.
_PLAIN: Final = str.maketrans(
    {
        **dict.fromkeys("▏▎▍▌▋▊▉█▁▂▃▄▅▆▇▒▓■", "#"),
        **dict.fromkeys("─━═╌╍╴╶╸╺", "-"),
        **dict.fromkeys("│┃║╎╏", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╞╡╪┏┓┗┛┡┩╇╷╵", "+"),
        **dict.fromkeys("\u2018\u2019", "'"),  # quotation marks
        **dict.fromkeys("“”„", '"'),
        **dict.fromkeys("\u2013\u2014", "-"),  # dashes
        **dict.fromkeys("·░", "."),
        **dict.fromkeys("→▶", ">"),
        "←": "<",
        "\u00d7": "x",  # times
        "…": "~",
        "•": "*",
        "\u2800": " ",  # braille without a dot
        **{chr(dots): "*" for dots in range(0x2801, 0x2900)},
    }
)


class OutputError(StorageError):
    """cannot write the output"""


class ReaderGoneError(OutputError):
    """cannot write the output: nobody reads on"""


class Output(io.FileIO):
    """A descriptor that is written to; OutputError says why that fails.

    Libraries have ways of their own with BrokenPipeError, so that is told as ReaderGoneError.
    """

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write bytes."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGoneError from None
        except OSError as error:
            raise OutputError(f"cannot write the output: {error.strerror}") from None


def instead(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream cannot show: like ones, else question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    whole = error.object[error.start : error.end].translate(_PLAIN)
    made = ((c if c.isascii() else _cells(c) * "?") for c in whole)
    return "".join(made), error.end


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def can_show(text: str, encoding: str | None = None) -> bool:
    """Whether an encoding, by default that of stdout, has all of its characters."""
    try:
        text.encode(encoding or sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def set_up() -> None:
    """Make stdout and stderr so. What was closed by who started us is as if it led nowhere."""
    codecs.register_error(INSTEAD, instead)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            if nowhere.fileno() <= 2:
                # Else the first file that a program opens which we become would stand there.
                os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, nowhere)
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            # A terminal of a user who wants no more than ASCII is told no more.
            encoding = "ascii" if _wants_ascii() and stream.isatty() else stream.encoding
            stream.reconfigure(encoding=encoding, errors=INSTEAD)
            if name == "stdout":
                _tell_failures(stream)


def _wants_ascii() -> bool:
    """Whether the user has named the plainest locale. Python takes that for UTF-8."""
    if os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8") == "1":
        return False
    given = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, given), "") in ("C", "POSIX")


def _tell_failures(stream: io.TextIOWrapper) -> None:
    try:
        raw = Output(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # it is no file: in a test, or in a program of somebody's
        return
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.isatty(),
    )


def settle() -> OutputError | None:
    """At the end: write what is still buffered. The error, to be told, where that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        quiet(sys.stdout)
    except OutputError as error:
        return error
    return None


def quiet(stream: Any) -> None:
    """Nobody reads on: let what is still buffered go nowhere, without a word."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
