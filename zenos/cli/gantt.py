"""The schedule ahead as a Gantt chart: in the terminal, and into a file by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from zenos.cli.output import clean
from zenos.client.display import show_seconds
from zenos.core import pictures

if TYPE_CHECKING:
    from zenos.core.outlook import Plan, Segment

NAME_COLUMNS: Final = 22
TIMES_COLUMNS: Final = 28
BAR_COLUMNS_MIN: Final = 20
ROWS_DRAWN_MAX: Final = 200  # in a picture
RUNS, WAITS, GOES_ON = "█", "·", "▶"
COLOURS: Final = {
    "train": "tab:blue",
    "serve": "tab:green",
    "run": "tab:orange",
    "preprocess": "tab:purple",
}


def rows(plan: Plan) -> dict[str, dict[str, list[Segment]]]:
    """Segments by node and task, the tasks that start first at the head."""
    found: dict[str, dict[str, list[Segment]]] = {}
    for segment in sorted(plan.segments, key=lambda s: (s.node, s.start)):
        found.setdefault(segment.node, {}).setdefault(segment.task, []).append(segment)
    return found


def span_s(plan: Plan) -> float:
    """From now to the end of the chart: at least a second."""
    return max(plan.until - plan.at, 1.0)


def chart(plan: Plan, columns: int, limit: int) -> list[str]:
    """Lines of at most so many columns; of at most so many tasks."""
    width = max(columns - NAME_COLUMNS - TIMES_COLUMNS - 4, BAR_COLUMNS_MIN)
    lines = [f"{'':{NAME_COLUMNS}}  {_axis(span_s(plan), width)}"]
    left = limit
    for node, tasks in rows(plan).items():
        lines.append(clean(node))
        for segments in tasks.values():
            if not left:
                return lines
            left -= 1
            name = _fitted(clean(_name(segments[0])))
            bar = _bar(plan, segments, width)
            lines.append(f"{name}  {bar}  {_times(plan, segments)}".rstrip())
    return lines


def _fitted(name: str) -> str:
    """As wide as its column: a Chinese character takes two."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(name) > NAME_COLUMNS:
        name = set_cell_size(name, NAME_COLUMNS - 1).rstrip() + "…"
    return set_cell_size(name, NAME_COLUMNS)


def _name(segment: Segment) -> str:
    return f"  {segment.task} {segment.label}".rstrip()


def _axis(seconds: float, width: int) -> str:
    """`now` at the left, the end at the right, and the middle where there is room."""
    last, middle = f"+{show_seconds(seconds)}", f"+{show_seconds(seconds / 2)}"
    line = f"{'now':{width}}"
    at = width // 2
    if at + len(middle) < width - len(last) - 1:
        line = line[:at] + middle + line[at + len(middle) :]
    return line[: width - len(last)] + last


def _bar(plan: Plan, segments: list[Segment], width: int) -> str:
    scale = width / span_s(plan)
    cells = [" "] * width
    last = 0
    for segment in segments:
        start = min(int(max(segment.start - plan.at, 0.0) * scale), width - 1)
        end = min(max(int((segment.end - plan.at) * scale), start + 1), width)
        for place in range(last, start):
            cells[place] = WAITS
        cells[start:end] = RUNS * (end - start)
        last = end
    if segments[-1].ends == "open":
        cells[min(last, width) - 1] = GOES_ON
    return "".join(cells)


def _times(plan: Plan, segments: list[Segment]) -> str:
    """When it starts, and when it ends."""
    first, last = segments[0], segments[-1]
    starts = "runs" if first.begun else f"in {_from_now(first.start - plan.at)}"
    if last.ends == "open":
        return starts
    words = "ends" if last.ends == "finished" else last.ends
    return f"{starts}, {words} +{_from_now(last.end - plan.at)}"


def _from_now(seconds: float) -> str:
    return show_seconds(seconds) if seconds >= 1 else "a moment"


def write_picture(plan: Plan, path: Path) -> None:
    """As a picture; the ending says of which kind. Raises StorageError."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    unit_s, unit = _unit(span_s(plan))
    drawn = [(node, segments) for node, tasks in rows(plan).items() for segments in tasks.values()][
        :ROWS_DRAWN_MAX
    ]
    figure = Figure(figsize=(10, max(2.0, 1.2 + 0.3 * len(drawn))), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, segments) in enumerate(drawn):
        spans = [
            ((max(s.start, plan.at) - plan.at) / unit_s, (s.end - max(s.start, plan.at)) / unit_s)
            for s in segments
        ]
        colour = COLOURS.get(segments[0].kind, "tab:gray")
        axes.broken_barh(spans, (place - 0.4, 0.8), facecolors=colour)
    names = [f"{_plain(_name(segments[0]))} @ {_plain(node)}" for node, segments in drawn]
    axes.set_yticks(range(len(drawn)), names)
    axes.invert_yaxis()
    axes.set_xlim(0.0, span_s(plan) / unit_s)
    axes.set_xlabel(f"{unit} from now (a forecast with expected run times)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    pictures.save(figure, path)


def _plain(text: str) -> str:
    """Names as they are: `$` begins no formula."""
    return clean(text).strip().replace("$", r"\$")


def _unit(seconds: float) -> tuple[float, str]:
    for unit_s, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit_s:
            return unit_s, unit
    return 1.0, "seconds"
