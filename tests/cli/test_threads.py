"""Threads under their tasks, as typed and on the live screen."""

from __future__ import annotations

import asyncio
import functools
import re
import time

from textual.widgets import DataTable

from tests.cli.conftest import Daemon, until, zenos
from tests.cli.test_top import becomes, drawn
from zenos.cli.top import THREADS_SHOWN, Top, threads_table
from zenos.client import connect_async
from zenos.core.thread_views import PoolView, ProcessThreads, ThreadView


def hear(daemon: Daemon, task: str, count: int = 2) -> None:
    """A process of the task says that one of its threads runs and the others wait, 4 unseen."""
    threads = [
        ThreadView(
            id=number,
            name="shard",
            state="running" if number == 0 else "queued",
            priority=60,
            attempt=2,
            items=7,
            lane=number if number == 0 else None,
            progress=0.25 if number == 0 else 0.0,
            cpu_s=1.5,
        )
        for number in range(count)
    ]
    counts = dict.fromkeys(("succeeded", "failed", "cancelled", "retried", "lanes_died"), 0)
    pool = PoolView(
        name="tokenizing",
        kind="thread",
        policy="fifo",
        wanted=1,
        queued=count + 3,
        running=1,
        submitted=count + 4,
        lanes=[],
        threads=threads,
        **counts,
    )
    report = ProcessThreads(pid=7, pools=[pool])
    daemon.do(daemon.double.view.threads.heard, task, "p", report, time.monotonic())


def test_ps_lists_threads_under_their_tasks(daemon: Daemon) -> None:
    first = zenos("submit", "--name", "first", "--", "work").out.strip()
    zenos("submit", "--name", "second", "--", "other")
    until(lambda: daemon.state(first) == "running")
    hear(daemon, first)
    lines = zenos("ps", "--threads").out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(first))
    assert lines[at + 1].split()[:6] == ["0", "shard", "tokenizing", "0", "running", "60"]
    assert lines[at + 1].endswith("1.5 s  25% of 7 items (try 2)")
    assert lines[at + 2].split()[:5] == ["1", "shard", "tokenizing", "queued", "60"]
    assert "4 more" in lines[at + 3]
    listed = zenos("ps", "--threads", "--json").json
    found = {view["task"]["spec"]["name"]: view for view in listed}
    assert (found["first"]["threads"], found["second"]["processes"]) == (6, [])
    assert found["first"]["processes"][0]["pools"][0]["threads"][1]["name"] == "shard"
    daemon.end(first)
    until(lambda: daemon.state(first) == "succeeded")
    assert "shard" not in zenos("ps", "--all", "--threads").out
    assert zenos("ps", "--threads", "--state", "failed").out.strip() == ""


def test_ps_counts_tokens_where_a_thread_has_such(daemon: Daemon) -> None:
    task = zenos("submit", "--", "work").out.strip()
    until(lambda: daemon.state(task) == "running")
    counts = dict.fromkeys(("succeeded", "failed", "cancelled", "retried", "lanes_died"), 0)
    thread = functools.partial(ThreadView, priority=50, attempt=1, items=1, unit="tokens")
    pool = PoolView(
        name="sequences",
        kind="engine",
        policy="priority",
        wanted=1,
        queued=1,
        running=2,
        submitted=2,
        lanes=[],
        threads=[
            thread(id=1, name="a", state="running", lane=0, done=1037, total=4096),
            thread(id=2, name="b", state="prefill", lane=1, done=128),
            thread(id=3, name="c", state="queued", total=16),
        ],
        **counts,
    )
    report = ProcessThreads(pid=7, pools=[pool]).bounded()
    daemon.do(daemon.double.view.threads.heard, task, "p", report, time.monotonic())
    ends = [line.split(" s  ")[-1].strip() for line in zenos("ps", "--threads").out.splitlines()]
    # No CPU time, which such threads have none of their own of.
    assert ends[-3:] == ["1,037 of 4,096 tokens", "128 tokens", "0 of 16 tokens"]
    assert "prefill" in zenos("ps", "--threads").out


async def test_the_live_screen_shows_those_of_the_selected_task(daemon: Daemon) -> None:
    task = (await asyncio.to_thread(zenos, "submit", "--", "work")).out.strip()
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=(140, 40)) as pilot:
        table = app.query_one(DataTable)
        await becomes(lambda: app.selected == task, pilot)
        assert not app.query_one("#threads").display
        await asyncio.to_thread(hear, daemon, task, THREADS_SHOWN + 1)
        await becomes(lambda: str(table.get_cell(task, "THREADS")) == str(THREADS_SHOWN + 5), pilot)
        await becomes(lambda: app.query_one("#threads").display, pilot)
        # What is on the screen: with state, lane, progress and CPU time.
        first = r"0 shard tokenizing 0 running 60 [\d.]+ s 1\.5 s 25% of 7 items \(try 2\) 1 shard"
        await becomes(lambda: re.search(first, drawn(app, "threads")), pilot)
        whole = threads_table(await app._client.threads(task))
        assert whole.row_count == THREADS_SHOWN + 1
        await asyncio.to_thread(daemon.end, task)
        await becomes(lambda: not app.query_one("#threads").display, pilot)
        await pilot.press("q")
