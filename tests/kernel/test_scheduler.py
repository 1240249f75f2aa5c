"""The order in which waiting tasks start, and the bound on their waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.priority import execution_s, p_of, remaining_s, score, wait_s_max
from zenos.core.task import State
from zenos.kernel.queue import LEFT_OVER_MIN

seconds = st.floats(0.001, 1e7)


@given(waited=st.floats(0, 1e9), expected=seconds)
def test_p_is_t_over_one_plus_t(waited: float, expected: float) -> None:
    t = waited / expected
    assert abs(p_of(waited, expected) - t / (1 + t)) < 1e-9
    assert 0 <= p_of(waited, expected) < 1 or waited / expected > 1e15


def test_a_task_is_expected_to_take_longer_on_a_busy_machine() -> None:
    assert [execution_s(10.0, contention) for contention in (0.0, 0.5, 1.0)] == [10.0, 15.0, 20.0]


@given(st.lists(st.tuples(st.floats(0, 1e6), seconds), min_size=2, max_size=2))
def test_among_equal_priorities_the_order_is_that_of_the_response_ratio(
    pair: list[tuple[float, float]],
) -> None:
    ratios = [(w + e) / e for w, e in pair]
    scores = [score(50, 25.0, w, e) for w, e in pair]
    if abs(ratios[0] - ratios[1]) > 1e-6 * max(ratios) and max(ratios) < 1e6:
        assert (ratios[0] < ratios[1]) == (scores[0] < scores[1])


def test_one_that_has_run_longer_than_expected_is_expected_to_run_as_long_again() -> None:
    assert remaining_s(60, 20) == 40
    assert remaining_s(60, 90) == 90


def test_higher_priority_starts_first_and_then_the_earlier_of_equals() -> None:
    h = Harness(node(cpu=1))
    blocker = h.submit(spec())
    low, normal = h.submit(spec(priority=25)), h.submit(spec(priority=50))
    high, second = h.submit(spec(priority=75)), h.submit(spec(priority=75))
    order = []
    h.exit(blocker)
    for _ in range(4):
        order.append(h.started[-1].id)
        h.exit(h.started[-1])
    assert order == [high.id, second.id, normal.id, low.id]


def test_a_shorter_task_overtakes_as_its_response_ratio_grows_faster() -> None:
    h = Harness(node(cpu=1))
    blocker = h.submit(spec())
    h.submit(spec(expected_s=3600.0))
    h.clock.advance(5)
    short = h.submit(spec(expected_s=10.0))
    h.clock.advance(20)
    h.exit(blocker)
    assert h.started[-1].id == short.id


@pytest.mark.parametrize("shorter_wants", [1.0, 0.9])
def test_of_those_submitted_at_once_the_shorter_starts_first_then_the_earlier(
    shorter_wants: float,
) -> None:
    """Every P is 0 then, whether they want the same or not."""
    h = Harness(node(cpu=1))
    wanted = [spec(expected_s=3600.0), spec(expected_s=3600.0)]
    wanted += [spec(cpu=shorter_wants, expected_s=10.0), spec(expected_s=60.0)]
    h.step(*(ev.Submit(request=number, spec=one) for number, one in enumerate(wanted)))
    order = []
    while h.started:
        task = h.started.pop()
        order.append(task.id)
        h.exit(task)
    assert order == ["t3", "t4", "t1", "t2"]


def test_ageing_lets_a_lower_priority_overtake_a_fresh_higher_one() -> None:
    h = Harness(node(cpu=1), config=Config(ageing=50.0))
    blocker = h.submit(spec())
    low = h.submit(spec(priority=25, expected_s=10.0))
    h.clock.advance(1000)
    h.submit(spec(priority=50, expected_s=10.0))
    h.exit(blocker)
    assert h.started[-1].id == low.id


def test_what_does_not_fit_is_passed_over() -> None:
    h = Harness(node(cpu=2))
    h.submit(spec(cpu=1))
    large = h.submit(spec(cpu=2))
    small = h.submit(spec(cpu=1, priority=25))
    assert h.now(small).state is State.STARTING
    assert h.now(large).state is State.QUEUED


def test_shares_of_a_gpu_lie_on_one_device_and_whole_ones_are_whole() -> None:
    h = Harness(node(cpu=8, gpu=2))
    a = h.submit(spec(cpu=0.1, gpu=0.6, memory="10MB"))
    b = h.submit(spec(cpu=0.1, gpu=0.6, memory="10MB"))
    c = h.submit(spec(cpu=0.1, gpu=0.4, memory="10MB"))
    d = h.submit(spec(cpu=0.1, gpu=1, memory="10MB"))
    devices = [h.now(t).allocation.shares for t in (a, b, c)]  # type: ignore[union-attr]
    assert devices == [{0: 600}, {1: 600}, {0: 400}]
    assert h.now(d).state is State.QUEUED
    h.exit(a)
    h.exit(c)
    assert h.now(d).allocation.shares == {0: 1000}  # type: ignore[union-attr]


def test_a_low_task_starts_within_its_bound_under_a_flood_of_high_ones() -> None:
    """Priority-75 tasks of 1 s at a load of 1.5 for ever, and one priority-25 task."""
    config = replace(Config(), overdue_wait_s=100.0)
    h = Harness(node(cpu=2), config=config)
    for _ in range(3):
        h.submit(spec(priority=75, expected_s=1.0))
    low = h.submit(spec(cpu=2, priority=25, expected_s=1.0))
    bound_s = wait_s_max(25, 100.0) + 2.0  # overdue, then what runs at most a second longer
    start = h.clock.now()
    while h.now(low).state is State.QUEUED and h.clock.now() - start < 2 * bound_s:
        h.clock.advance(1.0)
        for task in [t for t in h.kernel.state.tasks.values() if t.state is State.STARTING]:
            h.exit(task)
        for _ in range(3):
            h.submit(spec(priority=75, expected_s=1.0))
    assert h.now(low).state is State.STARTING
    assert h.clock.now() - start <= bound_s


def test_overdue_tasks_hold_at_most_their_share_while_others_go_on() -> None:
    config = replace(Config(), overdue_wait_s=10.0, overdue_share=0.5, overdue_late=10.0)
    h = Harness(node(cpu=4), config=config)
    blockers = [h.submit(spec(priority=75)) for _ in range(4)]
    old = [h.submit(spec(priority=50, memory="100MB")) for _ in range(4)]
    h.wait(60)
    new = [h.submit(spec(priority=75, memory="100MB")) for _ in range(2)]
    for blocker in blockers:
        h.exit(blocker)
    assert [h.now(t).state for t in old[:2]] == [State.STARTING] * 2
    assert [h.now(t).state for t in new] == [State.STARTING] * 2
    assert [h.now(t).state for t in old[2:]] == [State.QUEUED] * 2


def test_overdue_tasks_take_a_whole_machine_that_nobody_else_wants() -> None:
    h = Harness(node(cpu=8))
    blocker = h.submit(spec(cpu=8, memory="10MB"))
    old = [h.submit(spec(memory="10MB")) for _ in range(20)]
    h.wait(2 * 3600)
    h.exit(blocker)
    assert [h.now(t).state for t in old[:8]] == [State.STARTING] * 8
    # What they took of what nobody wanted is no reason to take less ahead of others later.
    new = [h.submit(spec(priority=100, memory="10MB")) for _ in range(8)]
    for task in old[:2]:
        h.exit(task)
    assert [h.now(t).state for t in old[8:10]] == [State.STARTING] * 2
    for task in old[2:8]:
        h.exit(task)
    assert [h.now(t).state for t in new[:6]] == [State.STARTING] * 6


def test_what_is_left_to_overdue_tasks_is_not_what_is_held_back_for_the_first() -> None:
    h = Harness(node(cpu=4))
    blockers = [h.submit(spec(memory="10MB")) for _ in range(4)]
    large = h.submit(spec(cpu=3, memory="10MB"))
    small = [h.submit(spec(memory="10MB")) for _ in range(4)]
    h.wait(2 * 3600)
    for blocker in blockers[:2]:
        h.exit(blocker)
    assert [h.now(t).state for t in (large, *small)] == [State.QUEUED] * 5
    h.exit(blockers[2])
    assert h.now(large).state is State.STARTING
    h.exit(blockers[3])
    assert [h.now(t).state for t in small] == [State.STARTING] + [State.QUEUED] * 3


def test_a_reservation_stays_on_its_node_until_the_task_starts() -> None:
    h = Harness(node(cpu=4, name="a"), node(cpu=4, name="b"))
    blockers = [h.submit(spec(memory="10MB")) for _ in range(8)]
    on = {t.id: h.now(t).allocation.node for t in blockers}  # type: ignore[union-attr]
    large = h.submit(spec(cpu=4, memory="10MB"))
    h.wait(2 * 3600)
    a, b = ([t for t in blockers if on[t.id] == name] for name in "ab")
    h.exit(a[0])
    for task in (b[0], b[1]):  # more is free there, but what was waited for on the other counts
        h.exit(task)
    held = h.kernel.state.scheduler.reservation
    assert held is not None
    assert (held.task, held.node) == (large.id, "a")
    for task in a[1:]:
        h.exit(task)
    assert h.now(large).state is State.STARTING


def test_small_shares_cannot_keep_a_whole_gpu_from_an_overdue_task() -> None:
    h = Harness(node(cpu=8, gpu=4))
    shares = [h.submit(spec(cpu=0.1, gpu=0.6, memory="10MB")) for _ in range(4)]
    whole = h.submit(spec(cpu=0.1, gpu=1, memory="10MB"))
    h.wait(2 * 3600)
    late = h.submit(spec(cpu=0.1, gpu=0.4, memory="10MB", priority=100))
    beside = h.submit(spec(cpu=0.1, memory="10MB"))
    assert h.now(late).state is State.QUEUED
    assert h.now(beside).state is State.STARTING  # it takes nothing of what is held back
    h.exit(shares[0])
    assert h.now(whole).state is State.STARTING
    assert h.now(late).state is State.STARTING


def test_run_times_are_learned_from_finished_tasks_of_the_same_name() -> None:
    h = Harness(node(cpu=1))
    for _ in range(3):
        task = h.submit(spec(name="short"))
        h.run(task)
        h.clock.advance(8)
        h.exit(task)
    task = h.submit(spec(name="short"))
    assert abs(h.kernel.state.estimates.expected_s(h.now(task)) - 8.0) < 1e-6
    assert h.restarted().kernel.state.estimates.expected_s(h.now(task)) > 7.9


def test_what_is_remembered_of_when_tasks_become_overdue_does_not_grow_with_who_has_left() -> None:
    h = Harness(node(cpu=1))
    h.run(h.submit(spec()))
    stays, first = h.submit(spec(priority=50, cpu=0.5, memory="4GB")), h.submit(spec())
    for _ in range(300):  # none comes to the top of the heap before who stays
        h.clock.advance(1)
        following = h.submit(spec())
        h.cancel(first)
        first = following
    queue = h.kernel.state.scheduler.queue
    assert len(queue._due) <= 2 * 2 + LEFT_OVER_MIN
    h.wait(3599)
    assert [entry.task for entry in queue.overdue] == [stays.id]
    h.wait(1)
    assert [entry.task for entry in queue.overdue] == [stays.id, first.id]
