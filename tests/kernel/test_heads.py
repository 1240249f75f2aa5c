"""Of an owner's heads those are scored that can be first: nobody is left out who is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zenos.core.config import Config
from zenos.core.resources import Resources
from zenos.kernel.entries import BucketKey, Entry
from zenos.kernel.heads import Owned
from zenos.kernel.queue import Queue

REQUEST = Resources(cpu=1000)


def heads(made: list[tuple[float, float]]) -> Owned:
    owned = Owned()
    for order, (queued, expected_s) in enumerate(made):
        key = BucketKey(50, "ann", order, REQUEST)
        owned.heads[key] = Entry(f"t{order}", order, queued, expected_s, key)
    return owned


@given(
    made=st.lists(
        st.tuples(
            st.one_of(st.floats(0, 1000), st.sampled_from([0.0, 999.0, 1000.0])),
            st.one_of(st.floats(1e-9, 1e7), st.sampled_from([1.0, 2.0, 1e-9, 1e9])),
        ),
        min_size=1,
        max_size=8,
    ),
    after=st.lists(st.floats(0, 1e5), min_size=1, max_size=6),
    contention=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_who_is_first_is_among_them(
    made: list[tuple[float, float]], after: list[float], contention: float
) -> None:
    owned, queue = heads(made), Queue(Config())
    now = 1000.0
    for seconds in sorted(after):
        now = 1000.0 + seconds
        best = min(owned.heads.values(), key=lambda e: queue.rank(e, now, contention).rank)
        assert best in owned.first(now)


def test_few_are_left_and_for_a_while() -> None:
    owned = heads([(0.0, 60.0 * 2**n) for n in range(15)])
    first = owned.first(10_000.0)
    assert [entry.task for entry in first] == ["t0"]
    assert owned.first(11_000.0) is first
    owned.changed()
    assert owned.first(11_000.0) is not first
