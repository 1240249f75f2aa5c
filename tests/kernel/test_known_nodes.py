"""What is remembered of nodes is what was last said of each, and no more is kept than that."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zenos.kernel.known_nodes import LEFT_OVER_MIN, KnownNodes

NODES = ("a", "b", "c", "d")
SAID = st.one_of(
    st.tuples(st.just("forget"), st.sampled_from(NODES)),
    st.tuples(st.just("room"), st.sampled_from(NODES)),
    st.tuples(
        st.just("costs"),
        st.sampled_from(NODES),
        st.integers(0, 3).map(float),
        st.sampled_from([1.0, 2.0, 5.0, math.inf]),
    ),
    st.tuples(st.just("passes"), st.sampled_from([0.5, 1.0, 3.0])),
    st.tuples(st.just("cheapest"), st.sets(st.sampled_from(NODES))),
)


@given(st.lists(SAID, max_size=60))
def test_it_is_what_was_last_said_of_each_node(happens: list[tuple[object, ...]]) -> None:
    known, now = KnownNodes(), 0.0
    room: set[object] = set()
    costs: dict[object, tuple[float, float]] = {}
    for what, *more in happens:
        if what == "passes":
            now += float(str(more[0]))
            over = {node for node, (_, end) in costs.items() if end <= now}
            assert known.over(now) == over
            for node in over:  # until somebody looks again
                costs[node] = (costs[node][0], math.inf)
            continue
        if what == "cheapest":
            taken = more[0]
            assert isinstance(taken, set)
            left = sorted((cost, node) for node, (cost, _) in costs.items() if node not in taken)
            assert known.cheapest(taken) == (left[0][1] if left else None)
            continue
        node = str(more[0])
        room.discard(node)
        costs.pop(node, None)
        if what == "forget":
            known.forget(node)
        elif what == "room":
            known.has_room(node)
            room.add(node)
        else:
            cost, after = float(str(more[1])), float(str(more[2]))
            known.costs_there(node, cost, now + after)
            costs[node] = (cost, now + after)
        assert known.fits == room
        assert known.costs == {node: cost for node, (cost, _) in costs.items()}
        assert known.helps == (bool(costs) and not room)


def test_a_kernel_that_lives_for_long_keeps_no_more_than_it_knows() -> None:
    known = KnownNodes()
    for time in range(10_000):
        for place, node in enumerate(NODES):
            known.costs_there(node, float((time + place) % 7), time + 1e6)
    assert known.size <= 2 * (2 * len(NODES) + LEFT_OVER_MIN)
    for _ in range(10_000):
        known.costs_there("a", 1.0, 1e7)
        known.forget("a")
    assert known.size <= 2 * (2 * len(NODES) + LEFT_OVER_MIN)
