"""What one step computes, and what a model's forward pass must offer for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Part(NamedTuple):
    """A part of one prompt: `tokens` at positions `start` … of cache row `row`.

    wanted: how many of the last positions' logits are asked for (0: the prompt goes on).
    """

    row: int
    tokens: list[int]
    start: int
    wanted: int


class Batch(NamedTuple):
    """One step: the newest token of each running sequence, and parts of prompts.

    tokens, positions: of rows 0 … n-1, which hold the running sequences. parts: of other rows.
    """

    tokens: list[int]
    positions: list[int]
    parts: Sequence[Part]


class Backend(Protocol):
    """A loaded model with a cache of keys and values in rows.

    A position that was computed stays until it is written again; nothing needs to be cleared.
    token_bytes: cache memory that one position takes.
    """

    rows: int
    context: int
    vocab_size: int
    token_bytes: int

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32, (n + wanted positions of the parts in their order, vocabulary)."""
        ...

    def exchange(self, first: int, second: int, first_length: int, second_length: int) -> None:
        """Swap the first positions of two rows."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        ...

    def release(self, row: int) -> None:
        """Give the memory of a row that holds nothing any more back to the system."""
        ...
