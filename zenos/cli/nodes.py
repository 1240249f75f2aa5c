"""Nodes: list, cordon, drain, uncordon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zenos.cli.commands import Commands
from zenos.cli.common import Json, client, complete, end_with, for_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from zenos.client import Client, NodeView


def _names(made: Client) -> list[str]:
    return [view.node.name for view in made.nodes()]


Names = Annotated[
    list[str],
    typer.Argument(metavar="NODE...", help="Their names.", autocompletion=complete(_names)),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Nodes: what they have, and whether anything new starts on them.",
    )
    group.command("list")(list_nodes)
    for command in (cordon, drain, uncordon):
        group.command(command.__name__)(command)
    app.add_typer(group, name="node", rich_help_panel="The daemon")


def list_nodes(json: Json = False) -> None:
    """List nodes: what is in use of each, and whether it takes work.

    Example: zenos node list
    """
    from zenos.cli.output import put_json, table
    from zenos.cli.rows import NODES, node_row

    with client() as made:
        found = made.nodes()
    if json:
        put_json(found)
    else:
        table(NODES, map(node_row, found), "no node is known yet")


def cordon(nodes: Names, json: Json = False) -> None:
    """Cordon nodes: nothing new starts there, and what runs goes on.

    It holds over restarts of the daemon, until 'zenos node uncordon'.

    Example: zenos node cordon local
    """
    _each(nodes, lambda made, name: made.cordon(name), "is cordoned: nothing new starts", json=json)


def drain(nodes: Names, json: Json = False) -> None:
    """Drain nodes: what can save its state is suspended, the rest runs to its end, and nothing new
    starts.

    What was suspended goes on elsewhere, or here after 'zenos node uncordon'.

    Example: zenos node drain local
    """
    words = "is being drained: trainings save, the rest runs to its end, and nothing new starts"
    _each(nodes, lambda made, name: made.drain(name), words, json=json)


def uncordon(nodes: Names, json: Json = False) -> None:
    """Let things start on nodes again.

    Example: zenos node uncordon local
    """
    _each(nodes, lambda made, name: made.uncordon(name), "takes work", json=json)


def _each(
    names: list[str], verb: Callable[[Client, str], NodeView], words: str, *, json: bool
) -> None:
    """Do it to each; what is wrong with one doesn't keep the others from it."""
    from zenos.cli.output import put_json, say

    with client() as made:
        done, failed = for_each(names, lambda name: verb(made, name))
    if json:
        put_json(done)
    for view in [] if json else done:
        say(f"{view.node.name} {words}")
    end_with(failed)
