"""The pool's decisions under anything that may happen: a random walk, and single cases."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.threads.world import World
from zenos.core import limits
from zenos.core.priority import score
from zenos.threads.machine import Cancel, Close, Died, Done, Failed, Machine, Ready, Resize, Submit
from zenos.threads.policy import POLICIES, Policy

TIMES = st.sampled_from([0.5, 1.0, 2.0, 12.0, 60.0, 600.0])


class Storm(RuleBasedStateMachine):
    """Threads come, run, fail, are cancelled; lanes die; the pool is resized and closed."""

    @initialize(lanes=st.integers(1, 4), policy=st.sampled_from(POLICIES), killable=st.booleans())
    def begin(self, lanes: int, policy: Policy, killable: bool) -> None:
        self.killable = killable
        self.world = World(Machine(lanes, policy=policy, killable=killable, grace_s=1.0))

    @rule(
        group=st.integers(0, 2),
        priority=st.integers(0, 100),
        expected_s=st.sampled_from([0.0, 0.01, 1.0, 60.0]),
        retries=st.integers(0, 2),
        backoff_s=st.sampled_from([0.0, 1.0]),
        timeout_s=st.sampled_from([math.inf, 2.0]),
    )
    def submit(self, **given: float) -> None:
        number = len(self.world.requests) + 1
        self.world.tell(Submit(thread=number, **given))  # type: ignore[arg-type]

    @precondition(lambda self: self.world.lane_events())
    @rule(data=st.data(), several=st.booleans())
    def a_lane_goes_on(self, data: st.DataObject, several: bool) -> None:
        event = data.draw(st.sampled_from(self.world.lane_events()))
        if several and self.world.machine.threads:
            numbers = sorted(self.world.machine.threads)
            self.world.tell(event, Cancel(data.draw(st.sampled_from(numbers))))
        else:
            self.world.tell(event)

    @precondition(lambda self: self.killable and self.world.deaths())
    @rule(data=st.data())
    def a_lane_dies(self, data: st.DataObject) -> None:
        self.world.tell(data.draw(st.sampled_from(self.world.deaths())))

    @precondition(lambda self: self.world.machine.threads)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.tell(Cancel(data.draw(st.sampled_from(sorted(self.world.machine.threads)))))

    @rule(lanes=st.integers(1, 5))
    def resize(self, lanes: int) -> None:
        self.world.tell(Resize(lanes))

    @rule(cancel=st.booleans())
    def close(self, cancel: bool) -> None:
        self.world.tell(Close(cancel))

    @rule(seconds=st.sampled_from([0.0, 0.4, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.tell()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


Storm.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStorm = Storm.TestCase


def started(policy: Policy, submits: list[Submit], *, wait_s: float = 0) -> list[int]:
    """The order in which threads start that waited together for one lane."""
    world = World(Machine(1, policy=policy))
    for submit in submits:
        world.tell(submit)
    world.now += wait_s
    order: list[int] = []
    world.tell(*[Ready(lane) for lane in sorted(world.opening)])
    while world.on_lane:
        lane, thread = next(iter(world.on_lane.items()))
        order.append(thread)
        world.now += 1.0
        world.tell(Done(lane))
    return order


def test_fifo_starts_in_the_order_of_submission() -> None:
    assert started("fifo", [Submit(thread=n, priority=10 * n) for n in (1, 2, 3)]) == [1, 2, 3]


def test_priority_starts_the_higher_first_and_equals_in_order() -> None:
    submits = [Submit(thread=n, priority=p) for n, p in ((1, 50), (2, 75), (3, 50), (4, 75))]
    assert started("priority", submits) == [2, 4, 1, 3]


def test_aged_lets_a_short_one_that_has_waited_pass_a_long_one_of_higher_priority() -> None:
    long = Submit(thread=1, priority=60, expected_s=600.0)
    short = Submit(thread=2, priority=50, expected_s=1.0)
    # The formula is the kernel's; contention is 0 while the only lane is idle.
    assert score(50, 25.0, 10.0, 1.0) > score(60, 25.0, 10.0, 600.0)
    assert started("aged", [long, short], wait_s=10) == [2, 1]
    assert started("aged", [long, short], wait_s=0) == [1, 2]


@given(
    st.lists(
        st.tuples(st.sampled_from([25, 50, 60, 75]), TIMES, st.floats(0.0, 20.0)),
        min_size=2,
        max_size=8,
    )
)
@example([(60, 600.0, 0.0), (50, 12.0, 9.0)])  # the other way round without contention
@example([(60, 600.0, 0.0), (50, 8.0, 9.0)])  # and with all lanes taken
def test_aged_goes_by_the_score_of_tasks_and_the_share_of_lanes_that_are_taken(
    waiting: list[tuple[int, float, float]],
) -> None:
    world = World(Machine(2, policy="aged"))
    world.tell(Ready(1), Ready(2))
    world.tell(Submit(thread=1), Submit(thread=2))  # both are taken, one for good
    came = {}
    for number, (level, expected_s, gap_s) in enumerate(waiting, 3):
        came[number] = world.now
        world.tell(Submit(thread=number, priority=level, expected_s=expected_s))
        world.now += gap_s

    def rank(number: int) -> tuple[float, float, int]:
        level, expected_s, _ = waiting[number - 3]
        t = (world.now - came[number]) / (expected_s * (1 + 0.5))  # one of two lanes is taken
        return level + 25.0 * t / (1 + t), -expected_s, -number

    while came:
        world.now += 1.0
        following = max(came, key=rank)
        world.tell(Done(2))
        assert world.on_lane[2] == following
        del came[following]


def test_what_is_not_said_of_a_thread_is_expected_of_others_of_its_map() -> None:
    world = World(Machine(2, policy="aged"))
    world.tell(Ready(1), Ready(2))
    world.tell(Submit(thread=1, group=1), Submit(thread=2, group=2))
    world.now += 1.0
    world.tell(Submit(thread=3, group=2), Done(2))  # took one second
    world.now += 99.0
    world.tell(Submit(thread=4, group=1), Done(1))  # a hundred
    world.tell(Submit(thread=5, group=1), Submit(thread=6, group=2))
    world.now += 5.0
    world.tell(Done(1))
    assert world.on_lane[1] == 6


def test_least_attained_gives_groups_turns_however_many_threads_one_has() -> None:
    many = [Submit(thread=n, group=1) for n in range(1, 7)]
    few = [Submit(thread=n, group=2) for n in (7, 8)]
    assert started("least_attained", [*many, *few])[:5] == [1, 7, 2, 8, 3]


def test_what_runs_counts_as_attained_as_it_runs() -> None:
    world = World(Machine(2, policy="least_attained"))
    world.tell(Ready(1), Ready(2))
    world.tell(Submit(thread=1, group=1), Submit(thread=2, group=2))
    world.tell(*[Submit(thread=n, group=group) for n, group in ((3, 3), (4, 1), (5, 2))])
    world.now += 2.0
    world.tell(Done(2))
    assert world.on_lane == {1: 1, 2: 3}
    world.now += 8.0
    world.tell(Done(2))  # group 1 has had ten seconds, of one that runs still; group 2 has had two
    assert world.on_lane == {1: 1, 2: 5}


def test_a_failed_thread_is_tried_again_after_a_backoff_that_doubles() -> None:
    world = World(Machine(1))
    world.tell(Ready(1))
    world.tell(Submit(thread=1, retries=2, backoff_s=1.0))
    waits = []
    for _ in range(2):
        world.tell(Failed(1, True))
        assert not world.on_lane
        waits.append(world.wake - world.now)
        world.pass_time()
    world.tell(Failed(1, True))
    assert waits == [1.0, 2.0]
    assert world.ended == {1: "failed"}


def test_an_error_that_is_not_to_be_retried_is_final() -> None:
    world = World(Machine(1))
    world.tell(Ready(1))
    world.tell(Submit(thread=1, retries=2))
    world.tell(Failed(1, False))
    assert world.ended == {1: "failed"}


def test_a_smaller_pool_ends_lanes_as_their_threads_end_and_a_larger_one_grows_at_once() -> None:
    world = World(Machine(3))
    world.tell(Ready(1), Ready(2), Ready(3))
    world.tell(*[Submit(thread=n) for n in range(1, 6)])
    world.tell(Resize(1))
    assert len(world.open) == 3
    world.tell(Done(1))
    assert world.open == {2, 3}
    world.tell(Done(2))
    assert world.open == {3}
    world.tell(Resize(2))
    assert len(world.opening) == 1


def test_when_no_lane_can_be_started_threads_end_instead_of_waiting() -> None:
    world = World(Machine(1, killable=True))
    world.tell(Submit(thread=1))
    for _ in range(limits.LANE_STARTS_FAILED_MAX):
        world.tell(Died(min(world.opening)))
        world.pass_time()
    world.tell(Submit(thread=2))
    assert world.ended == {1: "broken", 2: "broken"}


@pytest.mark.parametrize("killable", [True, False])
def test_a_thread_over_its_time_ends_at_once_and_only_a_process_is_killed(killable: bool) -> None:
    world = World(Machine(1, killable=killable, grace_s=1.0))
    world.tell(Ready(1))
    world.tell(Submit(thread=1, timeout_s=5.0), Submit(thread=2))
    world.pass_time()
    assert world.now == 5.0
    assert world.ended == {1: "timeout"}
    assert (world.pass_time(), world.killed) == ((True, {1}) if killable else (False, set()))


def test_a_lane_that_died_before_its_thread_costs_no_try() -> None:
    world = World(Machine(1, killable=True))
    world.tell(Ready(1))
    world.tell(Submit(thread=1, retries=1))
    world.tell(Died(1, unstarted=True))
    world.tell(Ready(2))
    world.tell(Failed(2, True))  # the first try, and so not the last
    assert not world.ended
    world.tell(Done(2))
    assert world.ended == {1: "succeeded"}


def test_what_an_attempt_says_that_was_stopped_for_its_time_does_not_count() -> None:
    world = World(Machine(1))
    world.tell(Ready(1))
    world.tell(Submit(thread=1, retries=1, timeout_s=5.0))
    world.pass_time()
    world.tell(Done(1))
    assert not world.ended
    assert world.on_lane == {1: 1}
    world.tell(Done(1))
    assert world.ended == {1: "succeeded"}
