"""What a program gives a pool is looked at before anything is started, and refused in words."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.threads import work
from zenos.core.errors import InvalidError
from zenos.threads import Options, Pool, decompose

NAN, INF, HUGE = math.nan, math.inf, 10**400
NO_NUMBERS: Final = ("x", "1", None, [], object(), True, NAN)
NO_WHOLE: Final = (*NO_NUMBERS, 1.5, -1, HUGE)
OF_POOL: Final[dict[str, tuple[Any, ...]]] = {
    "lanes": tuple(value for value in (*NO_WHOLE, 0) if value is not None),
    "grace_s": (*NO_NUMBERS, -1, -INF),
    "ageing": (*NO_NUMBERS, -1, INF, HUGE),
    "name": (None, 5, b"x", []),
    "kind": (None, 5, "fiber", []),
    "policy": (None, 5, "lifo", []),
}
OF_OPTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "priority": (*NO_WHOLE, 101),
    "retries": NO_WHOLE,
    "expected_s": (*NO_NUMBERS, -1, INF),
    "backoff_s": (*NO_NUMBERS, -1),
    "timeout_s": tuple(value for value in (*NO_NUMBERS, 0, -1) if value is not None),
    "retry_on": (5, None, "x", ValueError, [ValueError], (5,), ("x",), (int,)),
    "name": (None, 5, b"x", []),
}


def refused(name: str, do: Callable[[], object]) -> None:
    with pytest.raises(InvalidError, match=rf"^cannot .*{name}.*(: give|: kinds are)"):
        do()


@pytest.mark.parametrize("name", OF_POOL)
def test_a_pool_refuses_what_no_pool_can_be(name: str) -> None:
    before = threading.active_count()
    for value in OF_POOL[name]:
        refused(name, lambda value=value: Pool(**{"lanes": 1, name: value}))
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def pool() -> Any:
    with Pool(1) as made:
        yield made


@pytest.mark.parametrize("name", OF_OPTIONS)
def test_options_refuse_what_no_thread_can_have(pool: Pool, name: str) -> None:
    for value in OF_OPTIONS[name]:
        options = Options(**{name: value})
        refused(name, lambda options=options: pool.submit(work.square, 1, options=options))
        refused(name, lambda options=options: pool.map(work.square, [1], options=options))
    assert pool.submit(work.square, 3).result(60) == 9


def test_other_numbers_are_refused_where_they_are_given(pool: Pool) -> None:
    for value in (*NO_WHOLE, 0):
        odd: Any = value
        refused("lanes", lambda odd=odd: pool.resize(odd))
        refused("chunk", lambda odd=odd: pool.reduce(max, [1, 2], chunk=odd))
        if odd is not None:
            refused("chunk", lambda odd=odd: pool.map(work.square, [1], chunk=odd))
            refused("window", lambda odd=odd: pool.map(work.square, [1], window=odd))
            refused("parts", lambda odd=odd: list(decompose([1], parts=odd)))
    for value in ("x", [], True, NAN, 0, -1, 0.5):
        odd = value
        refused("size", lambda odd=odd: list(decompose([1], size=odd)))
    assert pool.lanes == 1
