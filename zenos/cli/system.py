"""The daemon: up, down, status, top, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zenos.cli.common import Json, client

if TYPE_CHECKING:
    from zenos.client import Client
    from zenos.core.task import Task

DUMB = ("dumb", "unknown")  # what TERM says of a terminal without a cursor to move
LEFT_MAX = 1000
LEFT_SHOWN = 10
# What a daemon that was told to go down waits for.
GOING_DOWN = {
    "suspend": "until trainings have saved; nothing new is started",
    "drain": "until running tasks have ended; nothing new is started",
    "leave": "at once; running tasks go on",
}
Mode = Literal["suspend", "drain", "leave"]
SCHEMAS = Literal["train", "create", "task", "deployment"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    panel = "The daemon"
    app.command("up", rich_help_panel=panel)(up)
    app.command("down", rich_help_panel=panel)(down)
    app.command("status", rich_help_panel=panel)(status)
    app.command("top", rich_help_panel=panel)(top)
    app.command("schema", rich_help_panel=panel)(schema)


def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and log here: for service managers.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes any free one.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs to give out.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Virtual GPUs to declare where there are no real ones.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory to give out, e.g. 12GiB.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be repeated."),
    ] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--i-know-this-is-public",
            help="Allow an address that others reach, without TLS: they could read the token.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Start the daemon in the background; returns when it answers.

    Example: zenos up --port 0 --memory 12GiB
    """
    from zenos.cli import daemon_process
    from zenos.cli.output import put, put_json, say
    from zenos.core.errors import RefusedError
    from zenos.core.home import Home

    home = Home.default()
    given = {"host": host, "port": port, "cpus": cpus, "gpus": gpus, "memory": memory}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    flags += [f"--set={item}" for item in set_ or []]
    flags += ["--i-know-this-is-public"] if public else []
    daemon_process.wait_found(home)
    found = daemon_process.running(home)
    if foreground:
        if found is not None:
            raise RefusedError(
                f"cannot stay in the foreground: a daemon (process {found.pid}) runs already on "
                f"{home.root}; 'zenos down' ends it"
            )
        daemon_process.replace_by_daemon(home, flags)
    daemon = found or daemon_process.start(home, flags)
    if found is not None and flags:
        say("its settings stay as they are: 'zenos down' first, then 'zenos up' with others")
    if json:
        put_json(
            {
                "pid": daemon.pid,
                "url": daemon.url,
                "version": daemon.version,
                "home": str(home.root),
                "started": found is None,
            }
        )
        return
    verb = "runs already" if found is not None else "is up"
    put(f"zenos {daemon.version} {verb} at {daemon.url} (process {daemon.pid}, home {home.root})")


def down(
    suspend: Annotated[
        bool, typer.Option("--suspend", help="Training saves a checkpoint and goes on later.")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="Wait until running tasks have ended.")
    ] = False,
    leave: Annotated[
        bool, typer.Option("--leave", help="Let workers go on; the next daemon adopts them.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for its end; by default for ever.")
    ] = None,
    json: Json = False,
) -> None:
    """Stop the daemon; says what happens to running work (--suspend by default).

    Example: zenos down --drain
    """
    from contextlib import suppress

    from zenos.cli import daemon_process
    from zenos.core.errors import InvalidError, NoDaemonError, UnavailableError
    from zenos.core.holding import holder
    from zenos.core.home import Home
    from zenos.core.home import given as home_given

    wanted: dict[Mode, bool] = {"suspend": suspend, "drain": drain, "leave": leave}
    chosen = [mode for mode, is_wanted in wanted.items() if is_wanted]
    if len(chosen) > 1:
        raise InvalidError("cannot do all of it: give one of --suspend, --drain and --leave")
    mode: Mode = chosen[0] if chosen else "suspend"
    remote = home_given("ZENOS_HOST") is not None
    home = Home.default(elsewhere=remote)
    if not remote:
        daemon_process.wait_found(home)
    daemon = None if remote else daemon_process.running(home)
    left: list[Task] = []
    try:
        with client() as made:
            daemon = made.address.daemon
            left = _going_on(made, mode)
            # A lost connection: it went faster than it could answer.
            with suppress(UnavailableError):
                made.shut_down(mode)
            daemon_process.wait_down(made, timeout)
    except NoDaemonError as error:
        if daemon is None or not daemon.is_alive:
            if not remote and holder(home) is not None:
                raise
            why = error.message.partition(";")[0]
            _say_down(json, f"zenos is down already: {why}", {}, [], stopped=False)
            return
        # It does not answer any more but is there: on its way down already.
        daemon_process.wait_gone(daemon, timeout)
    unsaved = daemon_process.unsaved(home, daemon) if mode == "suspend" else {}
    _say_down(json, f"zenos is down ({mode})", unsaved, left, stopped=True)


def _going_on(made: Client, mode: Mode) -> list[Task]:
    """What runs without the daemon after this: all that runs with --leave, else programs
    and what executes functions."""
    from zenos.core.task import Kind

    if mode == "drain":
        return []
    kind = f"{Kind.RUN},{Kind.CALL}" if mode == "suspend" else None
    running = "starting,running,pausing,paused"
    return [view.task for view in made.tasks(state=running, kind=kind, limit=LEFT_MAX)]


def _say_down(
    json: bool, message: str, unsaved: dict[str, str], left: list[Task], *, stopped: bool
) -> None:
    from zenos.cli.output import put_json, say

    if json:
        running = [{"id": task.id, "name": task.label, "kind": task.kind} for task in left]
        put_json({"stopped": stopped, "unsaved": list(unsaved), "running": running})
        return
    if left:
        names = [f"{t.id} ({t.label})" if t.label else t.id for t in left[:LEFT_SHOWN]]
        more = f" and {len(left) - LEFT_SHOWN} more" if len(left) > LEFT_SHOWN else ""
        say(
            f"running on without the daemon: {', '.join(names)}{more}; "
            f"'zenos up' finds them again, 'zenos cancel {left[0].id}' then ends one"
        )
    for task, why in unsaved.items():
        say(f"{task} {why}: it goes on from its last checkpoint")
    say(message)


def status(json: Json = False) -> None:
    """Show the daemon, its nodes with what is in use, tasks by state, and deployments.

    Where there are quotas, or several users or projects have tasks, also what each holds.

    Example: zenos status --json
    """
    from zenos.cli.output import facts, put_json, table
    from zenos.cli.rows import ACCOUNTS, DEPLOYMENTS, NODES, account_row, deployment_row, node_row
    from zenos.client.display import show_seconds

    with client() as made:
        found, served = made.status(), made.deployments()
        views = {v.task.id: v for v in made.tasks(kind="serve")} if served and not json else {}
    if json:
        put_json(_status_json(found, served))
        return
    counts = ", ".join(f"{count} {state}" for state, count in found.tasks.items()) or "none"
    facts(
        [
            ("zenos", f"{found.version} at {made.address.url}"),
            ("process", f"{found.pid}, up {show_seconds(found.uptime_s)}"),
            ("home", found.home),
            ("you", "" if found.operator else _you(found)),
            ("going down", _going_down(found.going_down)),
            ("tasks", counts),
            ("store", found.store if found.store not in (None, "ok") else ""),
            ("disk", _disk(found.disk_free)),
        ]
    )
    table(NODES, (node_row(view) for view in found.nodes))
    bounded = any(account.quota is not None for account in found.accounts)
    if bounded or len(found.accounts) > len(("user", "project")):
        table(ACCOUNTS, map(account_row, found.accounts))
    if served:
        table(DEPLOYMENTS, (deployment_row(deployment, views) for deployment in served))


def _you(found: Any) -> str:
    return (
        f"{found.user}, of the project {found.project}; what concerns the machine is for the "
        "operator alone"
    )


def _disk(free: int | None) -> Any:
    """Only what is to be done something about."""
    from zenos.cli.output import coloured
    from zenos.client.display import disk_low

    low = disk_low(free)
    return coloured(f"{low}; free some space there", "yellow") if low else ""


def _going_down(mode: str | None) -> Any:
    if mode is None:
        return ""
    from zenos.cli.output import coloured

    what = GOING_DOWN.get(mode)
    return coloured(f"{mode}: {what}" if what else mode, "yellow")


def _status_json(found: Any, served: Any) -> dict[str, Any]:
    import msgspec

    value: dict[str, Any] = msgspec.to_builtins(found)
    value["deployments"] = msgspec.to_builtins(served)
    return value


def top(
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between looks.")] = 1.0,
    json: Json = False,
) -> None:
    """Watch nodes, tasks and the queue live: q quits, c cancels the selected task or array.

    An array is one line. Where they are of several people, whose each is.

    Example: zenos top
    """
    import os
    import sys

    from zenos.cli.output import put_json
    from zenos.core.errors import InvalidError

    if json:
        with client() as made:
            put_json({"status": made.status(), "tasks": made.tasks(limit=200)})
        return
    # The screen is drawn on stderr, and asks stdin for keys.
    streams = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    wrong = [
        f"{name} is no terminal" for name, one in streams.items() if not (one and one.isatty())
    ]
    if os.environ.get("TERM") in DUMB:
        wrong.append(f"TERM is {os.environ['TERM']}, of a terminal that can only write lines")
    if wrong:
        raise InvalidError(
            f"cannot draw the live screen: {wrong[0]}; 'zenos ps' and 'zenos status' show the same "
            "once"
        )
    with client() as made:
        made.status()  # says now, in a line, if it cannot be reached
    from zenos.cli.top import run

    run(interval)


def schema(
    name: Annotated[SCHEMAS, typer.Argument(help="train, create, task or deployment.")],
    json: Json = False,
) -> None:
    """Print the JSON schema of a specification; needs no daemon.

    `train` is that of a file for 'zenos train'; the others are those of the HTTP API.

    Example: zenos schema train > train.schema.json
    """
    import msgspec

    from zenos.cli.output import put_json
    from zenos.client import build
    from zenos.core.task import SCHEMAS

    made = build.train_schema() if name == "train" else msgspec.json.schema(SCHEMAS[name])
    put_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **made})
