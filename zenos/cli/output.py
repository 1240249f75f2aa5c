"""What commands print: tables for people, JSON for machines on stdout; messages on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# C0 but tab and newline, DEL, C1: what would let a text drive the terminal.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROLS_AND_LINES = re.compile("[\x00-\x1f\x7f-\x9f]")
# Likewise, but what every log has: programs end lines, and draw bars, with a carriage return.
_DRIVING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
WIDE = 240  # columns where the output is no terminal
GAP = 2  # cells between two columns of a table
UNBOUNDED = 1_000_000  # columns: more than any line has


def clean(text: str, *, lines: bool = False) -> str:
    """The text without control characters; lines: newlines and tabs stay."""
    return (_CONTROLS if lines else _CONTROLS_AND_LINES).sub("\ufffd", text)


def console(*, stderr: bool = False) -> Console:
    """Where people read. Without a terminal lines are not folded at 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    made = Console(file=stream, highlight=False)
    if not made.is_terminal:
        made.width = WIDE
    return made


def say(text: str) -> None:
    """A message to the person who typed the command, on stderr."""
    with suppress(OSError):  # nobody can be told
        print(clean(text, lines=True), file=sys.stderr, flush=True)  # noqa: T201


def put(text: str) -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)  # noqa: T201


def put_log(text: str, stream: TextIO) -> None:
    """A part of a task's log: byte by byte as it was written, into a pipe; on a terminal readable.

    text: its bytes as UTF-8, those that are none as `surrogateescape` has them.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if stream.isatty():
        stream.write(_DRIVING.sub("\ufffd", raw.decode("utf-8", "replace")))
    else:
        stream.flush()
        stream.buffer.write(raw)
    stream.flush()


def put_json(value: Any) -> None:
    """The result as JSON; structs as msgspec encodes them."""
    import msgspec

    put(_showable(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()))


def put_json_line(value: Any) -> None:
    """The same in one line, where there are more to come."""
    import msgspec

    put(_showable(msgspec.json.encode(value).decode()))


def _showable(text: str) -> str:
    """JSON whose letters stdout can show, the others escaped: all of them are inside of strings."""
    from zenos.cli.streams import can_show

    if can_show(text):
        return text
    import json

    return _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "") -> None:
    """A table; a column whose name begins with `>` stands right. empty: said on stderr if so.

    On a terminal it becomes as narrow as that is, see zenos/cli/fitting.py; elsewhere all is there.
    """
    from rich.text import Text

    cells = [
        [cell if isinstance(cell, Text) else Text(clean(str(cell))) for cell in row] for row in rows
    ]
    if not cells and empty:
        say(empty)
        return
    screen = console()
    _print(_fitted(columns, cells, screen.width if screen.is_terminal else None))


def _fitted(columns: Sequence[str], rows: Sequence[Sequence[Text]], room: int | None) -> Any:
    """A table of so many cells of a terminal; None: as wide as it comes."""
    from rich.table import Table

    from zenos.cli.fitting import fit

    right = [name.startswith(">") for name in columns]
    found = fit([name.lstrip(">") for name in columns], rows, right, room, GAP)
    made = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for at, cells in zip(found.shown, found.cells, strict=True):
        made.add_column(justify="right" if right[at] else "left", no_wrap=True, width=cells)
    for row in (found.heads, *found.rows):
        made.add_row(*row)
    return made


def coloured(text: str, style: str) -> Any:
    """A cell in a colour."""
    from rich.text import Text

    return Text(clean(text), style=style)


def facts(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other.

    A value stands beside its name; below it where the terminal is too narrow for both.
    """
    from rich.cells import cell_len
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from zenos.cli.fitting import LEAST

    known = [
        (name, value if isinstance(value, Text) else Text(clean(str(value), lines=True)))
        for name, value in rows
        if value not in (None, "")
    ]
    screen = console()
    names = max((cell_len(name) for name, _ in known), default=0)
    if screen.is_terminal and screen.width < names + GAP + LEAST:
        heads = (Text(name, "bold", no_wrap=True, overflow="ellipsis") for name, _ in known)
        texts = (text for _, text in known)
        _print(Group(*(part for pair in zip(heads, texts, strict=True) for part in pair)))
        return
    made = Table.grid(padding=(0, GAP))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, text in known:
        made.add_row(Text(name), text)
    _print(made)


def _print(renderable: Any) -> None:
    """On stdout; where that is no terminal as wide as it comes, without blanks that fill lines."""
    from rich.measure import Measurement

    screen = console()
    if screen.is_terminal:
        screen.print(renderable)
        return
    unbounded = screen.options.update(max_width=UNBOUNDED)
    screen.width = max(WIDE, Measurement.get(screen, unbounded, renderable).maximum)
    with screen.capture() as captured:
        screen.print(renderable)
    put("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))
