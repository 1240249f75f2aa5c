"""What is remembered of nodes is what was last said of each, and no more is kept than that."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zenos.kernel.known_nodes import LEFT_OVER_MIN, KnownNodes

NODES = ("a", "b", "c", "d")
COSTS = st.one_of(st.none(), st.integers(0, 3))
SAID = st.one_of(
    st.tuples(st.just("forget"), st.sampled_from(NODES)),
    st.tuples(st.just("room"), st.sampled_from(NODES)),
    st.tuples(
        st.just("costs"),
        st.sampled_from(NODES),
        st.integers(0, 3),
        st.sampled_from([1.0, 2.0, 5.0, math.inf]),
    ),
    st.tuples(st.just("changes"), st.sampled_from(NODES), COSTS, st.integers(0, 3)),
    st.tuples(st.just("passes"), st.sampled_from([0.5, 1.0, 3.0])),
    st.tuples(st.just("cheapest"), st.sets(st.sampled_from(NODES))),
    st.tuples(st.just("helps")),
)


class Told:
    """What was said of each node, and what is so of those that have changed since."""

    def __init__(self) -> None:
        self.known, self.now = KnownNodes(), 0.0
        self.room: set[str] = set()
        self.costs: dict[str, int] = {}
        self.ends: dict[str, float] = {}
        self.looked: list[str] = []

    def look(self, node: str) -> None:
        self.looked.append(node)
        if node in self.costs:
            self.known.costs_there(node, self.costs[node], math.inf)
        else:
            self.known.forget(node)

    def say(self, what: str, node: str, *more: object) -> None:
        self.room.discard(node)
        self.costs.pop(node, None)
        self.ends.pop(node, None)
        match what, more:
            case "forget", _:
                self.known.forget(node)
            case "room", _:
                self.known.has_room(node)
                self.room.add(node)
            case "costs", (int() as cost, float() as after):
                self.known.costs_there(node, cost, self.now + after)
                self.costs[node], self.ends[node] = cost, self.now + after
            case _, (cost, int() as less):
                if isinstance(cost, int):
                    self.costs[node] = cost
                    self.known.may_cost(node, max(0, cost - less))
                else:
                    self.known.may_cost(node, less)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        over = {node for node, end in self.ends.items() if end <= self.now}
        assert self.known.over(self.now) == over
        for node in over:  # until somebody looks again
            del self.ends[node]


@given(st.lists(SAID, max_size=60))
def test_it_is_what_was_last_said_of_each_node(happens: list[tuple[Any, ...]]) -> None:
    told = Told()
    known = told.known
    for what, *more in happens:
        match what, more:
            case "passes", [float() as seconds]:
                told.passes(seconds)
            case "cheapest", [set() as taken]:
                left = sorted((c, node) for node, c in told.costs.items() if node not in taken)
                assert known.cheapest(taken, told.look) == (left[0][1] if left else None)
            case "helps", _:
                assert known.helps(told.look) == (bool(told.costs) and not told.room)
            case _:
                told.say(what, *more)
        assert known.fits == told.room
        sure = {node: cost for node, cost in known.costs.items() if node not in known.unsure}
        assert sure == {n: c for n, c in told.costs.items() if n not in known.unsure}


def test_who_cannot_be_the_cheapest_is_not_looked_at() -> None:
    told = Told()
    told.say("costs", "b", 1, math.inf)
    told.say("changes", "a", 2, 0)
    told.say("changes", "c", 1, 0)
    assert told.known.helps(told.look)
    assert told.known.cheapest((), told.look) == "b"
    assert told.looked == []
    told.say("changes", "a", 3, 2)
    assert told.known.cheapest((), told.look) == "b"
    assert told.looked == ["a"]


def test_a_kernel_that_lives_for_long_keeps_no_more_than_it_knows() -> None:
    known = KnownNodes()
    for time in range(10_000):
        for place, node in enumerate(NODES):
            known.costs_there(node, (time + place) % 7, time + 1e6)
    assert known.size <= 2 * (2 * len(NODES) + LEFT_OVER_MIN)
    for _ in range(10_000):
        known.costs_there("a", 1, 1e7)
        known.forget("a")
    assert known.size <= 2 * (2 * len(NODES) + LEFT_OVER_MIN)
