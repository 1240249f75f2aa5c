"""What each policy makes of jobs whose right order can be told by hand, and of many at random."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenos.core.config import Config
from zenos.simulate import cluster, peers
from zenos.simulate.report import Meter, Ran, jain, quantile, summarise
from zenos.simulate.traces import Job
from zenos.simulate.world import World

POLICIES = ("zenos", *peers.POLICIES)


def run(
    policy: str, jobs: list[Job], gpus: int, nodes: int = 1, **config: Any
) -> tuple[list[Ran], Meter]:
    """On one pool, or on that many nodes of `gpus` each."""
    meter = Meter(jobs[-1].submit_s)
    there = [cluster.node(f"n{number}", gpus) for number in range(nodes)]
    heard: list[int] = []
    if policy == "zenos":
        world = World(jobs, there, Config(**config), meter, 60.0)
        ran = world.run(heard.append)
        world.kernel.state.check()
    else:
        ran = peers.run(policy, jobs, there, meter, heard.append)
    assert heard[-1] == len(jobs)
    assert heard == sorted(heard)
    return ran, meter


def job(submit_s: float, duration_s: float, gpus: int = 1, **more: Any) -> Job:
    return Job(submit_s=submit_s, duration_s=duration_s, gpu=gpus * 1000, **more)


def ends(policy: str, jobs: list[Job], gpus: int, nodes: int = 1, **config: Any) -> list[float]:
    return [round(r.done_s, 3) for r in run(policy, jobs, gpus, nodes, **config)[0]]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fifo", [100, 150, 160, 350]),  # nobody passes the wide one
        ("easy", [100, 150, 12, 350]),  # the short one does, the long one would delay it
        ("srtf", [150, 61, 12, 261]),
    ],
)
def test_classic_policies(policy: str, expected: list[float]) -> None:
    jobs = [job(0, 100, 2), job(1, 50, 4), job(2, 10, 2), job(3, 200, 2)]
    assert ends(policy, jobs, 4) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fifo", [100, 50, 60, 55, 150]),  # two are free, and not on one node
        ("easy", [100, 50, 60, 7, 150]),  # the short one doesn't delay it
        ("zenos", [100, 50, 60, 7, 150]),
    ],
)
def test_jobs_lie_on_nodes(policy: str, expected: list[float]) -> None:
    """A gang of six wants four GPUs of one node and two of the other."""
    jobs = [job(0, 100, 3), job(0, 50, 3), job(1, 10, 2), job(2, 5, 1), job(3, 50, 6)]
    assert ends(policy, jobs, 4, nodes=2) == expected


def test_what_is_started_ahead_leaves_the_first_its_room_on_the_nodes() -> None:
    """Long ones of one GPU: two may go where the gang will have room beside them."""
    jobs = [job(0, 100, 4), job(0, 10, 3), job(1, 10, 6), *(job(at, 500) for at in (2, 3, 4))]
    ran, _ = run("easy", jobs, 4, nodes=2)
    assert [r.done_s for r in ran] == [100, 10, 110, 502, 510, 610]


def test_least_attained_service_lets_the_short_one_through() -> None:
    jobs = [job(0, 10_000), job(700, 100)]
    ran, _ = run("las", jobs, 1)
    assert [r.done_s for r in ran] == [10_100, 800]
    assert [r.suspensions for r in ran] == [1, 0]


def test_the_kernel_suspends_who_has_had_its_share_and_charges_for_it() -> None:
    jobs = [job(0, 10_000), job(2_000, 100)]
    ran, meter = run("zenos", jobs, 1, slice_s=1_000.0)
    assert [r.done_s for r in ran] == [10_160, 2_100]
    assert (ran[0].suspensions, ran[0].lost_s) == (1, 60.0)
    assert meter.worked == 2_000


def test_the_kernel_never_suspends_a_program_and_knows_no_run_times() -> None:
    jobs = [job(0, 10_000, kind="run"), job(2_000, 100)]
    assert ends("zenos", jobs, 1, slice_s=1_000.0) == [10_000, 10_100]


def test_a_higher_priority_goes_first() -> None:
    jobs = [job(0, 1_000), job(10, 100, priority=75)]
    assert ends("zenos", jobs, 1) == [1_160, 110]


TIMES = st.floats(0, 5_000).map(lambda value: round(value, 1))
JOBS = st.lists(
    st.builds(
        job,
        TIMES,
        st.floats(0, 20_000).map(lambda value: round(value, 1)),
        st.integers(1, 4),
        priority=st.sampled_from([25, 50, 75]),
        kind=st.sampled_from(["train", "run"]),
    ),
    min_size=1,
    max_size=25,
).map(lambda jobs: sorted(jobs, key=lambda j: j.submit_s))


@settings(max_examples=40, deadline=None)
@given(jobs=JOBS, policy=st.sampled_from(POLICIES))
def test_every_job_ends_once_no_sooner_than_it_can_and_never_more_run_than_fit(
    jobs: list[Job], policy: str
) -> None:
    ran, meter = run(policy, jobs, 4, slice_s=500.0, slice_residence_s=60.0)
    for one, how in zip(jobs, ran, strict=True):
        assert how.done_s >= one.submit_s + one.duration_s + how.lost_s - 1e-3
        assert how.lost_s <= 60.0 * how.suspensions
    work = math.fsum(one.work for one in jobs)
    end_s = max(how.done_s for how in ran)
    assert work <= 4 * end_s + 1e-3
    assert meter.worked <= 4 * meter.until_s + 1e-3
    summary = summarise(policy, jobs, ran, 4, meter)
    assert 0 <= summary.utilisation <= 1 + 1e-9
    assert 0 < summary.fairness <= 1 + 1e-9


def test_measures() -> None:
    assert quantile([3, 1, 2, 4], 0.5) == 2
    assert quantile([5], 0.99) == 5
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
