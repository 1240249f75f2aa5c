"""Durable topics: topics, peek, tail, dead, send, replay, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zenos.cli.commands import Commands
from zenos.cli.common import Json, client, complete

if TYPE_CHECKING:
    from zenos.client import Client, MessageInfo

Count = Annotated[
    int, typer.Option("--limit", "-n", min=1, max=1000, help="How many messages at most.")
]


def _topics(made: Client) -> list[str]:
    return [topic.name for topic in made.bus.topics()]


TopicName = Annotated[
    str,
    typer.Argument(metavar="TOPIC", help="The topic's name.", autocompletion=complete(_topics)),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Durable topics: messages that are kept until somebody has processed them.",
    )
    for command in (topics, send, peek, tail, dead, replay, purge):
        group.command(command.__name__)(command)
    app.add_typer(group, name="bus", rich_help_panel="Messages")


def topics(json: Json = False) -> None:
    """List durable topics: what waits, what is being worked on, what is dead.

    Example: zenos bus topics
    """
    from zenos.cli.output import put_json, table
    from zenos.cli.rows import TOPICS, topic_row

    with client() as made:
        found = made.bus.topics()
    if json:
        put_json(found)
    else:
        table(TOPICS, map(topic_row, found), "no messages are kept: 'zenos bus send' sends one")


def send(
    topic: TopicName,
    body: Annotated[str, typer.Argument(metavar="BODY", help="Its text; - reads it from stdin.")],
    id_: Annotated[
        str | None,
        typer.Option("--id", help="Of several with one id on a topic the first counts."),
    ] = None,
    priority: Annotated[
        str,
        typer.Option(help="low, normal, high or 0 to 100; higher goes first.", metavar="PRIORITY"),
    ] = "normal",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option(help="Deliver it no sooner than after: 90s, 10m.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="Deliver it no later than in: 90s, 10m.")
    ] = None,
    json: Json = False,
) -> None:
    """Send a message to a durable topic; returns once it is kept.

    Example: zenos bus send jobs/resize photo-17.jpg
    """
    import sys

    from zenos.cli.output import put, put_json, say
    from zenos.client.build import parse_duration, parse_priority

    content = sys.stdin.buffer.read() if body == "-" else body
    with client() as made:
        sent = made.bus.send(
            topic,
            content,
            id=id_,
            headers=_headers(header),
            priority=parse_priority(priority),
            delay_s=parse_duration(delay, "delay") or 0.0,
            deadline_s=parse_duration(deadline, "deadline") or 0.0,
        )
    if json:
        put_json(sent)
        return
    put(sent.id)
    if sent.duplicate:
        say(f"{topic} had a message of this id already; this one was dropped")


def peek(
    topic: TopicName,
    leased: Annotated[
        bool, typer.Option("--leased", help="Those that a receiver is working on.")
    ] = False,
    limit: Count = 20,
    json: Json = False,
) -> None:
    """Show messages that wait on a topic, in the order of arrival; takes none away.

    Example: zenos bus peek jobs/resize
    """
    from zenos.cli.output import put_json, table
    from zenos.cli.rows import MESSAGES, message_row

    with client() as made:
        found = made.bus.messages(topic, "leased" if leased else "waiting", limit=limit)
    if json:
        put_json(found)
    else:
        empty = "nobody is working on one" if leased else "none waits"
        table(MESSAGES, map(message_row, found), empty)


def tail(topic: TopicName, json: Json = False) -> None:
    """Show what happens on a topic from now on, until Ctrl-C; with --json a line for each.

    Example: zenos bus tail jobs/resize
    """
    from zenos.cli.output import clean, put, put_json_line, say

    with client() as made, made.bus.tail(topic) as happening:
        say(f"what happens on {topic} from now on; Ctrl-C ends this")
        for message in happening:
            put_json_line(message) if json else put(clean(_line(message)))


def dead(topic: TopicName, limit: Count = 20, json: Json = False) -> None:
    """Show messages that were given up, and why.

    Example: zenos bus dead jobs/resize
    """
    from zenos.cli.output import put_json, table
    from zenos.cli.rows import DEAD, dead_row

    with client() as made:
        found = made.bus.messages(topic, "dead", limit=limit)
    if json:
        put_json(found)
    else:
        table(DEAD, map(dead_row, found), "none is dead")


def replay(
    topic: TopicName,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Which; by default all.")
    ] = None,
    json: Json = False,
) -> None:
    """Deliver dead messages again.

    Example: zenos bus replay jobs/resize
    """
    from zenos.cli.output import put_json, say
    from zenos.core.wording import counted

    with client() as made:
        count = made.bus.replay(topic, ids or None)
    put_json({"count": count}) if json else say(
        f"{counted(count, 'message')} will be delivered again"
    )


def purge(
    topic: TopicName,
    dead: Annotated[bool, typer.Option("--dead", help="The dead ones, not those that wait.")] = (
        False
    ),
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Don't ask; needed where this is no terminal.")
    ] = False,
    json: Json = False,
) -> None:
    """Drop a topic's waiting messages, or its dead ones; they are lost.

    Example: zenos bus purge jobs/resize --dead
    """
    import sys

    from zenos.cli.errors import FAILED, INTERRUPTED
    from zenos.cli.output import put_json, say
    from zenos.core.errors import InvalidError
    from zenos.core.wording import counted

    which: Any = "dead" if dead else "waiting"
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidError("cannot ask whether to drop them: this is no terminal; give --yes")
        try:
            if not typer.confirm(f"Drop all {which} messages of {topic}?", err=True):
                raise typer.Exit(FAILED)
        except typer.Abort:
            raise typer.Exit(INTERRUPTED) from None
    with client() as made:
        count = made.bus.purge(topic, which)
    put_json({"count": count}) if json else say(f"{counted(count, 'message')} dropped")


def _headers(items: list[str] | None) -> dict[str, str]:
    from zenos.core.contents import CONTENT_TYPE
    from zenos.core.errors import InvalidError

    found: dict[str, str] = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidError(f"cannot read the header {item[:60]!r}: write NAME=VALUE")
        if name == CONTENT_TYPE:
            raise InvalidError(f"cannot set the header {name!r}: it tells what the body is")
        found[name] = value
    return found


def _line(message: MessageInfo) -> str:
    """What has become of a message, in a line."""
    from zenos.core.wording import counted

    said = f"{message.event:<12} {message.id}"
    if message.event == "waiting":
        from zenos.cli.rows import body_text

        return f"{said}  {body_text(message)}"
    if message.event == "delivered":
        return f"{said}  to {message.receiver}"
    if message.event == "failed":
        return f"{said}  {counted(message.failures, 'time')}"
    return f"{said}  {message.reason}" if message.reason else said
