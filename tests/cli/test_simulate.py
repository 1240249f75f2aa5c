"""`zenos simulate`: the command as people type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TRACE = "submit,duration,gpus\n0,3600,8\n10,60,1\n20,30000,4\n"


def zenos(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zenos", "simulate", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_policies_are_compared_and_drawn(tmp_path: Path) -> None:
    trace, picture = tmp_path / "t.csv", tmp_path / "p.png"
    trace.write_text(TRACE)
    done = zenos(str(trace), "--nodes", "1x8gpu", "--policy", "zenos,fifo", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert "3 jobs on 8 GPUs" in done.stderr
    assert f"wrote {picture}" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:1] in "zf" and line] == [
        "zenos",
        "fifo",
        "zenos",
        "fifo",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_has_everything_and_rows_may_be_left_out(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE + "x,1,1\n")
    refused = zenos(str(trace), "--load", "0.5")
    assert refused.returncode == 2
    assert "row 5: submit 'x' is no number" in refused.stderr
    done = zenos(str(trace), "--nodes", "1x8gpu", "--skip-bad", "--json", "--set", "slice_s=60")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["jobs"], len(found["skipped"])) == (3, 1)
    assert [run["policy"] for run in found["runs"]] == ["zenos", "fifo"]
    assert done.stderr.count("\n") == 1, "bars are for terminals"
    assert found["runs"][0]["steps"] > 0


def test_what_cannot_be_simulated_is_refused_in_one_line(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE)
    for args, code, why in (
        (["--nodes", "1x4gpu"], 2, "job 1: it wants 8 GPUs at once, the largest node has 4"),
        (["--nodes", "8"], 2, "write COUNTxGPUSgpu"),
        ([], 2, "give --nodes, or --load"),
        (["--load", "nan"], 2, "a load of nan"),
        (["--load", "1", "--policy", "best"], 2, "policy 'best'"),
        (["--load", "1", "--set", "agein=1"], 2, "did you mean 'ageing'"),
        (["--load", "1", "--days", "9-3"], 2, "from a day to a later one"),
        (["--load", "1", "--days", "100-101"], 2, "none of 3 jobs is in that window"),
        (["--load", "1", "--plot", str(tmp_path / "a.exe")], 2, "its ending must be one of"),
    ):
        refused = zenos(str(trace), *args)
        assert refused.returncode == code, args
        assert refused.stderr.startswith("zenos: cannot "), refused.stderr
        assert why in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert zenos(str(tmp_path / "none.csv"), "--load", "1").returncode == 3
    for args, field in ((("\udcff",), "trace"), ((str(trace), "--requests", "\udcff"), "requests")):
        refused = zenos(*args, "--load", "1")
        assert refused.returncode == 2
        assert f"cannot use {field} '\\udcff': it has bytes that are not UTF-8" in refused.stderr


def test_nodes_fail_and_what_is_lost_is_told(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE)
    args = [str(trace), "--nodes", "2x8gpu", "--policy", "zenos", "--checkpoint", "20m"]
    done = zenos(*args, "--fail", "n1:50m:1h", "--fail", "n2:5h:1h", "--json")
    assert done.returncode == 0, done.stderr
    [run] = json.loads(done.stdout)["runs"]
    assert run["node_failures"] == 2
    assert run["restarts"] >= 1
    assert run["work_lost"] > 0
    shown = zenos(*args, "--mtbf", "2h", "--mttr", "10m", "--seed", "3")
    assert "GPU-hours done again" in shown.stdout
    for more, why in (
        (["--fail", "n1:1h:1h", "--policy", "zenos,easy"], "only zenos knows nodes"),
        (["--fail", "n7:1h:1h"], "cannot let the node 'n7' fail"),
        (["--checkpoint", "0s"], "cannot checkpoint every 0 s"),
    ):
        refused = zenos(*args, *more)
        assert (refused.returncode, why in refused.stderr) == (2, True), refused.stderr


def test_requests_come_beside_the_jobs(tmp_path: Path) -> None:
    trace, asked = tmp_path / "t.csv", tmp_path / "r.csv"
    trace.write_text(TRACE)
    asked.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,800,40\nx,1,1\n"
    )
    args = [str(trace), "--nodes", "1x8gpu", "--policy", "zenos", "--requests", str(asked)]
    refused = zenos(*args)
    assert "row 3: arrival 'x' is no number" in refused.stderr
    done = zenos(*args, "--skip-bad", "--replica", "load_s=5", "--replica", "slots=1")
    assert done.returncode == 0, done.stderr
    assert "left out 1 row; the first: row 3" in done.stderr
    # Loaded in 5 s from the beginning; 0.1 s for the prompt.
    assert done.stdout.splitlines()[-1].split() == [
        *("1", "1", "0", "0", "0", "5.10", "5.10", "5.10", "1", "1.00")
    ]
    misspelt = zenos(*args, "--skip-bad", "--replica", "slot=1")
    assert "replica.slot" in misspelt.stderr
    assert "did you mean 'slots'" in misspelt.stderr
