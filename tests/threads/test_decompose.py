"""Pieces are contiguous, in order, balanced, and as lazy as they can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.core.errors import InvalidError
from zenos.threads import decompose

costs = st.lists(st.integers(0, 50), max_size=9)


@given(st.lists(st.integers()), st.integers(1, 20))
def test_by_count_parts_differ_by_one_at_most(items: list[int], parts: int) -> None:
    pieces = list(decompose(items, parts=parts))
    assert list(itertools.chain(*pieces)) == items
    sizes = [len(piece) for piece in pieces]
    assert len(sizes) == min(parts, len(items))
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(costs, st.integers(1, 5))
def test_by_cost_no_other_cut_has_a_cheaper_largest_part(items: list[int], parts: int) -> None:
    pieces = list(decompose(items, by="cost", parts=parts, cost=lambda item: item))
    assert list(itertools.chain(*pieces)) == items
    count = min(parts, len(items))
    assert len(pieces) == count
    if items:
        best = min(
            max(sum(items[a:b]) for a, b in itertools.pairwise((0, *cuts, len(items))))
            for cuts in itertools.combinations(range(1, len(items)), count - 1)
        )
        largest = max(map(sum, pieces))
        assert largest == best
        assert largest <= sum(items) / parts + max(items)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 8))
def test_by_cost_in_fractions_keeps_the_bound(items: list[float], parts: int) -> None:
    pieces = list(decompose(items, by="cost", parts=parts, cost=float))
    assert list(itertools.chain(*pieces)) == items
    assert max(map(sum, pieces)) <= (sum(items) / parts + max(items)) * (1 + 1e-9)


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_by_bytes_no_piece_is_over_the_size_but_a_single_item(
    items: list[bytes], size: int
) -> None:
    pieces = list(decompose(items, by="bytes", size=size))
    assert list(itertools.chain(*pieces)) == items
    for piece, after in itertools.pairwise([*pieces, None]):
        assert piece
        total = sum(map(len, piece))
        assert total <= size or len(piece) == 1
        if after:
            assert total + len(after[0]) > size, "it could have held the next item as well"


@pytest.mark.parametrize(("by", "held"), [("count", 3), ("bytes", 4)])
def test_a_generator_is_read_only_as_far_as_its_pieces_are(by: str, held: int) -> None:
    read = 0

    def items() -> Iterator[bytes]:
        nonlocal read
        for _ in range(10**9):
            read += 1
            yield b"x"

    pieces = decompose(items(), by=by, size=3)  # type: ignore[arg-type]
    assert read == 0
    assert next(pieces) == [b"x"] * 3
    assert read == held


def test_text_counts_by_its_bytes_in_utf_8() -> None:
    assert list(decompose(["é", "a", "b", "c"], by="bytes", size=2)) == [["é"], ["a", "b"], ["c"]]


def test_arrays_count_by_their_bytes() -> None:
    arrays = [np.zeros((2, n), dtype) for n, dtype in ((4, "f8"), (8, "i2"), (16, "u1"))]
    parts = list(decompose(arrays, by="bytes", parts=2))  # 64, 32 and 32 bytes
    assert [[array.nbytes for array in part] for part in parts] == [[64], [32, 32]]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"parts": 2, "size": 2},
        {"parts": 0},
        {"size": 0},
        {"by": "cost", "size": 2},
        {"by": "weight", "size": 2},
        {"by": "cost", "parts": 2, "cost": lambda _: -1},
        {"by": "cost", "size": 2, "cost": lambda _: float("nan")},
        {"by": "bytes", "parts": 2},
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match=r"^cannot "):
        list(decompose([1, 2, 3], **given))  # type: ignore[call-overload]
