"""Who has had more than its part stands further behind, by so much at most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core.config import Config
from zenos.core.quotas import Usage
from zenos.core.task import Principal, State, Task
from zenos.kernel.accounts import Accounts
from zenos.kernel.explanation import explain
from zenos.kernel.picture import take
from zenos.simulate.cluster import node as gpus
from zenos.simulate.report import Meter, Summary, summarise
from zenos.simulate.traces import Job
from zenos.simulate.world import World

ANN, BOB = Principal(user="ann"), Principal(user="bob")
HALF_LIFE_S = 86400.0


def harness(**settings: object) -> Harness:
    config = Config(fair_half_life_s=HALF_LIFE_S, **settings)  # type: ignore[arg-type]
    return Harness(node(cpu=4, memory="8GB"), config=config)


def had_by(h: Harness, who: Principal) -> float:
    return h.kernel.state.accounts.usage(f"user/{who.user}").decayed_s


def blocked(h: Harness) -> tuple[Task, Task, Task]:
    """ann has had the machine for an hour; then a task of hers waits, and one of bob's."""
    first = h.submit(spec(cpu=4), principal=ANN)
    h.run(first)
    h.wait(3600)
    return first, h.submit(spec(cpu=4), principal=ANN), h.submit(spec(cpu=4), principal=BOB)


def test_who_has_had_nothing_yet_goes_before_who_has_had_the_machine() -> None:
    h = harness()
    first, hers, his = blocked(h)
    h.exit(first)
    assert h.now(his).state is State.STARTING
    assert h.now(hers).state is State.QUEUED
    off = harness(fair_weight=0.0)
    first, hers, his = blocked(off)
    off.exit(first)
    assert off.now(hers).state is State.STARTING


def test_a_higher_priority_and_a_long_wait_go_before_fairness() -> None:
    h = harness(fair_weight=20.0, ageing=0.0)
    first, _, his = blocked(h)
    higher = h.submit(spec(cpu=4, priority=71), principal=ANN)
    h.exit(first)
    assert h.now(higher).state is State.STARTING
    h = harness(fair_weight=1000.0, overdue_wait_s=600.0)
    first, hers, his = blocked(h)
    h.wait(601)  # both are overdue: in the order in which they came, whatever was had
    h.exit(first)
    assert h.now(hers).state is State.STARTING
    assert h.now(his).state is State.QUEUED


def test_use_is_the_dominant_share_and_halves_and_is_remembered_over_a_restart() -> None:
    h = harness()
    task = h.submit(spec(cpu=1, memory="4GB"), principal=ANN)  # a half of the memory
    h.run(task)
    h.wait(3600)
    h = h.restarted()
    h.wait(3600)
    h.exit(task)
    left = 0.5 ** (7200 / HALF_LIFE_S)
    expected_s = 0.5 * HALF_LIFE_S / math.log(2) * (1 - left)
    assert had_by(h, ANN) == pytest.approx(expected_s)
    h.wait(HALF_LIFE_S)
    assert had_by(h.restarted(), ANN) == pytest.approx(expected_s / 2)


def test_what_was_had_before_other_settings_counts_by_the_old_ones_after_a_restart_too() -> None:
    h = harness()
    blocked(h)
    h.wait(1000)
    config = replace(h.config, fair_half_life_s=100.0)
    h.step(ev.Configured(config=config))
    h.config = config
    before = had_by(h, ANN)
    assert before > 0
    assert had_by(h.restarted(), ANN) == pytest.approx(before)


def test_shares_say_who_is_due_how_much_and_why_shows_it() -> None:
    h = harness(user_shares={"ann": 3.0})
    first, hers, _ = blocked(h)
    h.wait(100)
    score = explain(take(h.kernel, h.clock.now(), hers.id), hers.id).score
    assert score is not None
    assert (score.owner, score.had, score.due) == ("user/ann", 1.0, 0.75)
    assert score.cost == pytest.approx(25 * (1 - 2 ** (1 - 4 / 3)))
    assert score.total == pytest.approx(50 + score.ageing * score.p - score.cost)
    h.step(ev.Configured(config=Config(user_shares={"ann": 1000.0})))
    found = explain(take(h.kernel, h.clock.now(), hers.id), hers.id).score
    assert found is not None
    assert found.cost < 0.1
    h.exit(first)


def test_nobody_pays_anything_while_nobody_else_wants_something() -> None:
    h = harness()
    first = h.submit(spec(cpu=4), principal=ANN)
    h.run(first)
    h.wait(3600)
    hers = h.submit(spec(cpu=4), principal=ANN)
    score = explain(take(h.kernel, h.clock.now(), hers.id), hers.id).score
    assert score is not None
    assert score.cost == 0.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=8))
def test_use_never_grows_beyond_what_a_whole_machine_for_ever_is(
    spans: list[tuple[float, float]],
) -> None:
    accounts = Accounts(Config(fair_half_life_s=3600.0), {}, 0.0)
    had = Usage(account="user/ann", at=0.0).decayed_s
    for seconds, share in spans:
        had = accounts._decayed(had, share, seconds)
        assert 0.0 <= had <= 3600.0 / math.log(2) * (1 + 1e-9)


def test_fairness_rises_where_one_user_floods_a_cluster_that_others_share() -> None:
    """One user with long jobs asks for more than there is; four others have a short one at times.

    By the response ratio alone all are slowed down alike already: little is left to gain in that.
    """
    jobs = [
        Job(submit_s=100.0 * number, duration_s=3600.0, gpu=1000, user="greedy", kind="run")
        for number in range(200)
    ]
    jobs += [
        Job(submit_s=1000.0 * n + 7 * u, duration_s=300.0, gpu=1000, user=f"u{u}", kind="run")
        for n in range(20)
        for u in range(4)
    ]
    jobs.sort(key=lambda job: job.submit_s)

    def simulated(weight: float) -> tuple[Summary, float]:
        meter = Meter(jobs[-1].submit_s)
        config = Config(fair_weight=weight, overdue_wait_s=34 * 3600.0)
        ran = World(jobs, [gpus("pool", 24)], config, meter, 60.0).run(lambda _: None)
        ends = [r.done_s - j.submit_s for j, r in zip(jobs, ran, strict=True) if j.user != "greedy"]
        return summarise("zenos", jobs, ran, 24, meter), sum(ends) / len(ends)

    (without, others_s), (with_it, others_with_s) = simulated(0.0), simulated(25.0)
    assert with_it.fairness > without.fairness
    assert others_with_s < 0.85 * others_s
    assert with_it.completion_mean_s < without.completion_mean_s
    assert with_it.utilisation_arrivals > 0.99 * without.utilisation_arrivals
