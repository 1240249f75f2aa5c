"""Nodes fail in a simulation: what is done again, and that all of it is done in the end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.test_policies import job
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.simulate import cluster
from zenos.simulate.failures import Failure, Failures, made, parse
from zenos.simulate.report import Meter, summarise
from zenos.simulate.traces import Job
from zenos.simulate.world import World

LONG_S = 1e9


def world(jobs: list[Job], nodes: str, failures: Failures, **more: Any) -> World:
    """A run to its end; the kernel's invariants hold there, and all work was done once."""
    cluster_ = cluster.nodes(nodes)
    ran = World(jobs, cluster_, Config(), Meter(LONG_S), 60.0, failures, **more)
    ran.run(lambda done: None)
    ran.kernel.state.check()
    assert ran.meter.worked == pytest.approx(sum(one.work for one in jobs))
    return ran


def fails(*stated: str) -> Failures:
    return Failures([parse(text) for text in stated])


def test_a_training_goes_back_to_its_checkpoint_and_a_program_to_its_beginning() -> None:
    both = [job(0, 10_000), job(0, 10_000, kind="run")]
    done = world(both, "2x1gpu", fails("n1:5000:1000", "n2:5000:1000"))
    training, program = done.ran
    # 3,600 s were saved by then; each loses a minute in coming back.
    assert (training.failures, training.redone_s, training.done_s) == (1, 1_400, 12_460)
    assert (program.failures, program.redone_s, program.done_s) == (1, 5_000, 16_060)
    assert done.node_failures == 2
    summary = summarise("zenos", both, done.ran, 2, done.meter)
    assert (summary.restarts, summary.work_lost) == (2, 6_400)


def test_what_has_lost_its_node_goes_on_at_another_one() -> None:
    done = world([job(0, 10_000)], "2x1gpu", fails("n1:3600:1d"))
    assert done.ran[0].done_s == 10_060
    assert done.ran[0].redone_s == 0


def test_a_gang_that_loses_one_node_of_several_begins_anew_when_it_is_back() -> None:
    done = world([job(0, 4_000, 4)], "2x2gpu", fails("n2:2000:500"))
    assert done.ran[0].done_s == 2_500 + 60 + 4_000 - 1_800


@settings(max_examples=30, deadline=None)
@given(
    jobs=st.lists(
        st.builds(
            job,
            st.floats(0, 20_000),
            st.floats(1, 30_000),
            st.sampled_from([1, 1, 2, 6]),
            priority=st.sampled_from([50, 75]),
        ),
        min_size=1,
        max_size=15,
    ),
    seed=st.integers(0, 1000),
)
def test_at_random_all_work_is_done_once_and_a_seed_repeats_it(jobs: list[Job], seed: int) -> None:
    jobs = sorted(jobs, key=lambda one: one.submit_s)

    def ends() -> list[tuple[float, int, float]]:
        drawn = Failures((), 40_000.0, 5_000.0, seed)
        done = world(jobs, "2x4gpu", drawn, checkpoint_s=600.0)
        return [(ran.done_s, ran.failures, ran.redone_s) for ran in done.ran]

    first = ends()
    assert first == ends()
    assert all(redone <= failures * 600 for _, failures, redone in first)


def test_nodes_that_fail_too_often_for_any_work_are_refused_and_not_simulated_for_ever() -> None:
    with pytest.raises(InvalidError, match="checkpoint more often"):
        world([job(0, 100_000)], "1x1gpu", Failures((), 1_000.0, 10.0, 1), checkpoint_s=50_000.0)


@pytest.mark.parametrize(
    ("stated", "mtbf_s", "said"),
    [
        (["n1:1h"], None, "write NODE:AT:FOR"),
        (["n1:-1:1h"], None, "write NODE:AT:FOR"),
        (["n1:nan:1h"], None, "write NODE:AT:FOR"),
        (["n1:1h:0"], None, "at least 1"),
        (["n9:1h:1h"], None, "cannot let the node 'n9' fail"),
        (["n1:1h:1h", "n1:90m:1h"], None, "fail twice at a time"),
        (["n1:1h:1h"], 1e6, "give one of the two"),
        ([], 0.0, "cannot use an mtbf of 0 s"),
        ([], float("nan"), "cannot use an mtbf of nan s"),
    ],
)
def test_what_cannot_fail_is_refused(stated: list[str], mtbf_s: float | None, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        made(stated, mtbf_s, 3600.0, 0, cluster.nodes("2x1gpu"))


def test_times_of_failures_have_units() -> None:
    assert parse(" n3:1.5d:4h") == Failure("n3", 129_600, 14_400)
