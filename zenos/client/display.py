"""How tasks look while they run: in a terminal by rich, in a notebook as HTML that is updated."""

from __future__ import annotations

import asyncio
import html
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zenos.client.types import TaskView
from zenos.core import limits
from zenos.core.resources import show_size
from zenos.core.task import State, Task

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from zenos.client.types import ModelVersion
    from zenos.core.wire import Progress

Show = Callable[[TaskView], None]
COLOURS = {
    State.QUEUED: "yellow",
    State.STARTING: "cyan",
    State.RUNNING: "green",
    State.PAUSING: "magenta",
    State.PAUSED: "magenta",
    State.SUSPENDING: "magenta",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "bright_black",
    State.LOST: "red",
}
REDRAWS_PER_S = 8
LEFT = "not followed any more; watch() follows it again"


def show_seconds(seconds: float | None) -> str:
    """A duration for people: `0.8 s`, `42 s`, `3:05`, `2:03:05`, `4 d 02 h`."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    seconds = max(seconds, 0.0)
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_count(number: float | None) -> str:
    """A number for people: `512`, `1,249`, `5.3 M`, `7.1 B`."""
    if number is None or not math.isfinite(number):
        return ""
    for size, unit in ((1e9, " B"), (1e6, " M")):
        if abs(number) >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:,.0f}"


def fraction(progress: Progress | None) -> float | None:
    """How much of the stage is done, 0 to 1; None when nobody knows."""
    if progress is None or not progress.total:
        return None
    return min(max(progress.done / progress.total, 0.0), 1.0)


def facts(progress: Progress | None) -> list[tuple[str, str]]:
    """What a task says of itself, as name and value, beside its bar."""
    if progress is None:
        return []
    given = [
        ("loss", _figure(progress.loss)),
        ("held out", _figure(progress.eval_loss)),
        ("lr", "" if progress.learning_rate is None else f"{progress.learning_rate:.2e}"),
        ("tok/s", show_count(progress.tokens_per_s)),
        ("left", show_seconds(progress.left_s)),
        ("", progress.note),
    ]
    return [(name, value) for name, value in given if value]


def show_progress(progress: Progress | None) -> str:
    """One line for a table or a log: `training 120/400, loss 3.21, 1,249 tok/s, 2:10 left`."""
    if progress is None:
        return ""
    share = fraction(progress)
    parts = [progress.stage]
    if share is not None and progress.total is not None:
        parts = [f"{progress.stage} {show_count(progress.done)}/{show_count(progress.total)}"]
    for name, value in facts(progress):
        after = name in ("tok/s", "left")
        parts.append(f"{value} {name}" if after else f"{name} {value}".strip())
    return ", ".join(parts)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def summary(task: Task) -> str:
    """How an ended task ended, in one line; otherwise its state."""
    if task.outcome is not None and task.state is State.LOST:
        return (
            f"{task.outcome.describe()}; 'zenos logs {task.id}' shows how far it came: submit it "
            "again if that does no harm"
        )
    if task.outcome is not None and task.state is State.FAILED:
        return task.outcome.describe()
    if task.stopping not in (None, "cancel") and task.state is State.CANCELLED:
        return f"cancelled: {task.stopping}"
    return str(task.state)


def again(task: Task) -> str:
    """Why a task that waits is to be started again; nothing for one that has not failed."""
    failed = task.state is State.QUEUED and task.outcome is not None and task.outcome.error
    return task.outcome.describe() if failed and task.outcome is not None else ""


def disk_low(free: int | None) -> str:
    """That the disk of the home is nearly full, with what is free, in bytes; else nothing."""
    low = free is not None and free < limits.DISK_LOW_BYTES
    return f"nearly full: {show_size(free or 0)} free" if low else ""


def took_s(task: Task, now: float | None = None) -> float | None:
    """Seconds that the task has run, all generations together; None before the first."""
    if task.is_ended or task.running is None or now is None:
        return task.ran_s or None
    return task.ran_s + max(now - task.running, 0.0)


# -- terminal


def render(view: TaskView) -> RenderableType:
    """The live display of one task: its bar, and below it what else is known."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    task, progress = view.task, view.progress
    table = Table.grid(padding=(0, 1))
    share = fraction(progress)
    running = not task.is_ended
    stage = progress.stage if progress is not None and running else str(task.state)
    cells: list[RenderableType] = [
        Text(task.name, style="bold"),
        Text(stage, style=COLOURS[task.state]),
    ]
    if running:
        cells.append(
            ProgressBar(
                total=1.0,
                completed=share or 0.0,
                width=30,
                pulse=share is None and task.state is not State.QUEUED,
            )
        )
    if share is not None and progress is not None and progress.total is not None:
        cells.append(Text(f"{show_count(progress.done)}/{show_count(progress.total)}"))
    if view.waits and task.state is State.QUEUED:
        cells.append(Text(", ".join(filter(None, (view.waits, again(task))))))
    table.add_row(*cells)
    known = [
        Text(f"{name} " if name else "", style="bright_black").append(value, style="default")
        for name, value in facts(progress)
        if name != "left" or running
    ]
    # In a row of their own, which is broken between words, as wide as the screen is.
    return Group(table, Text("  ").join([Text(" "), *known])) if known else table


@contextmanager
def watching(first: TaskView, console: Console | None = None) -> Iterator[Show]:
    """Gives a function that shows a view: live in a terminal or notebook, in lines elsewhere."""
    shell = _ipython()
    if shell is not None:
        # Where watch() is the last thing typed, its value is shown: a record of a thousand letters.
        shell.display_formatter.formatters["text/plain"].for_type(Task, _in_short)
    if console is None and hasattr(shell, "kernel"):
        notebook = _Notebook(first)
        try:
            yield notebook
        finally:
            notebook.leave()
        return
    from rich.console import Console as RichConsole

    console = console or RichConsole(stderr=True)  # nowhere, if that is closed
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
        return
    from rich.live import Live

    with Live(
        render(first), console=console, refresh_per_second=REDRAWS_PER_S, redirect_stdout=False
    ) as live:
        yield lambda view: live.update(render(view))


class _Lines:
    """A line for each new stage and for about every tenth of one: readable in a log file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: tuple[object, ...] = ()

    def __call__(self, view: TaskView) -> None:
        share = fraction(view.progress)
        stage = view.progress.stage if view.progress else None
        waits = view.waits if view.task.state is State.QUEUED else None
        mark = (view.task.state, view.task.generation, stage, share and int(share * 10), waits)
        if mark == self._said:
            return
        self._said = mark
        told = ", ".join(filter(None, (waits, again(view.task))))
        tail = "" if view.task.is_ended else told or show_progress(view.progress)
        line = f"{view.task.name}: {view.task.state}{', ' if tail else ''}{tail}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


# -- notebook


def _ipython() -> Any:
    """The IPython that this runs in, which has a kernel in a notebook; it is not imported."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _in_short(task: Task, printer: Any, cycle: bool) -> None:
    """How IPython writes a task that is the value of what was typed."""
    printer.text(f"<task {task.id} ({task.name}): {task.state}>")


class _Notebook:
    """One output area that is drawn again; needs no widgets."""

    def __init__(self, first: TaskView) -> None:
        shown = sys.modules["IPython.display"]
        self._view = first
        self._handle: Any = shown.display(_bundle(first), raw=True, display_id=True)
        self._drawn = -math.inf  # the first that comes is news
        self._mark = _mark(first)
        self._due = False
        self._tick: asyncio.TimerHandle | None = None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._again()

    def __call__(self, view: TaskView) -> None:
        now, mark = time.monotonic(), _mark(view)
        # No later view may come for long after one of these.
        new = mark != self._mark or view.task.is_ended
        self._view, self._mark, self._due = view, mark, True
        if new or now - self._drawn >= 1 / REDRAWS_PER_S:
            self._draw(now)

    def leave(self) -> None:
        """Nothing is drawn any more; a task that goes on without that is said to."""
        if self._tick is not None:
            self._tick.cancel()
        if not self._view.task.is_ended:
            self._handle.update(_bundle(self._view, left=True), raw=True)

    def _draw(self, now: float) -> None:
        self._handle.update(_bundle(self._view), raw=True)
        self._drawn, self._due = now, False

    def _again(self) -> None:
        """Draw what came too soon after another. Only in async cells: else the loop stands still.

        It also wakes the loop, without which the kernel sees no interrupt of an async cell before
        the next event.
        """
        if self._due:
            self._draw(time.monotonic())
        self._tick = self._loop.call_later(1 / REDRAWS_PER_S, self._again)


def _mark(view: TaskView) -> tuple[object, ...]:
    """What is drawn at once when it changes."""
    stage = view.progress.stage if view.progress else None
    return (view.task.state, view.task.generation, stage)


def _bundle(view: TaskView, *, left: bool = False) -> dict[str, str]:
    """For notebooks that show HTML, and for those that cannot."""
    text = f"{view.task.name}: {summary(view.task)}"
    if not view.task.is_ended and (more := show_progress(view.progress)):
        text += f", {more}"
    return {
        "text/html": task_html(view, left=left),
        "text/plain": f"{text}; {LEFT}" if left else text,
    }


def task_html(view: TaskView, *, left: bool = False) -> str:
    """One task as HTML; everything in it is escaped. left: say that it is no longer followed."""
    task, progress = view.task, view.progress
    rows = [
        ("task", f"{task.name} ({task.id})"),
        ("kind", str(task.kind)),
        ("state", summary(task)),
    ]
    if task.state is State.QUEUED and (waits := "; ".join(filter(None, (view.waits, again(task))))):
        rows.append(("waits", waits))
    if progress is not None and not task.is_ended:
        rows.append(("stage", progress.stage))
    rows.extend((name or "note", value) for name, value in facts(progress))
    if task.is_ended:
        named = {name for name, _ in rows}
        rows.extend(row for row in _results(task) if row[0] not in named)
    if left:
        rows.append(("", LEFT))
    share = fraction(progress)
    bar = ""
    if share is not None and not task.is_ended:
        bar = f'<progress max="1" value="{share:.4f}" style="width:20em"></progress>'
    return f"<div>{bar}{_table_html(rows)}</div>"


def _results(task: Task) -> list[tuple[str, str]]:
    """What an ended task has made, and how long it took."""
    result = (task.outcome and task.outcome.result) or {}
    loss = result.get("eval_loss")
    rows = [
        ("model", str(result.get("model") or "")),
        ("held out", _figure(loss) if isinstance(loss, float) else ""),
        ("took", show_seconds(took_s(task))),
    ]
    return [(name, value) for name, value in rows if value]


def model_html(model: ModelVersion) -> str:
    """One model version as HTML."""
    rows = [
        ("model", model.ref),
        ("architecture", model.arch or model.family),
        ("parameters", show_count(model.parameters)),
        *(
            (name, f"{value:.4g}" if isinstance(value, float) else str(value))
            for name, value in model.metrics.items()
        ),
    ]
    return _table_html(rows)


def _table_html(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"
