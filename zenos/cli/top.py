"""The live screen: nodes with bars, tasks with state and progress, the queue."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Static

from zenos.cli.arrays import state_of, summary
from zenos.cli.fitting import LEAST_OF_ALL, apart, fit, shortened
from zenos.cli.output import clean
from zenos.cli.rows import owner_name, work_line
from zenos.cli.threads import thread_lines
from zenos.client import AsyncClient, connect_async
from zenos.client.display import COLOURS, disk_low, fraction, show_count, show_seconds, took_s
from zenos.core.errors import NotFoundError, ZenosError
from zenos.core.resources import show_share, show_size
from zenos.core.task import Principal, State
from zenos.core.wording import counted

if TYPE_CHECKING:
    from zenos.client import ArrayView, NodeView, Status, TaskThreads, TaskView

TASKS_SHOWN: Final = 200
BAR_CELLS: Final = 20
WORK_CELLS: Final = 60  # of what a task does
COLUMNS: Final = (
    *("TASK", "KIND", "STATE", "PRIO", "TIME"),
    *("THREADS", "PROGRESS", "TOK/S", "LOSS", "DOES"),
)
NUMBERS: Final = frozenset({"PRIO", "TIME", "THREADS", "TOK/S", "LOSS"})
GAP: Final = 2  # cells between two columns
MARGIN: Final = 4  # cells beside the table: before, behind, and where it scrolls
THREADS_SHOWN: Final = 8  # of the selected task
# A screen with fewer lines or columns has a head of one line, and no bars in the table.
LOW, NARROW = 20, 100
TABLE_LINES_MIN: Final = 6  # of which one is its head: nodes and threads have only what is left
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def bar(share: float, cells: int = BAR_CELLS) -> Text:
    """A bar of character cells, to an eighth of one; red from 90 % on."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    drawn = _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")
    colour = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    return Text(drawn.ljust(cells, "·"), style=colour)


def nodes_table(views: Sequence[NodeView], room: int | None = None) -> Table:
    """A line for each node: what tasks hold of CPU, GPU and memory. room: cells of a line.

    Where there are too few, the bars become shorter; then they go, then the amounts become shares,
    then names are shortened, and at last what is held of memory and GPUs is left out.
    """
    for bars, exact in ((BAR_CELLS, True), (10, True), (5, True), (0, True), (0, False)):
        rows = [_node_cells(view, bars, exact=exact) for view in views]
        columns = list(zip_longest(*rows, fillvalue=Text()))
        wide = [max(cell.cell_len for cell in column) for column in columns]
        if room is None or sum(wide) + GAP * len(wide) <= room + GAP:
            break
    table = Table.grid(padding=(0, GAP))
    if not views:
        return table
    while room is not None and len(wide) > 1:
        rest = room - sum(wide[1:]) - GAP * len(wide[1:])
        if rest >= min(wide[0], LEAST_OF_ALL):
            wide[0] = min(wide[0], rest)
            break
        del wide[-2:]
    for name, row in zip(apart([row[0].plain for row in rows], wide[0]), rows, strict=True):
        table.add_row(Text(name, style="bold"), *row[1 : len(wide)])
    return table


def _node_cells(view: NodeView, bars: int, *, exact: bool) -> list[Text]:
    """A node's name, and for each thing that is held of it its word, a bar, how much of what."""
    node, used, capacity = view.node, view.used, view.node.capacity
    name = f"{node.name} ({node.standing})" if node.standing else node.name
    cells = [Text(clean(name))]
    held: list[tuple[str, int, int, Callable[[int], str]]] = [
        ("cpu", used.cpu, capacity.cpu, show_share)
    ]
    if node.gpus:
        held.append(("gpu", used.gpu, capacity.gpu, show_share))
    held.append(("memory", used.memory, capacity.memory, show_size))
    for what, inside, whole, show in held:
        share = inside / whole if whole else 0.0
        amount = f"{show(inside)} / {show(whole)}" if exact else f"{share:.0%}"
        cells += [Text(what), *([bar(share, bars)] if bars else []), Text(amount)]
    return cells


def head(status: Status, url: str) -> Text:
    """The first line: where, since when, how many tasks in each state."""
    line = Text.assemble((f"zenos {status.version}", "bold"), f" {url}" if url else "")
    line.append(f"  up {show_seconds(status.uptime_s)}")
    if status.going_down is not None:
        line.append(f"  going down ({status.going_down})", style="yellow")
    if low := disk_low(status.disk_free):
        line.append(f"  disk {low}", style="yellow")
    for state, count in status.tasks.items():
        line.append(f"  {count} {state}", style=COLOURS[state])
    return line


def task_cells(view: TaskView, bars: int = 12) -> tuple[Text, ...]:
    """A line of the table of tasks. bars: cells of its bar, which may be none."""
    task, progress = view.task, view.progress
    share = fraction(progress)
    doing = Text(progress.stage if progress is not None and not task.is_ended else "")
    if share is not None and not task.is_ended:
        doing = Text.assemble(*_share(share, bars), progress.stage if progress else "")
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
        Text(clean(shortened(work_line(task.spec.work), WORK_CELLS))),
    )


def _share(share: float, bars: int) -> list[Text | str]:
    return [bar(share, bars), f" {share:4.0%} "] if bars else [f"{share:.0%} "]


def threads_table(threads: TaskThreads, most: int = THREADS_SHOWN) -> Table:
    """The first threads of a task, a line for each."""
    table = Table.grid(padding=(0, GAP))
    lines = list(thread_lines(threads))
    for line in lines[:most]:
        table.add_row(*(c if isinstance(c, Text) else Text(clean(str(c))) for c in line))
    if len(lines) > most:
        table.add_row("  …", Text(f"'zenos ps --threads' shows all of {threads.task}"))
    return table


class Line(NamedTuple):
    """A line of the table: a task, or an array as a whole. place: lower stands higher."""

    id: str
    owner: Principal
    cells: tuple[Text, ...]
    place: tuple[int, float, float]
    is_ended: bool
    is_array: bool = False


def task_line(view: TaskView, bars: int = 12) -> Line:
    """The line of a task."""
    task = view.task
    place = (2, -(task.ended or 0.0), 0.0)
    if not task.is_ended:
        place = (int(task.state is State.QUEUED), -task.spec.priority, task.submitted)
    return Line(task.id, task.principal, task_cells(view, bars), place, task.is_ended)


def array_line(view: ArrayView, bars: int = 12) -> Line:
    """The line of an array, with how many of its tasks have ended."""
    array, state = view.array, state_of(view)
    share, over = view.ended / array.indices.count, view.ended == array.indices.count
    doing = Text.assemble(*_share(share, bars), summary(view))
    cells = (
        Text(clean(array.id if not array.spec.name else f"{array.id} {array.spec.name}")),
        Text("array"),
        Text(str(state), style=COLOURS[state]),
        Text(str(array.spec.priority), justify="right"),
        *(Text(""), Text("")),
        Text(summary(view)) if over else doing,
        *(Text(""), Text("")),
        Text(clean(shortened(work_line(array.spec.work), WORK_CELLS))),
    )
    place = (2, -array.submitted, 0.0)
    if not over:
        place = (int(state is State.QUEUED), -array.spec.priority, array.submitted)
    return Line(array.id, array.principal, cells, place, over, is_array=True)


class Seen(NamedTuple):
    """What a look at the daemon has found; threads: of the selected task."""

    status: Status
    tasks: list[TaskView]
    arrays: list[ArrayView]
    threads: TaskThreads | None


def ordered(tasks: Iterable[TaskView], arrays: Iterable[ArrayView], bars: int = 12) -> list[Line]:
    """What runs, then what waits in the queue, then what has ended last."""
    lines = [*(task_line(view, bars) for view in tasks), *(array_line(v, bars) for v in arrays)]
    return sorted(lines, key=lambda line: line.place)


def with_users(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[Text, ...]]]:
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
    #head { text-overflow: ellipsis; }
    #message { max-height: 3; }
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
        self._room: Size | None = None  # where it was told of it
        self._columns: list[tuple[str, str]] = []  # key and what stands there
        self._seen: Seen | None = None  # at the last look

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
        self._seen = Seen(status, views, arrays, threads)
        self._show(self._seen)

    def on_resize(self, event: Resize) -> None:
        """Draw again what is known, in the new room."""
        self._room = event.size  # `size` comes to be the same only later
        if self._seen is not None:
            self._show(self._seen)

    def _show(self, seen: Seen) -> None:
        """Draw it in the room that there is: of a few lines the table of tasks has the most."""
        columns, lines = self._room or self.size
        low = lines < LOW
        line = head(seen.status, "" if columns < NARROW else self._client.address.url)
        place = self.query_one("#head", Static)
        place.styles.text_wrap = "nowrap" if low else "wrap"
        place.update(line)
        above = 1 if low else max(1, len(line.wrap(self.console, max(columns - 2, 1))))
        left = lines - above - 1 - TABLE_LINES_MIN  # the keys have a line, too
        self._show_nodes(seen.status.nodes, left, columns)
        left -= len(seen.status.nodes)
        below = self.query_one("#threads", Static)
        below.display = seen.threads is not None and left > 1
        if seen.threads is not None and below.display:
            below.update(threads_table(seen.threads, min(THREADS_SHOWN, left - 1)))
        bars = 12 if columns >= NARROW else 0
        self._lines = {line.id: line for line in ordered(seen.tasks, seen.arrays, bars)}
        chosen = [o for o in self._lines.values() if self._with_ended or not o.is_ended]
        self._draw(chosen, columns)

    def _show_nodes(self, nodes: Sequence[NodeView], lines: int, columns: int) -> None:
        """As many as there are lines for; of the others how many they are."""
        place = self.query_one("#nodes", Static)
        place.display = lines > 0
        first = nodes if len(nodes) <= lines else nodes[: max(lines - 1, 0)]
        table = nodes_table(first, columns - 2) if first else Table.grid()
        left_out = len(nodes) - len(first)
        more = f"… {counted(left_out, 'more node')}" if left_out else ""
        place.update(Group(table, Text(more)) if more else table)

    async def _threads(self, views: Sequence[TaskView]) -> TaskThreads | None:
        """What the threads of the selected task do, if it has some."""
        selected = self.selected
        if not any(view.threads and view.task.id == selected for view in views):
            return None
        with suppress(NotFoundError):  # ended and forgotten meanwhile
            return await self._client.threads(str(selected))
        return None

    def _draw(self, lines: Sequence[Line], room: int) -> None:
        """The table, keeping the selection on the same line and the place on the screen."""
        table = self.query_one(DataTable)
        selected, scroll = self.selected, table.scroll_y
        ids, (names, cells) = [line.id for line in lines], with_users(lines)
        numbers = [name in NUMBERS for name in names]
        found = fit(names, cells, numbers, max(room - MARGIN, 1), GAP)
        keys = [names[at] for at in found.shown]
        columns = [(key, label.plain) for key, label in zip(keys, found.heads, strict=True)]
        if columns != self._columns:
            self._columns = columns
            table.clear(columns=True)
            for key, label in columns:
                table.add_column(label, key=key)
        elif ids == [str(key.value) for key in table.rows]:
            for id_, row in zip(ids, found.rows, strict=True):
                for key, cell in zip(keys, row, strict=True):
                    if table.get_cell(id_, key) != cell:
                        table.update_cell(id_, key, cell, update_width=True)
            return
        table.clear()
        for id_, row in zip(ids, found.rows, strict=True):
            table.add_row(*row, key=id_)
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
