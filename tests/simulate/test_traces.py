"""Reading traces: what is taken, and what is wrong with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenos.core.errors import InvalidError, NotFoundError
from zenos.simulate import cluster, traces
from zenos.simulate.traces import Job, Window


def write(path: Path, text: str) -> Path:
    path = path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_sorted_and_counted_from_the_first_whatever_the_columns_are_called(
    tmp_path: Path,
) -> None:
    text = "vc,num_gpus,Duration_S,timestamp\nb,0.5,20,1300\na,2,10,1000\n"
    assert traces.read(write(tmp_path, text)).jobs == [
        Job(submit_s=0.0, duration_s=10.0, gpu=2000, user="a"),
        Job(submit_s=300.0, duration_s=20.0, gpu=500, user="b"),
    ]


def test_priority_and_kind_are_taken_where_they_stand(tmp_path: Path) -> None:
    text = "submit,duration,gpus,priority,kind\n0,1,1,75,run\n0,1,1,,\n"
    first, second = traces.read(write(tmp_path, text)).jobs
    assert (first.priority, first.kind) == (75, "run")
    assert (second.priority, second.kind) == (50, "train")


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("x,10,1", "row 3: submit 'x' is no number"),
        ("1,-10,1", "row 3: duration -10 is not from 0"),
        ("1,nan,1", "row 3: duration nan is not from 0"),
        ("1,10", "row 3: no gpus: it has 2 fields"),
        ("1,10,0", "row 3: gpus 0 is not from 0.001"),
        ("1,10,1.5", "row 3: gpus 1.5 is neither a share of one nor whole ones"),
        ("1,10,1e9", "row 3: gpus 1e9 is not from 0.001 to 1024"),
    ],
)
def test_a_malformed_row_is_named_or_left_out(tmp_path: Path, row: str, wrong: str) -> None:
    path = write(tmp_path, f"submit,duration,gpus\n0,1,1\n{row}\n5,1,1\n")
    with pytest.raises(InvalidError, match="--skip-bad") as caught:
        traces.read(path)
    assert wrong in caught.value.message
    trace = traces.read(path, skip_bad=True)
    assert len(trace.jobs) == 2
    assert trace.skipped[0].startswith(wrong)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "it is empty"),
        ("submit,duration\n0,1\n", "no column 'gpus'"),
        ("submit,duration,gpus\n", "it has no jobs"),
        ('submit,duration,gpus\n0,"1,1\n', "cannot read"),
        ("\x00\n", "cannot read"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_reason(
    tmp_path: Path, text: str, wrong: str
) -> None:
    with pytest.raises(InvalidError, match=r"^cannot ") as caught:
        traces.read(write(tmp_path, text))
    assert wrong in caught.value.message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        traces.read(tmp_path / "nothing.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"submit,duration,gpus\n\xff\xfe,1,1\n")
    with pytest.raises(InvalidError, match="UTF-8"):
        traces.read(path)


def test_a_window_cuts_by_submission_and_length_and_begins_at_zero() -> None:
    jobs = [
        Job(submit_s=s, duration_s=d, gpu=1000) for s, d in ((0, 1), (10, 5), (10, 50), (20, 1))
    ]
    assert Window(10, 20, 50).cut(jobs) == [Job(submit_s=0, duration_s=5, gpu=1000)]


def test_clusters_are_written_as_counts_of_nodes() -> None:
    nodes = cluster.nodes("2x8gpu,1x2gpus")
    assert [(n.name, n.gpus) for n in nodes] == [("n1", 8), ("n2", 8), ("n3", 2)]
    for wrong in ("8", "0x8gpu", "1x0gpu", "1x2000gpu", "-1x8gpu", "1x8cpu", ""):
        with pytest.raises(InvalidError, match=r"^cannot "):
            cluster.nodes(wrong)


def test_a_pool_is_as_large_as_makes_the_load() -> None:
    jobs = [Job(submit_s=float(s), duration_s=100.0, gpu=2000) for s in range(10)]
    (node,) = cluster.pool_for(jobs, 0.5, 100.0)
    assert node.gpus == 40
    for load in (0.0, -1.0, 1e-9):
        with pytest.raises(InvalidError, match=r"^cannot "):
            cluster.pool_for(jobs, load, 100.0)


def test_a_job_that_no_node_can_hold_is_named() -> None:
    nodes = cluster.nodes("4x8gpu")
    jobs = [Job(submit_s=0.0, duration_s=1.0, gpu=g) for g in (1000, 16000, 33000)]
    with pytest.raises(InvalidError, match=r"job 3: it wants 33 GPUs at once, all nodes have 32"):
        cluster.check_fit(jobs, nodes)
    program = Job(submit_s=0.0, duration_s=1.0, gpu=16000, kind="run")
    with pytest.raises(InvalidError, match=r"job 1: it wants 16 GPUs at once, the largest node"):
        cluster.check_fit([program], nodes)
