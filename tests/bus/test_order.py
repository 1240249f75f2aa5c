"""The order of service: what goes first, what waits, and for how long at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenos.bus.envelope import Kind
from zenos.bus.order import KINDS, Item, Link, Policy, SendQueue
from zenos.core.errors import BusyError

SPEED = 1000.0  # bytes a second: a message of 1000 bytes is expected to take a second


def queue(policy: Policy | None = None, **bounds: int) -> SendQueue:
    return SendQueue(policy or Policy(), Link(speed=SPEED), **bounds)


def item(
    topic: str, size: int = 1, kind: Kind = "data", priority: int = 50, **more: object
) -> Item:
    return Item(kind, priority, str(more.pop("sender", "s")), topic, bytes(size), **more)  # type: ignore[arg-type]


def served(waiting: SendQueue, now: float = 0.0) -> list[str]:
    """The topics of all that waits, one by one."""
    found = []
    while one := waiting.take(now, 1):
        found += [item.topic for item in one]
    return found


@pytest.mark.parametrize("order", [("command", "state", "data"), ("data", "state", "command")])
def test_kinds_go_as_the_policy_says_whatever_their_priority(order: tuple[Kind, ...]) -> None:
    waiting = queue(Policy(order=order))
    for priority, kind in enumerate(reversed(order)):
        waiting.put(item(kind, kind=kind, priority=100 - priority), 0.0)
    assert served(waiting) == list(order)


def test_then_priority_then_the_least_expected_latency() -> None:
    waiting = queue()
    waiting.put(item("large", 500), 0.0)
    waiting.put(item("small", 5), 0.0)
    waiting.put(item("urgent and large", 900, priority=51), 0.0)
    assert served(waiting) == ["urgent and large", "small", "large"]


def test_a_large_message_is_overtaken_for_as_long_as_it_is_expected_to_take() -> None:
    # It takes 2 s, so at an ageing of 1 what comes up to 2 s later may overtake it.
    for ageing, seconds in ((1.0, 2.0), (4.0, 0.5)):
        waiting = queue(Policy(ageing=ageing))
        waiting.put(item("large", 2000), 10.0)
        waiting.put(item("just before", 1), 10.0 + seconds - 0.01)
        waiting.put(item("just after", 1), 10.0 + seconds)
        assert served(waiting) == ["just before", "large", "just after"]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5), st.integers(1, 5000), st.sampled_from("ab"), st.sampled_from("xyz")
        ),
        max_size=30,
    ),
    st.floats(0.1, 10),
)
def test_the_bound_holds_for_any_messages(
    arrivals: list[tuple[float, int, str, str]], ageing: float
) -> None:
    """None overtakes another that came more than L / ageing before; lanes keep their order."""
    waiting = queue(Policy(ageing=ageing))
    came: dict[int, tuple[float, int, str]] = {}
    kept = []
    for number, (at, size, sender, topic) in enumerate(sorted(arrivals)):
        one = Item("data", 50, sender, topic, bytes(size))
        came[id(one)] = (at, number, sender + topic)
        kept.append(one)  # or another could get its id
        waiting.put(one, at)
    order = [came[id(one)] for one in waiting.take(99.0, 10**9)]
    sizes = {number: size for number, (_, size, _, _) in enumerate(sorted(arrivals))}
    assert len(order) == len(arrivals)
    assert len(waiting) == waiting.waiting_bytes == 0
    for place, (at, number, lane) in enumerate(order):
        # In a lane a message also waits for those before it, so the bound is that of the lane.
        ahead = [n for _, n, other in order if other == lane and n <= number]
        patience = max(sizes[n] / SPEED for n in ahead) / ageing
        for other_at, other, other_lane in order[:place]:
            assert other_at <= at + patience + 1e-6, "an earlier one was overtaken too late"
            assert other_lane != lane or other < number, "a lane is first in, first out"


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(KINDS),
                st.integers(0, 2),
                st.sampled_from("xy"),
                st.integers(1, 40),
            ),
            st.integers(0, 60),
            st.sampled_from(["drop"]),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_made_up_or_miscounted(steps: list[object]) -> None:
    waiting = queue(messages_max=8, bytes_max=150)
    there: list[Item] = []
    for now, step in enumerate(steps):
        match step:
            case (kind, priority, topic, size):
                new = Item(kind, priority, "s", topic, bytes(size))  # type: ignore[arg-type]
                fits = len(there) < 8 and sum(len(one.frame) for one in there) + size <= 150
                if fits or not there:
                    waiting.put(new, now)
                    there.append(new)
                else:
                    with pytest.raises(BusyError):
                        waiting.put(new, now)
            case int(wanted):
                for one in waiting.take(now, wanted):
                    there = [other for other in there if other is not one]
            case _:
                dropped = {id(one) for one in waiting.drop("state", "x")}
                stay = [one for one in there if (one.kind, one.topic) != ("state", "x")]
                assert dropped == {id(one) for one in there} - {id(one) for one in stay}
                there = stay
        assert len(waiting) == len(there)
        assert waiting.waiting_bytes == sum(len(one.frame) for one in there)
    assert {id(one) for one in waiting.take(999, 10**9)} == {id(one) for one in there}


def test_a_new_policy_orders_what_waits_already() -> None:
    waiting = queue()
    for kind in KINDS:
        waiting.put(item(kind, kind=kind), 0.0)
    waiting.use(Policy(order=("data", "command", "state")))
    assert served(waiting) == ["data", "command", "state"]


def test_a_new_ageing_holds_for_what_waits_already_too() -> None:
    waiting = queue(Policy(ageing=1.0))
    waiting.put(item("first"), 1000.0)
    waiting.use(Policy(ageing=0.1))
    waiting.put(item("later"), 1001.0)
    assert served(waiting) == ["first", "later"]


def test_what_is_too_late_is_not_sent() -> None:
    waiting = queue()
    waiting.put(item("late", deadline=5.0), 0.0)
    waiting.put(item("in time", deadline=5.1), 0.0)
    assert served(waiting, now=5.0) == ["in time"]
    assert waiting.expired == 1
    assert len(waiting) == waiting.waiting_bytes == 0


def test_it_is_bounded_in_messages_and_in_bytes_but_takes_one_of_any_size() -> None:
    waiting = queue(messages_max=2, bytes_max=100)
    waiting.put(item("huge", 1000), 0.0)
    with pytest.raises(BusyError, match="cannot send more: 1 messages with 1000 bytes wait"):
        waiting.put(item("more"), 0.0)
    waiting.take(0.0, 1)
    waiting.put(item("a", 60), 0.0)
    assert not waiting.has_room(41)
    waiting.put(item("b", 40), 0.0)
    with pytest.raises(BusyError):
        waiting.put(item("c", 0), 0.0)


def test_a_batch_is_at_most_so_large_but_never_empty() -> None:
    waiting = queue()
    for number in range(4):
        waiting.put(item(f"{number}", 40), float(number))
    assert [one.topic for one in waiting.take(9.0, 100)] == ["0", "1"]
    assert [one.topic for one in waiting.take(9.0, 1)] == ["2"]


def test_a_link_s_speed_is_measured() -> None:
    link = Link(speed=1e9)
    for _ in range(100):
        link.observe(1_000_000, 1.0)
    assert link.speed == pytest.approx(1e6, rel=0.01)
    assert link.expected_s(2_000_000) == pytest.approx(2.0, rel=0.01)
    before = link.speed
    link.observe(0, 1.0)
    link.observe(100, 0.0)
    assert link.speed == before
    # A few bytes in a moment say little.
    link.observe(10, 1e-9)
    assert link.speed == pytest.approx(before, rel=0.01)
