"""Requests for a model beside the jobs of a trace: how long they wait, and what jobs lose by it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.simulate.test_policies import job
from zenos.core.config import Config
from zenos.core.errors import InvalidError
from zenos.simulate import cluster, requests
from zenos.simulate.__main__ import Request, simulate
from zenos.simulate.failures import Failures, parse
from zenos.simulate.report import Meter, Ran, Served
from zenos.simulate.requests import Asked, Replicas
from zenos.simulate.serving import Serving
from zenos.simulate.traces import Job
from zenos.simulate.world import World

LONG_S = 1e9
# 100 tokens of a prompt take a second, and so do 10 of an answer.
REPLICA = Replicas(slots=2, load_s=20.0, prompt_rate=100.0, output_rate=10.0, keep_alive_s=60.0)


def world(
    jobs: list[Job],
    asked: list[Asked],
    nodes: str = "1x2gpu",
    replica: Replicas = REPLICA,
    failures: Failures | None = None,
) -> tuple[list[Ran], Served]:
    """A run to its end: all work of the jobs was done once, each request is accounted for."""
    serving = Serving(requests.load(asked, None, 0.0), replica)
    ran = World(
        jobs, cluster.nodes(nodes), Config(), Meter(LONG_S), 60.0, failures, serving=serving
    )
    ran.run(lambda done: None)
    ran.kernel.state.check()
    assert ran.meter.worked == pytest.approx(sum(one.work for one in jobs))
    found = serving.served()
    assert found.arrived == found.answered + found.late + found.refused + found.cut == len(asked)
    return ran.ran, found


def test_a_training_gives_way_to_a_request_and_comes_back_when_the_model_is_idle() -> None:
    # Two jobs fill both GPUs: what is deployed is loaded by its first request.
    jobs = [job(100, 10_000), job(100, 10_000)]
    ran, found = world(jobs, [Asked(1_000, 100, 50)])
    assert found.first_token_median_s == 20 + 1
    assert (found.answered, found.cold_starts, found.replica_wait_longest_s) == (1, 1, 20)
    lost = [one for one in ran if one.suspensions]
    assert len(lost) == 1
    # 26 s until the answer has come, 20 s in which the model is idle, a minute to come back.
    assert lost[0].done_s == pytest.approx(10_100 + 26 + 20 + 60)
    assert (lost[0].suspensions, lost[0].lost_s) == (1, 60)


def test_requests_have_a_replica_s_slots_in_turn_and_more_replicas_when_they_are_full() -> None:
    four = [Asked(0, 100, 90)] * 4
    _, one = world([job(0, 10)], four, replica=_with(max_replicas=1))
    # Loaded after 20 s; two at a time, 10 s each; the first token after a second.
    assert (one.first_token_median_s, one.first_token_longest_s) == (21, 31)
    assert (one.cold_starts, one.replicas_mean) == (1, 1.0)
    _, two = world([job(0, 10)], four, nodes="1x3gpu")
    assert (two.first_token_longest_s, two.cold_starts) == (21, 2)
    assert two.replicas_mean == 2.0


def test_a_replica_that_is_to_end_answers_what_it_has_and_gives_its_gpu_back_then() -> None:
    replica = _with(slots=1, max_replicas=2, keep_alive_s=2.0)
    # Ready at 20. The shorter answer ends at 30, so from 32 on one replica is enough; the longer
    # one, of the replica that is to end, at 35. The other is asked once more before it ends too.
    asked = [Asked(0, 100, 90), Asked(0, 100, 140), Asked(36, 100, 10)]
    _, found = world([job(0, 10)], asked, nodes="1x3gpu", replica=replica)
    assert (found.answered, found.cold_starts) == (3, 2)
    assert found.replicas_mean == pytest.approx((38 + 35) / 38)


def test_what_cannot_be_answered_in_its_time_or_is_too_much_is_counted_as_such() -> None:
    # A program holds the only GPU for longer than a request waits, and nobody can send it away.
    slow = _with(timeout_s=100.0, max_replicas=1)
    held = [job(60, 5_000, kind="run")]
    _, found = world(held, [Asked(1_000, 1, 1)] * 300, nodes="1x1gpu", replica=slow)
    assert (found.answered, found.late, found.refused) == (0, 258, 42)
    assert found.first_token_median_s is None
    # Of two that are answered at a time, the third has no slot before its time is up.
    slow = _with(timeout_s=110.0, max_replicas=1)  # 20 s of it until it is loaded
    _, found = world([job(0, 1)], [Asked(30, 100, 800)] * 3, replica=slow)
    assert (found.answered, found.late) == (2, 1)


def test_a_replica_that_is_lost_cuts_what_it_answers_and_the_rest_goes_to_another() -> None:
    asked = [Asked(30, 100, 320)] * 3  # until 83; the third waits in the replica
    failures = Failures([parse("n1:60:1000")])
    replica = _with(max_replicas=1)
    _, found = world([job(0, 1)], asked, nodes="2x1gpu", replica=replica, failures=failures)
    assert (found.answered, found.cut) == (1, 2)
    # It had waited for 30 s; another replica begins after a second, and loads.
    assert found.first_token_longest_s == 30 + 1 + 20 + 1


def test_a_new_request_is_a_new_chance_for_a_model_whose_replicas_failed_too_often() -> None:
    failures = Failures([parse(f"n1:{100 * n}:10") for n in range(1, 8)])
    replica = _with(load_s=1_000.0, keep_alive_s=10_000.0, timeout_s=2_000.0)
    asked = [Asked(0, 100, 1), Asked(3_000, 100, 1)]
    _, found = world([job(0, 1)], asked, nodes="1x1gpu", replica=replica, failures=failures)
    assert (found.answered, found.late) == (1, 1)


@settings(max_examples=30, deadline=None)
@given(
    jobs=st.lists(
        st.builds(job, st.floats(0, 5_000), st.floats(1, 20_000), st.sampled_from([1, 1, 2, 4])),
        min_size=1,
        max_size=10,
    ),
    gaps=st.lists(st.sampled_from([0.0, 1.0, 30.0, 61.0, 700.0]), min_size=1, max_size=30),
    output=st.integers(1, 300),
)
@example(jobs=[job(698, 10_000, 4)], gaps=[700.0], output=1)  # it has only just begun
def test_whatever_trainings_run_requests_are_answered_within_the_bound(
    jobs: list[Job], gaps: list[float], output: int
) -> None:
    jobs = sorted(jobs, key=lambda one: one.submit_s)
    asked = [Asked(at, 100, output) for at in itertools.accumulate(gaps)]
    first, found = world(jobs, asked, nodes="1x4gpu", replica=_with(slots=64))
    assert found.answered == len(asked)
    # A training may stay for residence_s; then the model loads, and one turn of it may have to end.
    answer_s = 1 + output / 10
    assert found.replica_wait_longest_s <= Config().residence_s + answer_s + 20 + 1e-6
    assert (first, found) == world(jobs, asked, nodes="1x4gpu", replica=_with(slots=64))


def test_requests_are_read_with_the_azure_traces_names_and_times(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:05.5000000,20,3\n2023-11-16 18:17:04,4808,10\n"
    )
    assert requests.read(path) == ([Asked(0.0, 4808, 10), Asked(1.5, 20, 3)], [])
    path.write_text("arrival_s,prompt_tokens,output_tokens\n5,1,1\n4.5,2,2\n")
    assert requests.read(path)[0] == [Asked(0.0, 2, 2), Asked(0.5, 1, 1)]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("soon,1,1", "row 3: arrival 'soon' is no number"),
        ("12:61,1,1", "row 3: arrival '12:61' is neither seconds nor a date and time"),
        ("1,-1,1", "row 3: prompt -1 is not from 0"),
        ("1,1,nan", "row 3: output nan is not from 1"),
        ("1,1", "row 3: no output: it has 2 fields"),
    ],
)
def test_a_malformed_request_is_named_or_left_out(tmp_path: Path, row: str, wrong: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"arrival,prompt,output\n0,1,1\n{row}\n5,1,1\n")
    with pytest.raises(InvalidError, match="--skip-bad") as caught:
        requests.read(path)
    assert wrong in caught.value.message
    asked, skipped = requests.read(path, skip_bad=True)
    assert len(asked) == 2
    assert skipped[0].startswith(wrong)


def test_requests_begin_anew_until_the_last_job_has_come() -> None:
    asked = [Asked(0, 1, 1), Asked(10, 2, 2)]

    def times(every_s: float | None, until_s: float) -> list[float]:
        return [one.at_s for one in requests.load(asked, every_s, until_s).arrivals()]

    assert times(None, 0) == [0, 10]
    assert times(None, 41) == [0, 10, 20, 30, 40, 50]
    assert times(100, 101) == [0, 10, 100, 110]
    assert [one.at_s for one in requests.load(asked[:1], None, 1e9).arrivals()] == [0]
    with pytest.raises(InvalidError, match="they come for 10 s"):
        requests.load(asked, 10, 100)


def test_the_jobs_run_with_and_without_requests(tmp_path: Path) -> None:
    trace, asked = tmp_path / "t.csv", tmp_path / "r.csv"
    trace.write_text("submit,duration,gpus\n0,50000,2\n40000,10,1\n")
    asked.write_text("arrival,prompt,output\n0,100,100\n600,100,100\nx,1,1\n")
    said: list[dict[str, Any]] = []
    plain, mixed = simulate(_request(trace, asked), said.append)
    assert (plain.requests, plain.suspensions) == (None, 1)
    assert mixed.requests is not None
    assert mixed.requests.answered == mixed.requests.arrived == 8
    assert mixed.suspensions > plain.suspensions
    assert said[0]["requests_skipped"] == ["row 4: arrival 'x' is no number"]


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"policies": ["zenos", "fifo"]}, "only zenos knows models"),
        ({"requests": None}, "give --requests FILE"),
        ({"replica": Replicas(gpus=4)}, "the largest node has 2"),
        ({"replica": Replicas(gpus=1.5)}, "a share of one, or whole ones"),
        ({"replica": Replicas(output_rate=0)}, "the replica's output_rate 0"),
        ({"replica": Replicas(min_replicas=3, max_replicas=2)}, "min_replicas above max_replicas"),
        ({"replica": Replicas(min_replicas=1)}, "never had room beside the replicas that stay"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, more: dict[str, Any], wrong: str) -> None:
    trace, asked = tmp_path / "t.csv", tmp_path / "r.csv"
    trace.write_text("submit,duration,gpus\n10,50000,2\n")
    asked.write_text("arrival,prompt,output\n0,100,100\n")
    with pytest.raises(InvalidError, match=r"^cannot ") as caught:
        simulate(_request(trace, asked, **more), lambda line: None)
    assert wrong in caught.value.message


def _request(trace: Path, asked: Path, **more: Any) -> Request:
    said: dict[str, Any] = {"nodes": "1x2gpu", "policies": ["zenos"], "replica": REPLICA}
    said |= {"requests_every_s": 10_000.0, "requests": str(asked), "skip_bad": True}
    return Request(trace=str(trace), **(said | more))


def _with(**more: Any) -> Replicas:
    return Replicas(**({name: getattr(REPLICA, name) for name in REPLICA.__struct_fields__} | more))
