"""Tasks that give way: pause, suspend, resume, nice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from zenos.cli.common import Json, client, complete_tasks, end_with, for_each

if TYPE_CHECKING:
    from zenos.client import TaskHandle
    from zenos.core.task import Task

Names = Annotated[
    list[str],
    typer.Argument(metavar="TASK...", help="Ids or names.", autocompletion=complete_tasks),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until they have done so.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pause, suspend, resume, nice):
        app.command(command.__name__, rich_help_panel="Tasks")(command)


def pause(tasks: Names, wait: Wait = False, json: Json = False) -> None:
    """Pause tasks: they give their CPU back, and keep their memory.

    A training pauses after the step that it is in, a program is frozen where it is. 'zenos resume'
    lets them go on.

    Example: zenos pause t12
    """
    _each(tasks, lambda handle: handle.pause(), json=json, until=_is_paused if wait else None)


def suspend(tasks: Names, wait: Wait = False, json: Json = False) -> None:
    """Suspend tasks: they save their state, end, and give everything back.

    Trainings can, and programs that were submitted with --yields signals or helper; one that waits
    in the queue is held there. 'zenos resume' lets them go on from what they saved.

    Example: zenos suspend --wait t12
    """
    _each(tasks, lambda handle: handle.suspend(), json=json, until=_is_out if wait else None)


def resume(
    tasks: Names,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="A training may go on with other numerics.")
    ] = False,
    json: Json = False,
) -> None:
    """Let paused, suspended or held tasks go on, as soon as there is room for them.

    Example: zenos resume t12
    """
    _each(tasks, lambda handle: handle.resume(inexact=inexact), json=json)


def nice(
    tasks: Names,
    priority: Annotated[
        str,
        typer.Option(
            "--priority",
            "-p",
            help="low, normal, high or 0 to 100; higher goes first.",
            metavar="PRIORITY",
        ),
    ],
    json: Json = False,
) -> None:
    """Give tasks another priority; one that waits takes its new place at once.

    Example: zenos nice t12 --priority low
    """
    from zenos.client.build import parse_priority

    value = parse_priority(priority)
    _each(tasks, lambda handle: handle.nice(value), json=json, say_priority=True)


def _each(
    names: list[str],
    verb: Callable[[TaskHandle], Task],
    *,
    json: bool,
    until: Callable[[Task], bool] | None = None,
    say_priority: bool = False,
) -> None:
    """Do it to each; what is wrong with one doesn't keep the others from it."""
    from zenos.cli.output import put_json, say

    def act(handle: TaskHandle) -> TaskHandle:
        verb(handle)
        return handle

    with client() as made:
        handles, unknown = for_each(names, made.task)
        done, failed = for_each(handles, act)
        for handle in done if until is not None else ():
            for view in handle.follow():
                if view.task.is_ended or (until is not None and until(view.task)):
                    break
    if json:
        put_json([handle.task for handle in done])
    for handle in [] if json else done:
        say(_said(handle.task, say_priority=say_priority))
    end_with([*unknown, *failed])


def _said(task: Task, *, say_priority: bool) -> str:
    if say_priority:
        return f"{task.name} has priority {task.spec.priority}"
    if task.resuming is not None:
        return f"{task.name} goes on as soon as its CPU is free"
    if task.held is not None and task.state == "queued":
        return f"{task.name} is held; 'zenos resume {task.id}' lets it go on"
    return f"{task.name} is {task.state}"


def _is_paused(task: Task) -> bool:
    return task.state != "pausing"


def _is_out(task: Task) -> bool:
    return task.state != "suspending"
