"""Rows of CSV files: columns by any of their names, and what is wrong with a row."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from zenos.core.errors import InvalidError, NotFoundError, StorageError
from zenos.core.wording import nearest

FIELD_CHARS_MAX: Final = 256

T = TypeVar("T")


class Row:
    """One row; its methods raise ValueError with the reason."""

    def __init__(self, fields: list[str], places: Mapping[str, int]) -> None:
        self._fields = fields
        self._places = places

    def text(self, field: str) -> str:
        """What stands in a column; empty where the file has none of that name."""
        place = self._places.get(field)
        if place is None:
            return ""
        if place >= len(self._fields):
            raise ValueError(f"no {field}: it has {len(self._fields)} fields")
        return self._fields[place].strip()[:FIELD_CHARS_MAX]

    def number(self, field: str, low: float, high: float) -> float:
        """A finite number within bounds, both included."""
        text = self.text(field)
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{field} {text!r} is no number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{field} {text} is not from {low:g} to {high:g}")
        return value


def read(
    path: Path,
    what: str,
    columns: Mapping[str, Sequence[str]],
    needed: Sequence[str],
    make: Callable[[Row], T],
    *,
    skip_bad: bool = False,
) -> tuple[list[T], list[str]]:
    """What `make` makes of each row, in the order of the file, and why rows were left out.

    columns: the names of each field's column, the first one ours; needed: fields without which it
    is no such file. Raises InvalidError that names the first malformed row, or with `skip_bad` goes
    on without it; NotFoundError or StorageError for a file that can't be read.
    """
    skipped: list[str] = []
    made: list[T] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reasons = skipped if skip_bad else None
            made.extend(_rows(file, path, columns, needed, make, reasons))
    except FileNotFoundError:
        raise NotFoundError(f"cannot find {what} {path}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidError(f"cannot read {path}: it is not a text in UTF-8") from None
    except csv.Error as error:
        raise InvalidError(f"cannot read {path}: {error}") from None
    return made, skipped


def _rows(
    lines: Iterable[str],
    path: Path,
    columns: Mapping[str, Sequence[str]],
    needed: Sequence[str],
    make: Callable[[Row], T],
    skipped: list[str] | None,
) -> Iterator[T]:
    """What is made of the rows; reasons go to `skipped`, or are raised where it's None."""
    reader = csv.reader(lines, strict=True)
    header = next(reader, None)
    if not header:
        raise InvalidError(f"cannot read {path}: it is empty; its first row names the columns")
    places = _places(header, path, columns, needed)
    for row in reader:
        if not row:
            continue
        try:
            yield make(Row(row, places))
        except ValueError as error:
            why = f"row {reader.line_num}: {error}"
            if skipped is None:
                raise InvalidError(
                    f"cannot read {path}, {why}; mend it, or leave such rows out with --skip-bad"
                ) from None
            skipped.append(why)


def _places(
    header: list[str], path: Path, columns: Mapping[str, Sequence[str]], needed: Sequence[str]
) -> dict[str, int]:
    """The column of each field."""
    names = [name.strip().lstrip("\ufeff").lower() for name in header]
    places: dict[str, int] = {}
    for field, known in columns.items():
        for name in known:
            if name in names and field not in places:
                places[field] = names.index(name)
    for field in needed:
        if field not in places:
            guess = nearest(columns[field][0], names)
            raise InvalidError(
                f"cannot read {path}: no column {field!r} (or {', '.join(columns[field][1:])})"
                f" among {', '.join(names)[:FIELD_CHARS_MAX]}{guess}"
            )
    return places
