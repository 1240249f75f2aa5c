"""What lies ahead: why, plan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from zenos.cli.common import Json, client, complete_tasks
from zenos.core.quotas import shown
from zenos.core.resources import Resources, show_some

if TYPE_CHECKING:
    from zenos.core.outlook import HeldBack, Lack, Score, Stay, Why

CHART_COLUMNS: Final = 120  # where the output is no terminal
NEVER_NAMED_MAX: Final = 10
HOLDERS_NAMED_MAX: Final = 4


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("why", rich_help_panel="Planning")(why)
    app.command("plan", rich_help_panel="Planning")(plan)


def why(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its id or name.", autocompletion=complete_tasks)
    ],
    json: Json = False,
) -> None:
    """Say why a task waits, when it is expected to start, and what would let it start now.

    Of a running task, why it is where it is; of an ended one, how it ended. What would help is
    tried on a copy of the scheduler's state; the expected start is a forecast (see zenos plan).

    Example: zenos why t12
    """
    from zenos.cli.output import facts, put_json

    with client() as made:
        found = made.task(task).why()
    if json:
        put_json(found)
        return
    facts(why_facts(found))


def plan(
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw it into FILE.png (.svg, .pdf) instead."),
    ] = None,
    ahead: Annotated[
        str | None, typer.Option(help="How far to look: 10m, 2h, 7d. Default to the end of work.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=9999, help="At most so many tasks.")] = 50,
    json: Json = False,
) -> None:
    """Draw the schedule ahead as a Gantt chart: a forecast with expected run times.

    The scheduler's own code is run on, on a copy of its state. Not in it is what nobody knows yet:
    work still to come, requests to models, failures.

    Example: zenos plan --png plan.png
    """
    from zenos.cli import gantt
    from zenos.cli.output import console, put, put_json, say
    from zenos.core import pictures

    if png is not None:
        pictures.check(png)
    with client() as made:
        found = made.plan(ahead)
    if png is not None:
        gantt.write_picture(found, png)
        say(f"wrote {png}")
    if json:
        put_json(found)
        return
    tasks = {segment.task for segment in found.segments}
    if png is None:
        if not tasks:
            say("nothing runs, and nothing is expected to start")
        else:
            screen = console()
            columns = shutil.get_terminal_size().columns if screen.is_terminal else CHART_COLUMNS
            for line in gantt.chart(found, columns, limit):
                put(line)
        if len(tasks) > limit:
            say(f"the first {limit} of {len(tasks)} tasks; --limit shows more")
    if found.never:
        names = ", ".join(found.never[:NEVER_NAMED_MAX])
        rest = len(found.never) - NEVER_NAMED_MAX
        more = f" and {rest} more" if rest > 0 else ""
        say(f"not expected to start: {names}{more}; 'zenos why TASK' says why")
    if found.left_out:
        say(f"{found.left_out:,} more tasks wait, and were not looked at")
    say("a forecast: " + "; ".join(found.notes))


# -- why, as names and values


def why_facts(found: Why) -> list[tuple[str, object]]:
    """What is told of a task."""
    from zenos.client.display import show_seconds

    name = f"{found.task} ({found.label})" if found.label else found.task
    rows: list[tuple[str, object]] = [("task", name), ("state", found.state), ("why", found.reason)]
    if found.because:
        ago = show_seconds(max(0.0, found.at - (found.because_at or found.at)))
        rows.append(("history", f"{found.because} ({ago} ago)"))
    if found.until is not None and found.until > found.at:
        rows.append(("until", f"in {show_seconds(found.until - found.at)}"))
    rows += _place(found)
    if found.expected_s is not None:
        whose = {"user": "as the user said", "learned": "learned from tasks like it"}
        said = whose.get(found.expected_by or "", "nobody knows: the default")
        rows.append(("expected to run", f"{show_seconds(found.expected_s)}, {said}"))
    if found.starts_at is not None:
        starts = found.starts_at - found.at
        words = "now" if starts < 1 else f"in {show_seconds(starts)}"
        rows.append(("expected start", f"{words} (a forecast)"))
    elif found.starts_note:
        rows.append(("expected start", found.starts_note))
    if found.stay is not None:
        rows += _stay(found.stay, found.at)
    rows.append(("lacks", "\n".join(_lack(lack, found.at) for lack in found.lacks)))
    rows.append(("held back", "\n".join(_held_back(row) for row in found.held_back)))
    helps = "\n".join(f"{remedy.text}" for remedy in found.remedies)
    rows.append(("would start now by", helps))
    return rows


def _place(found: Why) -> list[tuple[str, object]]:
    from zenos.client.display import show_seconds

    rows: list[tuple[str, object]] = []
    if found.ahead is not None:
        least = "" if found.exact else "at least "
        words = f"{least}{found.ahead:,} before it, of {found.waiting:,} waiting"
        rows.append(("place", words))
    if found.score is not None:
        rows.append(("score", _score(found.score)))
    if found.overdue:
        rows.append(("overdue", "it has waited too long, and is served in order, ahead of others"))
    elif found.overdue_at is not None:
        rows.append(("overdue", f"in {show_seconds(found.overdue_at - found.at)}"))
    return rows


def _score(score: Score) -> str:
    from zenos.client.display import show_seconds

    waited, expected = show_seconds(score.waited_s), show_seconds(score.expected_s)
    if score.contention:
        alone = show_seconds(score.expected_s / (1.0 + score.contention))
        expected = f"{alone}, slowed to {expected} by a load of {score.contention:.0%}"
    line = f"{score.total:.2f} = priority {score.priority} + {score.ageing:g} · {score.p:.3f}"
    if score.raised:
        line += f" + {score.raised}, as its deadline is near"
    if score.demoted:
        line += f" - {score.penalty:g}, as it has had its share of service"
    if score.cost:
        who = shown(score.owner)
        line += f" - {score.cost:.2f}, as {who} has had {score.had:.0%} of all, {score.due:.0%} due"
    return f"{line} (waited {waited}, expected {expected})"


def _lack(lack: Lack, now: float) -> str:
    from zenos.client.display import show_seconds

    words = "a GPU with enough free" if lack.in_pieces else show_some(lack.lacks)
    parts = []
    for holder in lack.holders[:HOLDERS_NAMED_MAX]:
        name = f"{holder.task} ({holder.label})" if holder.label else holder.task
        ends = f", ends in {show_seconds(holder.until - now)}" if holder.until is not None else ""
        ends = ", is ending" if holder.stopping else ends
        held = show_some(holder.resources)
        parts.append(f"{name} {held}, priority {holder.priority}{ends}")
    if len(lack.holders) > HOLDERS_NAMED_MAX:
        parts.append(f"{len(lack.holders) - HOLDERS_NAMED_MAX} more")
    if lack.outside != Resources():
        parts.insert(0, f"processes outside zenos {show_some(lack.outside)}")
    return f"{lack.node}: {words}" + (f"; held by {'; '.join(parts)}" if parts else "")


def _held_back(row: HeldBack) -> str:
    what = f"{show_some(row.resources)} on {row.node}"
    if row.kind == "resuming":
        return f"{what}, for paused tasks that are to go on"
    if row.kind == "reservation":
        return f"{what}, for {row.task}, which has waited longest"
    return f"{what}, for {row.task}, to which {', '.join(row.victims)} gave way"


def _stay(stay: Stay, now: float) -> list[tuple[str, object]]:
    from zenos.client.display import show_seconds

    devices = f", GPU {', '.join(map(str, stay.devices))}" if stay.devices else ""
    rows: list[tuple[str, object]] = [
        ("holds", f"{show_some(stay.resources)} on {stay.node}{devices}"),
        ("could also be on", ", ".join(stay.others)),
        ("has run", show_seconds(stay.ran_s)),
    ]
    if stay.ends_at is not None:
        rows.append(("expected end", f"in {show_seconds(stay.ends_at - now)}"))
    if not stay.may_yield:
        words = "it can't save its state, and gives way to nobody"
    elif stay.residence_until is not None:
        words = f"it stays for {show_seconds(stay.residence_until - now)} at least"
    elif stay.guarded:
        words = "it gives way to no equal: it had waited too long, or has given way too often"
    elif stay.demoted:
        words = "to a higher priority, and to equals that have had less service"
    else:
        words = "to a higher priority"
    rows.append(("gives way", words))
    if stay.given_way:
        rows.append(("has given way", f"{stay.given_way} times in the last hour"))
    return rows
