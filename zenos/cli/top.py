"""The live screen: nodes with bars, tasks with state and progress, the queue."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Static

from zenos.cli.arrays import state_of, summary
from zenos.cli.output import clean
from zenos.cli.rows import owner_name, work_line
from zenos.cli.threads import thread_lines
from zenos.client import AsyncClient, connect_async
from zenos.client.display import COLOURS, disk_low, fraction, show_count, show_seconds, took_s
from zenos.core.errors import NotFoundError, ZenosError
from zenos.core.resources import show_share, show_size
from zenos.core.task import Principal, State

if TYPE_CHECKING:
    from zenos.client import ArrayView, NodeView, Status, TaskThreads, TaskView

TASKS_SHOWN: Final = 200
BAR_CELLS: Final = 20
COLUMNS: Final = (
    *("TASK", "KIND", "STATE", "PRIO", "TIME"),
    *("THREADS", "PROGRESS", "TOK/S", "LOSS", "DOES"),
)
THREADS_SHOWN: Final = 8  # of the selected task
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def bar(share: float, cells: int = BAR_CELLS) -> Text:
    """A bar of character cells, to an eighth of one; red from 90 % on."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    drawn = _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")
    colour = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    return Text(drawn.ljust(cells, "·"), style=colour)


def nodes_table(views: Sequence[NodeView]) -> Table:
    """A line for each node: what tasks hold of CPU, GPU and memory."""
    table = Table.grid(padding=(0, 2))
    for view in views:
        node, used, capacity = view.node, view.used, view.node.capacity
        name = f"{node.name} ({node.standing})" if node.standing else node.name
        cells: list[Any] = [Text(name, style="bold")]
        held: list[tuple[str, int, int, Callable[[int], str]]] = [
            ("cpu", used.cpu, capacity.cpu, show_share)
        ]
        if node.gpus:
            held.append(("gpu", used.gpu, capacity.gpu, show_share))
        held.append(("memory", used.memory, capacity.memory, show_size))
        for what, inside, whole, show in held:
            cells += [Text(what), bar(inside / whole if whole else 0.0)]
            cells.append(Text(f"{show(inside)} / {show(whole)}"))
        table.add_row(*cells)
    return table


def head(status: Status, url: str) -> Text:
    """The first line: where, since when, how many tasks in each state."""
    line = Text.assemble((f"zenos {status.version} ", "bold"), url)
    line.append(f"  up {show_seconds(status.uptime_s)}")
    if status.going_down is not None:
        line.append(f"  going down ({status.going_down})", style="yellow")
    if low := disk_low(status.disk_free):
        line.append(f"  disk {low}", style="yellow")
    for state, count in status.tasks.items():
        line.append(f"  {count} {state}", style=COLOURS[state])
    return line


def task_cells(view: TaskView) -> tuple[Any, ...]:
    """A line of the table of tasks."""
    task, progress = view.task, view.progress
    share = fraction(progress)
    doing: Any = Text(progress.stage if progress is not None and not task.is_ended else "")
    if share is not None and not task.is_ended:
        doing = Text.assemble(bar(share, 12), f" {share:4.0%} ", progress.stage if progress else "")
        if progress is not None and progress.left_s is not None:
            doing.append(f", {show_seconds(progress.left_s)} left", style="bright_black")
    loss = progress.loss if progress is not None else None
    name = task.id if not task.spec.name else f"{task.id} {task.spec.name}"
    return (
        Text(clean(name)),
        Text(str(task.kind)),
        Text(str(task.state), style=COLOURS[task.state]),
        Text(str(task.spec.priority), justify="right"),
        Text(show_seconds(took_s(task, time.time())), justify="right"),
        Text(str(view.threads or ""), justify="right"),
        doing,
        Text(show_count(progress.tokens_per_s) if progress else "", justify="right"),
        Text("" if loss is None else f"{loss:.3f}", justify="right"),
        Text(clean(work_line(task.spec.work))),
    )


def threads_table(threads: TaskThreads) -> Table:
    """The first threads of a task, a line for each."""
    table = Table.grid(padding=(0, 2))
    lines = list(thread_lines(threads))
    for line in lines[:THREADS_SHOWN]:
        table.add_row(*(c if isinstance(c, Text) else Text(clean(str(c))) for c in line))
    if len(lines) > THREADS_SHOWN:
        table.add_row("  …", Text(f"'zenos ps --threads' shows all of {threads.task}"))
    return table


class Line(NamedTuple):
    """A line of the table: a task, or an array as a whole. place: lower stands higher."""

    id: str
    owner: Principal
    cells: tuple[Any, ...]
    place: tuple[int, float, float]
    is_ended: bool
    is_array: bool = False


def task_line(view: TaskView) -> Line:
    """The line of a task."""
    task = view.task
    place = (2, -(task.ended or 0.0), 0.0)
    if not task.is_ended:
        place = (int(task.state is State.QUEUED), -task.spec.priority, task.submitted)
    return Line(task.id, task.principal, task_cells(view), place, task.is_ended)


def array_line(view: ArrayView) -> Line:
    """The line of an array, with how many of its tasks have ended."""
    array, state = view.array, state_of(view)
    share, over = view.ended / array.indices.count, view.ended == array.indices.count
    doing = Text.assemble(bar(share, 12), f" {share:4.0%} ", summary(view))
    cells = (
        Text(clean(array.id if not array.spec.name else f"{array.id} {array.spec.name}")),
        Text("array"),
        Text(str(state), style=COLOURS[state]),
        Text(str(array.spec.priority), justify="right"),
        *(Text(""), Text("")),
        Text(summary(view)) if over else doing,
        *(Text(""), Text("")),
        Text(clean(work_line(array.spec.work))),
    )
    place = (2, -array.submitted, 0.0)
    if not over:
        place = (int(state is State.QUEUED), -array.spec.priority, array.submitted)
    return Line(array.id, array.principal, cells, place, over, is_array=True)


def ordered(tasks: Iterable[TaskView], arrays: Iterable[ArrayView]) -> list[Line]:
    """What runs, then what waits in the queue, then what has ended last."""
    lines = [*map(task_line, tasks), *map(array_line, arrays)]
    return sorted(lines, key=lambda line: line.place)


def with_users(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and cells; with whose each line is, where they are of several people."""
    if len({line.owner for line in lines}) < 2:
        return COLUMNS, [line.cells for line in lines]
    users = [Text(clean(owner_name(line.owner))) for line in lines]
    cells = [
        (line.cells[0], user, *line.cells[1:]) for line, user in zip(lines, users, strict=True)
    ]
    return (COLUMNS[0], "USER", *COLUMNS[1:]), cells


class Confirm(ModalScreen[bool]):
    """Whether a task or an array is really to be cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]
    DEFAULT_CSS = """
    Confirm { align: center middle; }
    Confirm Label { padding: 1 3; border: round $warning; background: $surface; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question."""
        yield Label(Text(f"{self._question}  y / n"))

    def action_answer(self, answer: bool) -> None:
        """y or n."""
        self.dismiss(answer)


class Top(App[int]):
    """`zenos top`. interval_s: seconds between looks at the daemon."""

    TITLE = "zenos top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        # The terminal gives no SIGINT while a screen has it: the key has to mean the same.
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("c", "cancel", "cancel task"),
        Binding("e", "toggle_ended", "ended tasks"),
    ]
    CSS = """
    #head, #nodes, #threads, #message { height: auto; padding: 0 1; }
    #message { color: $error; }
    DataTable { height: 1fr; }
    """

    def __init__(self, client: AsyncClient, interval_s: float = 1.0) -> None:
        super().__init__()
        self._client = client
        self._interval_s = interval_s
        self._with_ended = True
        self._looking = False
        self._failed = False  # the last look
        self._lines: dict[str, Line] = {}
        self._columns: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        """Head, nodes, tasks, what went wrong, keys."""
        with Vertical():
            yield Static(id="head")
            yield Static(id="nodes")
            yield DataTable(id="tasks", cursor_type="row", zebra_stripes=True)
            yield Static(id="threads")
            yield Static(id="message")
            yield Footer()

    async def on_mount(self) -> None:
        """Look now, and from then on again and again."""
        self.set_interval(self._interval_s, self.look)
        await self.look()

    async def on_unmount(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def look(self) -> None:
        """Ask the daemon and draw; what goes wrong is shown, and the next look tries again."""
        if self._looking:
            return
        self._looking = True
        try:
            status = await self._client.status()
            views, arrays = await self._client.collapsed(limit=TASKS_SHOWN)
            threads = await self._threads(views)
        except ZenosError as error:
            self._failed = True
            self._say(error.message)
            return
        finally:
            self._looking = False
        if self._failed:  # what an action has said stays, to be read
            self._failed = False
            self._say("")
        self.query_one("#head", Static).update(head(status, self._client.address.url))
        self.query_one("#nodes", Static).update(nodes_table(status.nodes))
        below = self.query_one("#threads", Static)
        below.display = threads is not None
        below.update(threads_table(threads) if threads is not None else "")
        self._lines = {line.id: line for line in ordered(views, arrays)}
        self._draw([o for o in self._lines.values() if self._with_ended or not o.is_ended])

    async def _threads(self, views: Sequence[TaskView]) -> TaskThreads | None:
        """What the threads of the selected task do, if it has some."""
        selected = self.selected
        if not any(view.threads and view.task.id == selected for view in views):
            return None
        with suppress(NotFoundError):  # ended and forgotten meanwhile
            return await self._client.threads(str(selected))
        return None

    def _draw(self, lines: Sequence[Line]) -> None:
        """The table, keeping the selection on the same line and the place on the screen."""
        table = self.query_one(DataTable)
        selected, scroll = self.selected, table.scroll_y
        ids, (columns, rows) = [line.id for line in lines], with_users(lines)
        if columns != self._columns:
            self._columns = columns
            table.clear(columns=True)
            for name in columns:
                table.add_column(name, key=name)
        elif ids == [str(key.value) for key in table.rows]:
            for id_, cells in zip(ids, rows, strict=True):
                for name, cell in zip(columns, cells, strict=True):
                    if table.get_cell(id_, name) != cell:
                        table.update_cell(id_, name, cell, update_width=True)
            return
        table.clear()
        for id_, cells in zip(ids, rows, strict=True):
            table.add_row(*cells, key=id_)
        if selected in ids:
            table.move_cursor(row=ids.index(selected), scroll=False)
        table.scroll_to(y=scroll, animate=False)

    @property
    def selected(self) -> str | None:
        """The id of the task or array under the cursor."""
        table = self.query_one(DataTable)
        if not table.row_count:
            return None
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def action_toggle_ended(self) -> None:
        """Show or hide tasks that have ended."""
        self._with_ended = not self._with_ended
        self.run_worker(self.look())

    def action_cancel(self) -> None:
        """Ask, then cancel the selected task, or all tasks of the selected array."""
        self._say("")
        line = self._lines.get(self.selected or "")
        if line is None:
            return
        if line.is_ended:
            self._say(f"{line.id} has ended already")
            return
        what = f"all tasks of {line.id}" if line.is_array else line.id
        self.push_screen(Confirm(f"Cancel {what}?"), self._canceller(line))

    def _canceller(self, line: Line) -> Any:
        def decided(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._cancel(line))

        return decided

    async def _cancel(self, line: Line) -> None:
        try:
            if line.is_array:
                await self._client.cancel_array(line.id)
            else:
                await self._client.cancel(line.id)
        except ZenosError as error:
            self._say(error.message)
            return
        await self.look()

    def _say(self, message: str) -> None:
        self.query_one("#message", Static).update(Text(clean(message)))


def run(interval_s: float) -> None:
    """Show the screen until it is left."""
    screen = Top(connect_async(retry_s=0), interval_s)

    async def show() -> None:
        running = asyncio.get_running_loop()
        # Told to end, it gives the terminal back as it was.
        for number in (signal.SIGTERM, signal.SIGHUP):
            running.add_signal_handler(number, screen.exit)
        await screen.run_async()

    asyncio.run(show())
