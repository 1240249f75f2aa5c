"""Reads csv and tsv files: every cell is text, and every row has as many as the header.

A text with a comma in it that isn't quoted moves all that follows into the next column. So a row
that has another number of fields is never guessed at: it is named, and nothing is trained on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from zenos.core.errors import InvalidError

# Of one cell, in characters. Python's own bound, 131,072, is less than a chapter of a book.
CELL_CHARS_MAX: Final = 2**28
NAMES_SHOWN: Final = 10


def texts(path: Path, encoding: str, column: str) -> Iterator[str]:
    """The cells of one column, from the first row on; blank lines are left out.

    Tabs separate the fields where the name ends in .tsv, else commas. Raises InvalidError, naming
    the row, where the fields are not as many as the header's, where a quote isn't closed, and for
    what isn't of this encoding; OSError where the file can't be read.
    """
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(CELL_CHARS_MAX)
    number = 0
    with path.open(encoding=encoding, newline="") as file:
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=separator)
        try:
            header = next((row for row in rows if not _is_blank(row)), [])
            if header and lines.ended:
                raise _unclosed(path, "its header")
            at = _place(path, header, column)
            for row in rows:
                if _is_blank(row):
                    continue
                number += 1
                if lines.ended:
                    raise _unclosed(path, f"row {number}")
                if len(row) != len(header):
                    raise _uneven(path, number, len(row), len(header), separator)
                yield row[at]
        except csv.Error as error:
            raise InvalidError(
                f"cannot read {path}: row {number + 1} is no row of fields ({error}); is there a "
                "quote that isn't closed?"
            ) from None
        except UnicodeError as error:
            why = error.reason if isinstance(error, UnicodeDecodeError) else error
            raise InvalidError(
                f"cannot read {path}: it is not valid {encoding} after row {number} "
                f"({why}); give its --encoding, or leave it out with --exclude (data.exclude)"
            ) from None


def missing_column(path: Path, column: str, names: list[str]) -> InvalidError:
    """That a table lacks the column with the text."""
    shown = ", ".join(name[:100] for name in names[:NAMES_SHOWN])
    return InvalidError(
        f"cannot find the column {column!r} in {path}: it has {shown}; "
        "name one with --text-column (data.text_column)"
    )


class _Lines:
    """The lines of a file. ended: whether one more was asked for than there are.

    The reader asks for that amid a row only where a quote isn't closed, and says nothing of it.
    """

    def __init__(self, file: TextIO) -> None:
        self._lines = iter(file)
        self._first = True
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        if self._first:
            line, self._first = line.removeprefix("\ufeff"), False
        if "\0" in line:
            raise csv.Error("it has NUL characters")
        return line


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _place(path: Path, header: list[str], column: str) -> int:
    """Where in a row the column stands."""
    for name in header:
        if name and header.count(name) > 1:
            raise InvalidError(
                f"cannot train on {path}: its header names the column {name[:100]!r} "
                f"{header.count(name)} times; rename all but one of them"
            )
    if not header:
        raise InvalidError(f"cannot train on {path}: it has only blank lines, and no header")
    if column not in header:
        raise missing_column(path, column, header)
    return header.index(column)


def _unclosed(path: Path, where: str) -> InvalidError:
    return InvalidError(
        f"cannot read {path}: {where} has a quote that isn't closed before the file ends; close "
        "it, and write a quote that belongs to a text twice"
    )


def _uneven(path: Path, number: int, found: int, wanted: int, separator: str) -> InvalidError:
    fields = "field" if found == 1 else "fields"
    what = "tab" if separator == "\t" else "comma"
    advice = (
        f"put a text with a {what} in it into double quotes"
        if found > wanted
        else "put a text with a line break in it into double quotes"
    )
    return InvalidError(
        f"cannot train on {path}: row {number} has {found} {fields}, the header has {wanted}; "
        f"{advice}, or repair that row"
    )
