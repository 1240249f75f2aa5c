"""What of a table fits into a screen: how wide each column becomes, and how texts are shortened.

1. Columns in which nothing stands are left out.
2. Columns of text give way, always the widest of them, down to their least width.
3. Columns that can be done without are left out, in the order of SPARE.
4. Columns of text give way further, down to LEAST_OF_ALL.
5. Columns are left out from the right; the first one stays.

It ends as soon as all fits; what then is free again goes to the columns of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

ELLIPSIS: Final = "…"
LEAST, LEAST_OF_ALL = 10, 6  # cells
# What tells more than its name: of these a few more cells are kept as long as that can be.
LEAST_OF: Final = {"PROGRESS": 22, "BODY": 22, "REASON": 22, "NAME": 14, "TASK": 16, "MODEL": 16}
# Columns by name that can be done without; the first goes first.
SPARE: Final = (
    *("LIMITS BY", "USED OUTSIDE", "DOES", "THREADS", "CREATED", "ARCHITECTURE", "LOSS", "GPU"),
    *("CPU", "MEMORY", "TOK/S", "ALIASES", "SENDER", "RECEIVER", "SIZE", "RECEIVERS", "FAILED"),
    *("GPU-HOURS", "VERSION", "KIND", "USER", "TIME", "PRIO", "HAD / DUE"),
)
# Names: their ends tell them apart as often as their beginnings. Other texts lose their ends.
NAMES: Final = frozenset({"ID", "TASK", "NAME", "MODEL", "NODE", "USER", "WHO", "DEPLOYMENT"})


class Column(NamedTuple):
    """A column: its name, the cells that it wants, whether it is of numbers, which stay whole."""

    name: str
    wanted: int
    is_number: bool = False
    is_empty: bool = False

    @property
    def least(self) -> int:
        """Cells without which it tells little."""
        given = LEAST_OF.get(self.name, LEAST)
        return self.wanted if self.is_number else min(self.wanted, given)

    @property
    def least_of_all(self) -> int:
        """Cells below which it tells nothing."""
        return self.wanted if self.is_number else min(self.wanted, LEAST_OF_ALL)


def widths(columns: Sequence[Column], room: int, gap: int) -> list[int]:
    """Cells for each column, in their order; 0: it is left out.

    room: cells of a line; gap: cells that stand between two columns. The first column stays.
    """

    def fits(given: Sequence[int]) -> bool:
        shown = [cells for cells in given if cells]
        return sum(shown) + gap * (len(shown) - 1) <= room

    given = [column.wanted for column in columns]
    if fits(given):
        return given
    out = {at for at, column in enumerate(columns) if column.is_empty and at}  # 1

    def kept(of: Callable[[Column], int]) -> list[int]:
        return [0 if at in out else of(column) for at, column in enumerate(columns)]

    spare = (at for name in SPARE for at, c in enumerate(columns) if c.name == name and at)
    while not fits(floor := kept(lambda column: column.least)):  # 2, 3
        if (at := next(spare, None)) is None:
            break
        out.add(at)
    right = iter(range(len(columns) - 1, 0, -1))
    while not fits(floor):  # 4, 5
        floor = kept(lambda column: column.least_of_all)
        if not fits(floor):
            if (at := next(right, None)) is None:
                break  # the first alone is too wide
            out.add(at)
    given = kept(lambda column: column.wanted)
    while not fits(given):
        giving = [at for at, cells in enumerate(given) if cells > floor[at]]
        if not giving:
            return [min(room, given[0]), *given[1:]]
        given[max(giving, key=lambda at: given[at])] -= 1
    return given


def shortened(text: str, cells: int, head: int | None = None) -> str:
    """A text in so many cells of a terminal; what is left out stands as one `…`.

    head: cells that its beginning gets; by default all, so that the end is left out.
    """
    if cell_len(text) <= cells:
        return text
    if cells <= 1:
        return ELLIPSIS[:cells]
    ahead = cells - 1 if head is None else min(head, cells - 1)
    tail = set_cell_size(text[::-1], cells - 1 - ahead)[::-1]
    return f"{set_cell_size(text, ahead).rstrip()}{ELLIPSIS}{tail}"


def apart(texts: Sequence[str], cells: int) -> list[str]:
    """Names in so many cells each, which stay different where they are, if that can be.

    1. The middle is left out.
    2. Where that makes two names one, another part is, the same of all.
    3. Where each part does, those that it makes one are shown from where they begin to differ.
    """
    middle = (cells - 1) // 2
    for head in sorted(range(cells), key=lambda head: abs(head - middle)):  # 1, 2
        made = [shortened(text, cells, head) for text in texts]
        if len(set(made)) == len(set(texts)):
            return made
    made = [shortened(text, cells, middle) for text in texts]
    alike: dict[str, set[str]] = {}
    for text, short in zip(texts, made, strict=True):
        alike.setdefault(short, set()).add(text)
    begin = {short: _alike(min(of), max(of)) for short, of in alike.items() if len(of) > 1}
    return [  # 3
        _from(text, begin[short], cells) if short in begin else short
        for text, short in zip(texts, made, strict=True)
    ]


def _alike(first: str, last: str) -> int:
    """Characters with which both begin, and so all texts that stand between them in order."""
    pairs = zip(first, last, strict=False)
    return sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], pairs))


def _from(text: str, begin: int, cells: int) -> str:
    return ELLIPSIS[:cells] + shortened(text[begin:], max(cells - 1, 0))


class Fitted(NamedTuple):
    """A table that fits. shown: which of the columns; the others are by column of those."""

    shown: list[int]
    cells: list[int]
    heads: list[Text]
    rows: list[list[Text]]


def fit(
    names: Sequence[str],
    rows: Sequence[Sequence[Text]],
    numbers: Sequence[bool],
    room: int | None,
    gap: int,
) -> Fitted:
    """What of a table fits into `room` cells, see the head of this file; None: all of it.

    numbers: which columns are of numbers.
    """
    heads = [Text(name, style="bold") for name in names]
    whole = [[head, *(row[at] for row in rows)] for at, head in enumerate(heads)]
    wanted = [
        Column(
            name,
            max(cell.cell_len for cell in column),
            of_number,
            all(not cell.plain.strip("- ") for cell in column[1:]),
        )
        for name, of_number, column in zip(names, numbers, whole, strict=True)
    ]
    given = [column.wanted for column in wanted] if room is None else widths(wanted, room, gap)
    shown = [at for at, cells in enumerate(given) if cells]
    columns = [_cut(names[at], whole[at], given[at]) for at in shown]
    lines = [list(line) for line in zip(*columns, strict=True)]
    return Fitted(shown, [given[at] for at in shown], lines[0], lines[1:])


def _cut(name: str, column: Sequence[Text], cells: int) -> list[Text]:
    """The cells of the column of that name, its head first, so that none is wider."""
    if all(cell.cell_len <= cells for cell in column):
        return list(column)
    if name in NAMES:
        plain = [cell.plain for cell in column]
        texts = [shortened(plain[0], cells), *apart(plain[1:], cells)]
        return [
            cell if text == cell.plain else Text(text, style=cell.style)
            for cell, text in zip(column, texts, strict=True)
        ]
    made = [cell.copy() for cell in column]  # a bar keeps its colours
    for cell in made:
        cell.truncate(cells, overflow="ellipsis")
    return made
