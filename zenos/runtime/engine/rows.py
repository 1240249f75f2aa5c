"""Who holds which row of the cache, and what free rows still hold.

Rows 0 … n-1 belong to the n running sequences, so that a step needs to gather nothing. A row that
was given back keeps its tokens' keys and values until it is used again: a later prompt that begins
the same way takes them over instead of computing them (a chat's next turn, a shared instruction).
"""

from __future__ import annotations

import itertools
from typing import Final

from zenos.runtime.engine.batch import Backend
from zenos.runtime.engine.sequence import Sequence

# A shorter common beginning isn't worth a copy.
PREFIX_MIN: Final = 8


class _Row:
    """ids: tokens whose keys and values it holds (the first `held`). freed: when, as a count."""

    def __init__(self) -> None:
        self.owner: Sequence | None = None
        self.ids: list[int] = []
        self.held = 0
        self.freed = 0
        self.reserved = 0
        self.touched = 0

    def length(self) -> int:
        """Positions that must be kept."""
        return self.held if self.owner is None else self.owner.computed


class Rows:
    """The rows of a backend's cache.

    budget: positions that may be reserved or touched, of all rows together: the memory's bound.
    """

    def __init__(self, backend: Backend, budget: int | None = None) -> None:
        self._backend = backend
        self._rows = [_Row() for _ in range(backend.rows)]
        self._clock = itertools.count(1)
        self.budget = backend.rows * backend.context if budget is None else budget
        self.most = backend.rows
        self.reused = 0

    @property
    def touched(self) -> int:
        """Positions whose memory was touched or is reserved."""
        return sum(row.touched for row in self._rows)

    @property
    def used(self) -> int:
        """Rows that a sequence holds."""
        return sum(row.owner is not None for row in self._rows)

    def take(self, sequence: Sequence, *, reuse: bool = True) -> bool:
        """Give a sequence a row, with as much of its prompt as another row holds.

        False when none is free, or the memory is reserved. At least one token of the prompt is left
        to compute, since its logits are needed.
        """
        free = [index for index, row in enumerate(self._rows) if row.owner is None]
        if not free or self.used >= self.most:
            return False
        reserved = sum(row.reserved for row in self._rows)
        if reserved + sequence.request.limit > self.budget:
            return False
        source, common = self._longest_prefix(sequence) if reuse else (-1, 0)
        if common < PREFIX_MIN and not sequence.request.computed:
            source, common = -1, 0
        if source in free:
            index = source
        else:
            # The one that was given back first; its content is the least likely to be asked for.
            index = min(free, key=lambda i: (self._rows[i].held > 0, self._rows[i].freed, i))
            if common:
                self._backend.copy(source, index, common)
        row = self._rows[index]
        row.owner, row.ids, row.held = sequence, [], 0
        row.reserved = sequence.request.limit
        row.touched = max(row.touched, row.reserved)
        sequence.row, sequence.computed = index, common
        self.reused += common
        self._release_beyond_budget()
        return True

    def _longest_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """The row that shares the most with a prompt's beginning, and how many tokens."""
        best, most = -1, 0
        wanted = sequence.ids[:-1]
        for index, row in enumerate(self._rows):
            ids = row.ids if row.owner is None else row.owner.ids
            common = common_length(wanted, ids, min(len(wanted), row.length()))
            if common > most:
                best, most = index, common
        return best, most

    def _release_beyond_budget(self) -> None:
        """Give the memory of the oldest free rows back while more is touched than may be."""
        touched = sum(row.touched for row in self._rows)
        free = [i for i, row in enumerate(self._rows) if row.owner is None and row.touched]
        for index in sorted(free, key=lambda i: self._rows[i].freed):
            if touched <= self.budget:
                return
            row = self._rows[index]
            touched -= row.touched
            self._backend.release(index)
            row.ids, row.held, row.touched = [], 0, 0

    def release_free(self) -> None:
        """Give back what free rows hold: no prompt will take it over any more."""
        for index, row in enumerate(self._rows):
            if row.owner is None and row.touched:
                self._backend.release(index)
                row.ids, row.held, row.touched = [], 0, 0

    def place(self, sequence: Sequence, index: int) -> None:
        """Move a sequence to row `index`; what is there takes its place."""
        if sequence.row == index:
            return
        here, there = self._rows[sequence.row], self._rows[index]
        self._backend.exchange(sequence.row, index, here.length(), there.length())
        self._rows[sequence.row], self._rows[index] = there, here
        # Where the bytes were touched stays with the place.
        here.touched, there.touched = there.touched, here.touched
        here.touched = max(here.touched, here.reserved)
        there.touched = max(there.touched, there.length(), there.reserved)
        if there.owner is not None:
            there.owner.row = sequence.row
        sequence.row = index

    def give_back(self, sequence: Sequence) -> None:
        """Free a sequence's row. What it holds stays for prompts that begin the same way."""
        row = self._rows[sequence.row]
        row.owner, row.ids, row.held = None, sequence.ids, sequence.computed
        row.freed, row.reserved = next(self._clock), 0
        sequence.row = -1


def common_length(first: list[int], second: list[int], most: int) -> int:
    """How many of the first `most` items two lists share from their beginning."""
    low, high = 0, most
    if first[:high] == second[:high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
