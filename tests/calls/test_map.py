"""Maps: order, errors, laziness, cancellation."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import zenos
from tests.calls import work
from tests.processes import until
from zenos.core.errors import InvalidError, LaneError

pytestmark = pytest.mark.usefixtures("shared")


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_results_come_in_the_order_of_the_items(lanes: int, chunk: int | None) -> None:
    done: list[tuple[int, int | None]] = []
    results = zenos.map(
        work.increment,
        range(300),
        cpu=0.5,
        lanes=lanes,
        chunk=chunk,
        progress=lambda count, total: done.append((count, total)),
    )
    assert list(results) == list(range(1, 301))
    assert done[-1] == (300, 300)
    assert [count for count, _ in done] == sorted(count for count, _ in done)


def test_nothing_is_a_map_too() -> None:
    assert list(zenos.map(work.increment, [])) == []
    with pytest.raises(InvalidError, match="chunk=0"):
        zenos.map(work.increment, [1], chunk=0)


def test_an_item_that_fails_raises_in_its_place_with_its_traceback() -> None:
    results = zenos.map(work.fail_at, range(20), chunk=3)
    assert list(itertools.islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="seven") as caught:
        next(results)
    assert "fail_at" in "".join(traceback.format_exception(caught.value))
    assert list(results) == []


def test_an_input_without_end_is_read_only_as_far_as_needed() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    with zenos.map(work.increment, numbers(), chunk=2, window=3) as results:
        assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
        assert len(taken) <= 4 + 2 * 3


def test_an_input_that_fails_does_so_after_the_results_before() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise OSError("no more")

    results = zenos.map(work.increment, numbers(), chunk=1)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_closing_cancels_the_rest(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    paths = [str(ran)] * 10
    with zenos.map(work.sleep_deaf, paths, chunk=1):
        until(lambda: len(work.lines(ran)) == 1)
    assert zenos.call(work.increment, 1).result(60) == 2
    assert len(work.lines(ran)) == 1


def test_closing_hands_on_nothing_more() -> None:
    results = zenos.map(work.increment, range(20), chunk=10)
    found = []
    for result in results:
        found.append(result)
        if result == 3:
            results.close()
    assert found == [1, 2, 3]
    assert list(results) == []


def test_a_lane_that_dies_fails_its_chunk_unless_it_may_run_again(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match="cannot tell whether die_once"):
        list(zenos.map(work.die_once, [str(tmp_path / "once")]))
    again = zenos.map(work.die_once, [str(tmp_path / "again")], idempotent=True)
    assert list(again) == ["done"]
