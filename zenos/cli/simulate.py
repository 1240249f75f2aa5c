"""The simulator: simulate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from zenos.cli.common import Json, parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_S: Final = 86400.0
HOUR_S: Final = 3600.0
LOAD_MAX: Final = 100.0

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the daemon; repeatable."),
]
Filled = Annotated[
    float | None,
    typer.Option(help="Instead: one pool of GPUs that the jobs fill so far; 0.9 is 90 %."),
]
# Which jobs, and what a suspension costs them.
Days = Annotated[str | None, typer.Option(help="Only jobs submitted on these days, e.g. 27-48.")]
ShorterThan = Annotated[
    str | None, typer.Option(help="Only jobs that run shorter than this, e.g. 7d.")
]
Restart = Annotated[str, typer.Option(help="What a job loses by each suspension, with zenos.")]
# Which nodes fail, and what is lost by it.
Fail = Annotated[
    list[str] | None,
    typer.Option(
        "--fail",
        metavar="NODE:AT:FOR",
        help="A node that fails, e.g. n3:2d:4h; repeatable. Nodes are n1, n2, …",
    ),
]
Mtbf = Annotated[
    str | None, typer.Option(help="Instead: how long a node lasts on average, e.g. 30d.")
]
Mttr = Annotated[str, typer.Option(help="How long it is away then, on average.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn for --mtbf.")]
Checkpoint = Annotated[
    str, typer.Option(help="How often trainings save: what was done since is done again.")
]
# Requests for a model, beside the jobs.
Requests = Annotated[
    Path | None,
    typer.Option(
        help="CSV of requests for a model, with the columns arrival (or TIMESTAMP), prompt and "
        "output (tokens): they come beside the jobs, which also run without them."
    ),
]
RequestsEvery = Annotated[
    str | None,
    typer.Option(
        help="How often the requests begin anew, until the last job has been submitted, e.g. 6h; "
        "by default one round comes right after the other."
    ),
]
Replica = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Of what answers: gpus, slots, load_s, prompt_rate and output_rate (tokens a second, "
        "of a request), min_replicas, max_replicas, keep_alive_s, priority, timeout_s; repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate", rich_help_panel="Planning")(simulate)


def simulate(
    trace: Annotated[
        Path, typer.Argument(help="CSV with the columns submit, duration and gpus, at least.")
    ],
    nodes: Annotated[
        str | None, typer.Option(help="The cluster: 100x8gpu, or 10x8gpu,4x2gpu.")
    ] = None,
    load: Filled = None,
    policy: Annotated[
        str, typer.Option(help="One or more of zenos, fifo, easy, srtf, las, with commas between.")
    ] = "zenos,fifo",
    days: Days = None,
    shorter_than: ShorterThan = None,
    restart: Restart = "60s",
    fail: Fail = None,
    mtbf: Mtbf = None,
    mttr: Mttr = "1h",
    seed: Seed = 0,
    checkpoint: Checkpoint = "30m",
    requests: Requests = None,
    requests_every: RequestsEvery = None,
    replica: Replica = None,
    set_: Settings = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave malformed rows out.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw how long jobs took, as .png, .svg or .pdf.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a trace of jobs through the scheduler in no time, and compare policies.

    Needs no daemon: the kernel itself runs here, under a virtual clock. With nodes that fail it
    also says what was lost by that; only zenos knows nodes. With requests for a model it also says
    how long they waited, and runs the jobs both with and without them; only zenos knows models.

    Example: zenos simulate jobs.csv --nodes 4x8gpu --policy zenos,fifo,easy
    """
    from zenos.cli.output import say
    from zenos.client.build import parse_duration
    from zenos.core.errors import InvalidError

    if load is not None and not 0 < load <= LOAD_MAX:
        raise InvalidError(f"cannot fill a pool to a load of {load:g}: above 0, for example 0.9")
    from_s, to_s = _days(days)
    request = {
        "trace": str(trace),
        "skip_bad": skip_bad,
        "nodes": nodes,
        "load": load,
        "policies": [name.strip() for name in policy.split(",")],
        "from_s": from_s,
        "to_s": to_s,
        "duration_s_max": parse_duration(shorter_than, "shorter than"),
        "restart_s": 0.0 if restart.strip() in ("0", "0s") else parse_duration(restart, "restart"),
        "settings": parse_settings(set_),
        "fail": fail or [],
        "mtbf_s": parse_duration(mtbf, "mtbf"),
        "mttr_s": parse_duration(mttr, "mttr"),
        "seed": seed,
        "checkpoint_s": parse_duration(checkpoint, "checkpoint"),
        "requests": None if requests is None else str(requests),
        "requests_every_s": parse_duration(requests_every, "requests every"),
        "replica": parse_settings(replica),
        "plot": None if plot is None else str(plot.absolute()),
    }
    _show(_lines(request), json=json)
    if plot is not None:
        say(f"wrote {plot}")


def _days(text: str | None) -> tuple[float, float | None]:
    """Seconds from and to; the last day is taken up to where it begins."""
    from zenos.core.errors import InvalidError

    if text is None:
        return 0.0, None
    first, dash, last = text.partition("-")
    try:
        found = float(first) * DAY_S, float(last) * DAY_S if dash else (float(first) + 1) * DAY_S
    except ValueError:
        raise InvalidError(f"cannot read the days {text[:40]!r}: write 27-48") from None
    if not 0 <= found[0] < found[1] < float("inf"):
        raise InvalidError(f"cannot take the days {text[:40]}: from a day to a later one")
    return found


def _lines(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the simulator says, line by line; it ends with whoever stops listening."""
    import msgspec

    from zenos.client.calls import encoded
    from zenos.core.errors import ZenosError

    asked = encoded(request)
    argv = [sys.executable, "-P", "-m", "zenos.simulate"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None  # noqa: S101 - both were asked for
        assert child.stdout is not None  # noqa: S101
        try:
            child.stdin.write(asked)
            child.stdin.close()
            for line in child.stdout:
                yield msgspec.json.decode(line)
            if code := child.wait():
                raise ZenosError(f"cannot simulate: the simulator ended with exit code {code}")
        finally:
            child.kill()


def _show(lines: Iterator[dict[str, Any]], *, json: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from zenos.cli.output import console, put_json, say
    from zenos.core.wording import counted

    found: list[dict[str, Any]] = []
    trace = next(lines)
    _check(trace)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen, seen = console(stderr=True), sys.stderr.isatty()
    with Progress(*columns, TimeElapsedColumn(), console=screen, disable=not seen) as bars:
        bar: dict[str, Any] = {}
        for line in lines:
            _check(line)
            if line["type"] == "summary":
                found.append(line["summary"])
                continue
            name = line["policy"]
            if name not in bar:
                bar[name] = bars.add_task(name, total=line["of"])
            bars.update(bar[name], completed=line["done"])
    for skipped in (trace["skipped"], trace.get("requests_skipped")):
        if skipped:
            say(f"left out {counted(len(skipped), 'row')}; the first: {skipped[0]}")
    if json:
        put_json({**{k: v for k, v in trace.items() if k != "type"}, "runs": found})
        return
    say(f"{counted(trace['jobs'], 'job')} on {counted(trace['gpus'], 'GPU')}")
    _tables(found)


def _check(line: dict[str, Any]) -> None:
    from zenos.core.errors import from_code

    if line["type"] == "error":
        raise from_code(line["code"], line["message"])


def _tables(found: list[dict[str, Any]]) -> None:
    from zenos.cli.output import put, table

    def hours(seconds: float) -> str:
        return f"{seconds / HOUR_S:,.2f}"

    table(
        (
            "policy",
            ">completion mean",
            ">median",
            ">p99 h",
            ">wait mean",
            ">median",
            ">p99",
            ">longest h",
        ),
        (
            (
                run["policy"],
                hours(run["completion_mean_s"]),
                hours(run["completion_median_s"]),
                hours(run["completion_p99_s"]),
                hours(run["wait_mean_s"]),
                hours(run["wait_median_s"]),
                hours(run["wait_p99_s"]),
                hours(run["wait_longest_s"]),
            )
            for run in found
        ),
    )
    put("")
    table(
        (
            "policy",
            ">slowdown",
            ">makespan d",
            ">utilisation",
            ">of arrivals",
            ">fairness",
            ">suspensions",
            ">per job",
            ">most",
        ),
        (
            (
                run["policy"],
                f"{run['slowdown_mean']:,.2f}",
                f"{run['makespan_s'] / DAY_S:,.2f}",
                f"{run['utilisation']:.1%}",
                f"{run['utilisation_arrivals']:.1%}",
                f"{run['fairness']:.3f}",
                f"{run['suspensions']:,}",
                f"{run['suspensions'] / run['jobs']:.2f}",
                run["suspensions_most"],
            )
            for run in found
        ),
    )
    _failures([run for run in found if run["node_failures"]])
    _requests([run["requests"] for run in found if run.get("requests")])


def _requests(found: list[dict[str, Any]]) -> None:
    from zenos.cli.output import put, table

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:,.2f}"

    if not found:
        return
    put("")
    table(
        (
            ">requests",
            ">answered",
            ">late",
            ">refused",
            ">cut",
            ">first token median",
            ">p99",
            ">longest s",
            ">cold starts",
            ">replicas mean",
        ),
        (
            (
                f"{run['arrived']:,}",
                f"{run['answered']:,}",
                f"{run['late']:,}",
                f"{run['refused']:,}",
                f"{run['cut']:,}",
                seconds(run["first_token_median_s"]),
                seconds(run["first_token_p99_s"]),
                seconds(run["first_token_longest_s"]),
                f"{run['cold_starts']:,}",
                seconds(run["replicas_mean"]),
            )
            for run in found
        ),
    )


def _failures(found: list[dict[str, Any]]) -> None:
    from zenos.cli.output import put, table

    if not found:
        return
    put("")
    table(
        ("policy", ">node failures", ">restarts", ">GPU-hours done again"),
        (
            (
                run["policy"],
                f"{run['node_failures']:,}",
                f"{run['restarts']:,}",
                f"{run['work_lost'] / HOUR_S:,.2f}",
            )
            for run in found
        ),
    )
