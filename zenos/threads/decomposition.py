"""Cutting work into contiguous, ordered, balanced pieces."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from zenos.core.errors import InvalidError
from zenos.threads import checks

T = TypeVar("T")
By = Literal["count", "bytes", "cost"]


def decompose(
    items: Iterable[T],
    by: By = "count",
    *,
    parts: int | None = None,
    size: float | None = None,
    cost: Callable[[T], float] | None = None,
) -> Iterator[list[T]]:
    """Pieces of `items`, none of them empty, which one after the other are `items` again.

    by: what is balanced: the number of items, their bytes (`nbytes`, or the length of bytes and of
    text in UTF-8), or what `cost` says of each. One of two:

    - size: no piece holds more than that (items, bytes or cost), but a single item that is larger
      by itself stands alone. There are as few pieces as possible. Lazy: at most one piece is held,
      and one item beyond it.
    - parts: so many pieces, or one per item where there are fewer. By count their sizes differ by
      one at most. By bytes or cost the largest piece is the smallest that any contiguous cut
      into so many can have (linear partition: the least B for which filling up to B suffices, found
      by bisection over prefix sums); so it is at most total / parts + the largest item. With costs
      that are no integers, up to rounding. Takes the items into a list.

    Raises InvalidError for anything else, and for a cost that is negative or no number.
    """
    if (parts is None) == (size is None):
        raise InvalidError("cannot decompose: give either parts= or size=")
    measure = _measure(by, cost)
    if size is not None:
        checks.number(size, "size", above=True)
        if by == "count" and size < 1:
            raise InvalidError(f"cannot use size={size:g} by count: give a number, 1 or more")
        if measure is None:
            return _by_count(items, int(min(size, 2**62)))
        return _filled(items, size, measure)
    parts = checks.whole(parts, "parts", 1)
    whole = items if isinstance(items, list | tuple) else list(items)
    count = min(parts, len(whole))
    if measure is None:
        ends = [len(whole) * (number + 1) // count for number in range(count)]
    else:
        ends = _partition([measure(item) for item in whole], count)
    return (list(whole[begin:end]) for begin, end in itertools.pairwise([0, *ends]))


def _measure(by: By, cost: Callable[[T], float] | None) -> Callable[[T], float] | None:
    if by not in ("count", "bytes", "cost"):
        raise InvalidError(f"cannot decompose by {by!r}: by count, bytes or cost")
    if (by == "cost") != (cost is not None):
        raise InvalidError("cannot decompose: cost= and by='cost' belong together")
    if by == "count":
        return None
    told = cost or bytes_of

    def checked(item: T) -> float:
        value = told(item)
        if not 0 <= value < math.inf:
            raise InvalidError(f"cannot decompose: {by} of an item is {value}; 0 or more is needed")
        return value

    return checked


def bytes_of(item: Any) -> int:
    """Bytes of an item: `nbytes` of an array, the length of bytes, of text in UTF-8."""
    if isinstance(item, str):
        return len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
    if isinstance(item, bytes | bytearray):
        return len(item)
    size = getattr(item, "nbytes", None)
    if not isinstance(size, int):
        raise InvalidError(
            f"cannot tell the bytes of a {type(item).__name__}: use by='cost' with cost="
        )
    return size


def _by_count(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while piece := list(itertools.islice(rest, size)):
        yield piece


def _filled(items: Iterable[T], size: float, measure: Callable[[T], float]) -> Iterator[list[T]]:
    piece: list[T] = []
    held = 0.0
    for item in items:
        more = measure(item)
        if piece and held + more > size:
            yield piece
            piece, held = [], 0.0
        piece.append(item)
        held += more
    if piece:
        yield piece


def _partition(costs: Sequence[float], count: int) -> list[int]:
    """Where each of `count` pieces ends, so that the costliest is as cheap as can be."""
    if count == 0:
        return []
    prefix = [0.0 if any(isinstance(c, float) for c in costs) else 0]
    prefix += itertools.accumulate(costs)
    low, high = max(costs), prefix[-1]
    integers = isinstance(prefix[0], int)
    while low < high:
        middle = (low + high) // 2 if integers else (low + high) / 2
        if not integers and not low < middle < high:
            break
        if len(_ends(prefix, middle, count)) <= count:
            high = middle
        else:
            low = middle + 1 if integers else middle
    ends = _ends(prefix, high, count)
    # Filling up may need fewer pieces than there are to be: the last ones are cut further, which
    # makes none larger.
    for number in range(count):
        last = len(costs) - (count - 1 - number)
        if number >= len(ends) or ends[number] > last:
            ends[number:] = range(last, len(costs) + 1)
            break
    return ends


def _ends(prefix: Sequence[float], bound: float, count: int) -> list[int]:
    """Ends of pieces that are filled up to `bound`; gives up after more than `count`."""
    ends: list[int] = []
    at, whole = 0, len(prefix) - 1
    while at < whole and len(ends) <= count:
        at = max(bisect_right(prefix, prefix[at] + bound) - 1, at + 1)
        ends.append(at)
    return ends
