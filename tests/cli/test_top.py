"""The live screen, driven by textual's pilot against the real API."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from rich.console import Console
from textual.widgets import DataTable, Static

from tests.cli.conftest import Daemon, until
from zenos.cli.top import Confirm, Top, bar, nodes_table
from zenos.client import NodeView, connect, connect_async
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.wire import Progress


def shown(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).render())


def drawn(app: Top, name: str) -> str:
    """What stands there on the screen, with single spaces."""
    widget = app.query_one(f"#{name}", Static)
    lines = widget.render_lines(widget.region.reset_offset)
    return " ".join(" ".join(line.text for line in lines).split())


async def becomes(true: object, pilot: object) -> None:
    async with asyncio.timeout(20):
        while not true():  # type: ignore[operator]
            await pilot.pause(0.02)  # type: ignore[attr-defined]


async def test_it_shows_nodes_tasks_and_progress_and_cancels(daemon: Daemon) -> None:
    def submit() -> tuple[str, str]:
        with connect() as client:
            first = client.submit(["work"], name="first").id
            return first, client.submit(["other"], name="second").id

    def shut_down() -> None:
        with connect() as client:
            client.shut_down("drain")

    first, second = await asyncio.to_thread(submit)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=(140, 40)) as pilot:
        table = app.query_one(DataTable)
        await becomes(lambda: table.row_count == 2, pilot)
        held = f"local cpu {'█' * 10}{'·' * 10} 2 / 4"
        await becomes(lambda: drawn(app, "nodes").startswith(held), pilot)
        progress = Progress(stage="training", done=1, total=4, tokens_per_s=1249, loss=3.25)
        await asyncio.to_thread(daemon.report, first, progress)
        await becomes(lambda: "25%" in str(table.get_cell(first, "PROGRESS")), pilot)
        assert str(table.get_cell(first, "TOK/S")) == "1,249"
        assert "zenos test" in shown(app, "head")
        await becomes(lambda: app.selected == first, pilot)
        await pilot.press("down")
        assert app.selected == second
        await pilot.press("c", "n")
        await pilot.press("c")
        await becomes(lambda: isinstance(app.screen, Confirm), pilot)
        await pilot.press("q")  # of the question, not of the screen
        await becomes(lambda: not isinstance(app.screen, Confirm), pilot)
        await pilot.press("c", "y")
        await becomes(lambda: str(table.get_cell(second, "STATE")) == "cancelled", pilot)
        await pilot.press("c")
        await becomes(lambda: f"{second} has ended already" in shown(app, "message"), pilot)
        await app.look()
        assert f"{second} has ended already" in shown(app, "message")  # it can be read
        assert not isinstance(app.screen, Confirm)
        assert daemon.state(first) == "running"
        await asyncio.to_thread(shut_down)
        await becomes(lambda: "going down (drain)" in shown(app, "head"), pilot)
        await pilot.press("e")
        await becomes(lambda: table.row_count == 1, pilot)
        await pilot.press("q")
    assert app.return_code == 0


async def test_what_waits_stands_below_what_runs_in_the_order_of_its_start(daemon: Daemon) -> None:
    def submit() -> list[str]:
        with connect() as client:
            asked = (("low", "low"), ("normal", "normal"), ("high", "high"))
            runs = client.submit(["work"], name="runs", cpu=4, priority="low").id
            until(lambda: daemon.state(runs) == "running")
            waits = {name: client.submit(["work"], cpu=4, priority=p).id for name, p in asked}
            return [runs, waits["high"], waits["normal"], waits["low"]]

    order = await asyncio.to_thread(submit)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=(140, 40)) as pilot:
        table = app.query_one(DataTable)
        await becomes(lambda: table.row_count == 4, pilot)
        assert [str(key.value) for key in table.rows] == order
        states = [str(table.get_cell(task, "STATE")) for task in order]
        assert states == ["running", "queued", "queued", "queued"]
        assert "3 queued" in shown(app, "head")
        await pilot.press("q")


async def test_an_array_is_one_line_and_of_several_people_it_says_whose_each_is(
    daemon: Daemon,
) -> None:
    def submit() -> tuple[str, str]:
        with connect() as operator:
            sweep = operator.submit_array(["work"], "0-3", name="sweep", cpu=0.1).array.id
            said = operator.tokens.create("anns", user="ann", project="vision").token
        return sweep, said or ""

    def submit_hers() -> str:
        with connect(daemon.url, token=anns) as ann:
            return ann.submit(["her"]).id

    sweep, anns = await asyncio.to_thread(submit)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=(160, 40)) as pilot:
        table = app.query_one(DataTable)
        await becomes(lambda: table.row_count == 1, pilot)
        await becomes(lambda: str(table.get_cell(sweep, "STATE")) == "running", pilot)
        assert str(table.get_cell(sweep, "TASK")) == f"{sweep} sweep"
        assert "USER" not in table.columns
        await asyncio.to_thread(daemon.end, "t1")
        await becomes(
            lambda: "25% 1 succeeded, 3 running of 4" in str(table.get_cell(sweep, "PROGRESS")),
            pilot,
        )
        hers = await asyncio.to_thread(submit_hers)
        await becomes(lambda: table.row_count == 2, pilot)
        assert str(table.get_cell(hers, "USER")) == "ann (vision)"
        assert str(table.get_cell(sweep, "USER")) == "local"
        await becomes(lambda: app.selected == sweep, pilot)
        await pilot.press("c")
        await becomes(lambda: isinstance(app.screen, Confirm), pilot)
        await pilot.press("y")
        ended = "3 cancelled"
        await becomes(lambda: ended in str(table.get_cell(sweep, "PROGRESS")), pilot)
        assert daemon.state(hers) == "running"
        await pilot.press("c")
        await becomes(lambda: f"{sweep} has ended already" in shown(app, "message"), pilot)
        await pilot.press("q")


def test_a_node_s_bars_show_what_is_held_of_it() -> None:
    node = Node(name="box", capacity=Resources.of(cpu=4, gpu=2, memory="8GiB"), gpus=2)
    views = [
        NodeView(node=node, used=Resources.of(cpu=1, gpu=1, memory="6GiB")),
        NodeView(node=replace(node, name="idle", gpus=0), used=Resources()),
    ]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(nodes_table(views))
    box, idle = (" ".join(line.split()) for line in captured.get().splitlines())
    assert box == (
        f"box cpu {'█' * 5}{'·' * 15} 1 / 4 gpu {'█' * 10}{'·' * 10} 1 / 2 "
        f"memory {'█' * 15}{'·' * 5} 6 GiB / 8 GiB"
    )
    assert idle == f"idle cpu {'·' * 20} 0 / 4 memory {'·' * 20} 0 B / 8 GiB"


async def test_it_says_when_the_daemon_is_gone_and_goes_on(daemon: Daemon) -> None:
    app = Top(connect_async(retry_s=0), interval_s=0.1)
    async with app.run_test() as pilot:
        await becomes(lambda: "zenos test" in shown(app, "head"), pilot)
        await asyncio.to_thread(daemon.stop)
        await becomes(lambda: "zenos up" in shown(app, "message"), pilot)
        await pilot.press("q")


@pytest.mark.parametrize("before", ["", "c"])
async def test_ctrl_c_leaves_it_from_wherever_it_is(daemon: Daemon, before: str) -> None:
    def submit() -> None:
        with connect() as client:
            client.submit(["work"])

    await asyncio.to_thread(submit)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test() as pilot:
        await becomes(lambda: app.query_one(DataTable).row_count == 1, pilot)
        if before:
            await pilot.press(before)
            await becomes(lambda: isinstance(app.screen, Confirm), pilot)
        await pilot.press("ctrl+c")
        await becomes(lambda: not app.is_running, pilot)
    assert app.return_code == 0


def test_a_bar_fills_by_eighths() -> None:
    assert bar(0.0, 4).plain == "····"
    assert bar(0.5, 4).plain == "██··"
    assert bar(1.0, 4).plain == "████"
    assert bar(7.0, 4).plain == "████"
    assert bar(1 / 32, 4).plain == "▏···"


NAMES = [f"{'a' * 57}-seed-{n}" for n in (1, 2)]


def on_screen(app: Top) -> list[str]:
    """The lines as the terminal shows them."""
    strips = app.screen._compositor.render_strips()  # type: ignore[attr-defined]
    return ["".join(segment.text for segment in strip).rstrip() for strip in strips]


async def busy(daemon: Daemon) -> list[str]:
    """Two tasks with the longest names, of which the first trains."""

    def submit() -> list[str]:
        with connect() as client:
            return [client.submit(["work"], name=name).id for name in NAMES]

    tasks = await asyncio.to_thread(submit)
    progress = Progress(stage="training", done=1, total=4, tokens_per_s=1249, loss=3.25)
    await asyncio.to_thread(daemon.report, tasks[0], progress)
    return tasks


@pytest.mark.parametrize(
    ("size", "columns"),
    [
        ((80, 24), ["TASK", "KIND", "STATE", "PRIO", "PROGRESS"]),
        ((40, 12), ["TASK", "STATE", "PROGRESS"]),
        ((30, 8), ["TASK", "STATE", "PROGRESS"]),
    ],
)
async def test_a_small_screen_keeps_what_matters(
    daemon: Daemon, size: tuple[int, int], columns: list[str]
) -> None:
    first, _ = await busy(daemon)
    app = Top(connect_async(), interval_s=0.1)
    async with app.run_test(size=size) as pilot:
        await becomes(lambda: any(first in line for line in on_screen(app)), pilot)
        head = next(line for line in on_screen(app) if "TASK" in line)
        assert [name for name in head.split() if name in columns] == columns
        row = next(line for line in on_screen(app) if line.startswith(f" {first}"))
        assert "-1" in row  # the end of its name tells it from the other
        assert "running" in row
        assert ("25%" in row) == ("PROGRESS" in columns)
        assert all(any(word in line for line in on_screen(app)) for word in ("zenos", "quit"))
        await pilot.press("q")


async def test_another_size_of_the_terminal_is_seen_at_once(daemon: Daemon) -> None:
    first, _ = await busy(daemon)
    app = Top(connect_async(), interval_s=60)  # no look comes between
    async with app.run_test(size=(160, 40)) as pilot:
        await becomes(lambda: app.query_one(DataTable).row_count == 2, pilot)
        assert str(app.query_one(DataTable).get_cell(first, "TASK")) == f"{first} {NAMES[0]}"
        await pilot.resize_terminal(60, 20)
        await becomes(lambda: "…" in str(app.query_one(DataTable).get_cell(first, "TASK")), pilot)
        await pilot.resize_terminal(160, 40)
        whole = f"{first} {NAMES[0]}"
        await becomes(lambda: str(app.query_one(DataTable).get_cell(first, "TASK")) == whole, pilot)
        await pilot.press("q")


@pytest.mark.parametrize("room", [28, 38, 60, 78, 120])
def test_nodes_fit_into_a_line_each(room: int) -> None:
    node = Node(name="box", capacity=Resources.of(cpu=4, gpu=2, memory="8GiB"), gpus=2)
    used = Resources.of(cpu=1, gpu=1, memory="6GiB")
    names = ("gpu-machine-1.lab.example.org", "gpu-machine-2.lab.example.org")
    views = [NodeView(node=replace(node, name=name), used=used) for name in names]
    console = Console(width=room)
    with console.capture() as captured:
        console.print(nodes_table(views, room))
    made = captured.get().splitlines()
    assert len(made) == 2
    assert made[0].split()[0] != made[1].split()[0]


async def test_many_nodes_leave_room_for_the_tasks(daemon: Daemon) -> None:
    first, _ = await busy(daemon)
    app = Top(connect_async(), interval_s=60)
    async with app.run_test(size=(80, 24)) as pilot:
        await becomes(lambda: app.query_one(DataTable).row_count == 2, pilot)
        seen = app._seen
        assert seen is not None
        node = seen.status.nodes[0]
        many = [NodeView(node=replace(node.node, name=f"n{i}"), used=node.used) for i in range(50)]
        app._show(seen._replace(status=replace(seen.status, nodes=many)))
        await becomes(lambda: any("more nodes" in line for line in on_screen(app)), pilot)
        assert any(f" {first} " in line for line in on_screen(app))
        await pilot.press("q")
