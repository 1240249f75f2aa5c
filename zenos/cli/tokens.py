"""Tokens of users: create, list, revoke."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from zenos.cli.commands import Commands
from zenos.cli.common import Json, client, complete

if TYPE_CHECKING:
    from zenos.client import Client, TokenView


def _names(made: Client) -> list[str]:
    return [token.name for token in made.tokens.all()]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Tokens of users: who comes with one acts as its user, in its project.",
    )
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token", rich_help_panel="The daemon")


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    user: Annotated[str, typer.Option(help="Whose it is: who has it acts as this user.")],
    project: Annotated[
        str | None,
        typer.Option(
            help="In which project; who is of one may change what is its. Default: one of the "
            "user's own, called as the user."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="After which it is refused: 12h, 30d. Default: never."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a token for a user, and print it: this once, since only a digest of it is kept.

    Whoever has it sets ZENOS_HOST to this daemon's address, and ZENOS_TOKEN to it.

    Example: zenos token create laptop --user ann --project vision --expires 30d
    """
    from zenos.cli.output import put, put_json, say
    from zenos.client.build import parse_duration

    expires_s = parse_duration(expires, "--expires")
    with client() as made:
        token = made.tokens.create(name, user=user, project=project, expires_s=expires_s)
    if json:
        put_json(token)
        return
    say(
        f"{token.name} lets in {token.user}, of the project {token.project}, {_until(token)}; "
        "this is the only time that it is shown"
    )
    put(token.token or "")


def list_tokens(json: Json = False) -> None:
    """List tokens: whose they are, and until when. What they are is not kept.

    Example: zenos token list
    """
    from zenos.cli.output import put_json, table

    with client() as made:
        found = made.tokens.all()
    if json:
        put_json([_without(token) for token in found])
        return
    table(
        ("TOKEN", "USER", "PROJECT", "CREATED", "EXPIRES"),
        (
            (
                token.name,
                token.user,
                token.project,
                _when(token.created),
                "never" if token.expires is None else _when(token.expires) + _over(token),
            )
            for token in found
        ),
        "no user has a token; 'zenos token create' makes one",
    )


def revoke(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete(_names))
    ],
    json: Json = False,
) -> None:
    """Take a token back: the next request with it is refused. What its user has submitted stays.

    Example: zenos token revoke laptop
    """
    from zenos.cli.output import put_json, say

    with client() as made:
        gone = made.tokens.revoke(name)
    if json:
        put_json(_without(gone))
    else:
        whose = f" of {gone.user}" if gone.user else ""
        say(f"{gone.name}{whose} is revoked: it lets nobody in any more")


def _without(token: TokenView) -> dict[str, object]:
    """As the daemon says it: without the field for a token that has just been made."""
    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(token)
    del fields["token"]
    return fields


def _until(token: TokenView) -> str:
    return "until it is revoked" if token.expires is None else f"until {_when(token.expires)}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _over(token: TokenView) -> str:
    return " (expired)" if token.expired else ""
