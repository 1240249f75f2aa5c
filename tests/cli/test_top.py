"""The live screen, driven by textual's pilot against the real API."""

from __future__ import annotations

import asyncio

from textual.widgets import DataTable, Static

from tests.cli.conftest import Daemon
from zenos.cli.top import Top, bar
from zenos.client import connect, connect_async
from zenos.core.wire import Progress


def shown(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).render())


async def becomes(true: object, pilot: object) -> None:
    async with asyncio.timeout(20):
        while not true():  # type: ignore[operator]
            await pilot.pause(0.02)  # type: ignore[attr-defined]


async def test_it_shows_nodes_tasks_and_progress_and_cancels(daemon: Daemon) -> None:
    def submit() -> tuple[str, str]:
        with connect() as client:
            first = client.submit(["work"], name="first").id
            return first, client.submit(["other"], name="second").id

    first, second = await asyncio.to_thread(submit)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=(140, 40)) as pilot:
        table = app.query_one(DataTable)
        await becomes(lambda: table.row_count == 2, pilot)
        progress = Progress(stage="training", done=1, total=4, tokens_per_s=1249, loss=3.25)
        await asyncio.to_thread(daemon.report, first, progress)
        await becomes(lambda: "25%" in str(table.get_cell(first, "PROGRESS")), pilot)
        assert str(table.get_cell(first, "TOK/S")) == "1,249"
        assert "zenos test" in shown(app, "head")
        await becomes(lambda: app.selected == first, pilot)
        await pilot.press("down")
        assert app.selected == second
        await pilot.press("c", "n")
        await pilot.press("c", "y")
        await becomes(lambda: str(table.get_cell(second, "STATE")) == "cancelled", pilot)
        assert daemon.state(first) == "running"
        await pilot.press("e")
        await becomes(lambda: table.row_count == 1, pilot)
        await pilot.press("q")
    assert app.return_code == 0


async def test_it_says_when_the_daemon_is_gone_and_goes_on(daemon: Daemon) -> None:
    app = Top(connect_async(retry_s=0), interval_s=0.1)
    async with app.run_test() as pilot:
        await becomes(lambda: "zenos test" in shown(app, "head"), pilot)
        await asyncio.to_thread(daemon.stop)
        await becomes(lambda: "zenos up" in shown(app, "message"), pilot)
        await pilot.press("q")


def test_a_bar_fills_by_eighths() -> None:
    assert bar(0.0, 4).plain == "····"
    assert bar(0.5, 4).plain == "██··"
    assert bar(1.0, 4).plain == "████"
    assert bar(7.0, 4).plain == "████"
    assert bar(1 / 32, 4).plain == "▏···"
