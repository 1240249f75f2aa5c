"""Who did what: audit."""

from __future__ import annotations

from typing import Annotated

import typer

from zenos.cli.common import Json, client


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit", rich_help_panel="The daemon")(audit)


def audit(
    action: Annotated[
        str | None, typer.Option(help="Only this action, such as cancel or remove.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only what this user did.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only what was done to this task, model or topic.")
    ] = None,
    since: Annotated[
        float | None, typer.Option(min=0, help="Only of the last so many seconds.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many rows.")] = 50,
    json: Json = False,
) -> None:
    """Show who did what, the newest first: submitted, cancelled, deployed, removed, purged, ...

    Example: zenos audit --action cancel
    """
    from zenos.cli.output import put_json, table
    from zenos.core.clock import SystemClock

    after = None if since is None else max(0.0, SystemClock().now() - since)
    with client() as made:
        rows = made.audit.rows(action=action, user=user, subject=subject, since=after, limit=limit)
    if json:
        put_json(rows)
        return
    from datetime import UTC, datetime

    table(
        (">NUMBER", "TIME", "USER", "PROJECT", "TOKEN", "BY", "ACTION", "WHAT", "CAME OF IT"),
        (
            (
                row.number,
                datetime.fromtimestamp(row.at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                row.principal.user,
                row.principal.project,
                row.token,
                row.via,
                row.action,
                row.subject,
                "accepted" if row.accepted else row.reason,
            )
            for row in rows
        ),
        empty="nothing was done yet, or nothing that fits",
    )
