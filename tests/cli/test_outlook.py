"""why and plan at the command line and in both clients; the chart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.cells import cell_len

import zenos as package
from tests.cli.conftest import Daemon, until, zenos
from zenos.cli import gantt
from zenos.core import pictures
from zenos.core.errors import InvalidError, StorageError
from zenos.core.home import Home
from zenos.core.outlook import Plan, Segment
from zenos.core.resources import Resources
from zenos.core.task import Kind, Outcome


def submit(name: str, time: str) -> str:
    ran = zenos("submit", "--name", name, "--cpu", "3", "--time", time, "--", "work")
    return ran.out.strip()


def two(daemon: Daemon) -> tuple[str, str]:
    first = submit("first", "100s")
    until(lambda: daemon.state(first) == "running")
    second = submit("later", "10s")
    return first, second


def test_why_a_task_waits_runs_and_has_ended(daemon: Daemon) -> None:
    first, second = two(daemon)
    out = zenos("why", "later").out
    for words in (
        f"{second} (later)",
        "it waits for 2 CPU more on local",
        "0 before it, of 1 waiting",
        "= priority 50 + 25 · 0.",
        "10 s, as the user said",
        # One expected time, and what the load makes of it: never two that contradict each other.
        "expected 10 s, slowed to 18 s by a load of 75%)",
        f"held by {first} (first) 3 CPU, 512 MiB, priority 50, ends in 1:",
        f"the end of {first} (first)",
        "(a forecast)",
    ):
        assert words in out, words
    assert zenos("why", second, "--json").json["remedies"][0]["tasks"] == [first]
    running = zenos("why", "first").out
    assert "it runs on local" in running
    assert "gives way to nobody" in running
    daemon.end(first, Outcome(exit_code=3))
    until(lambda: daemon.state(first) == "failed")
    assert "ended with exit code 3" in zenos("why", first).out
    assert zenos("why", "nobody").code == 3


def test_the_plan_in_the_terminal_as_json_and_as_a_picture(daemon: Daemon, tmp_path: Path) -> None:
    assert "nothing is expected to start" in zenos("plan").err
    first, second = two(daemon)
    shown = zenos("plan")
    assert "a forecast" in shown.err
    lines = shown.out.splitlines()
    assert lines[0].split()[0] == "now"
    assert lines[1] == "local"
    assert lines[2].split()[:2] == [first, "first"]
    assert lines[3].split()[:2] == [second, "later"]
    assert "runs, ends +1:" in lines[2]
    assert "█" in lines[3]
    assert "the first 1 of 2 tasks" in zenos("plan", "--limit", "1").err
    near = zenos("plan", "--ahead", "1s")
    assert f"not expected to start: {second}" in near.err
    found = zenos("plan", "--json").json
    assert [segment["task"] for segment in found["segments"]] == [first, second]
    picture = tmp_path / "plan.png"
    assert zenos("plan", "--png", str(picture)).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in ("plan.txt", "nowhere/plan.png"):
        assert zenos("plan", "--png", str(tmp_path / name)).code == 2
    assert zenos("plan", "--ahead", "soon").code == 2


def test_both_clients(daemon: Daemon, home: Home) -> None:
    first, second = two(daemon)
    with package.connect() as client:
        assert client.why("later").task == second
        assert client.task(first).why().stay is not None
        assert [segment.task for segment in client.plan("1h").segments] == [first, second]

    async def awaited() -> None:
        async with package.connect_async() as client:
            assert (await client.why(second)).starts_at is not None
            assert (await (await client.task(second)).why()).task == second
            assert (await client.plan(1)).never == [second]

    asyncio.run(awaited())


def segment(task: str, start: float, end: float, **more: object) -> Segment:
    given = {"node": "a", "ends": "finished", "label": "", **more}
    return Segment(  # type: ignore[arg-type]
        **{
            "task": task,
            "kind": Kind.RUN,
            "user": "ann",
            "priority": 50,
            "resources": Resources(cpu=1000),
            "start": start,
            "end": end,
            **given,
        }
    )


def test_the_bars_of_a_chart_lie_where_their_times_do() -> None:
    plan = Plan(
        at=100.0,
        until=200.0,
        nodes=[],
        segments=[
            segment("t1", 50.0, 150.0, begun=True, ends="gives way"),
            segment("t1", 175.0, 200.0, ends="open"),
            segment("t2", 150.0, 175.0, node="b\x1b[31m", label="名前" * 20),
        ],
    )
    columns = gantt.NAME_COLUMNS + gantt.TIMES_COLUMNS + 4 + 40
    lines = gantt.chart(plan, columns, 10)
    bars = [line[gantt.NAME_COLUMNS + 2 :][:40] for line in lines]
    assert bars[0] == f"now{' ' * 17}+50 s{' ' * 10}+1:40"
    assert bars[2] == "█" * 20 + "·" * 10 + "█" * 9 + "▶"
    name, found, _ = lines[4].partition("·" * 20 + "█" * 10)
    assert (cell_len(name), bool(found)) == (gantt.NAME_COLUMNS + 2, True)
    assert "\x1b" not in "".join(lines)
    assert lines[4].startswith("  t2 ")
    assert len(gantt.chart(plan, columns, 1)) == 4  # the axis, two nodes, one task


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    plan = Plan(at=0.0, until=9e5, nodes=[], segments=[segment("t1", 0.0, 9e5, label="a$b_$")])
    gantt.write_picture(plan, tmp_path / "x.svg")
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()
    (tmp_path / "x.png").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        gantt.write_picture(plan, tmp_path / "x.png")
    with pytest.raises(InvalidError, match="ending"):
        pictures.check(tmp_path / "x.jpeg")
