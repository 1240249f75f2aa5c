"""Files of several tasks: `zenos submit FILE.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from zenos.cli.errors import FAILED
from zenos.core.errors import InvalidError

if TYPE_CHECKING:
    from zenos.client import Client

SUFFIXES: Final = (".yaml", ".yml", ".json")


def submit(made: Client, file: Path, *, given: list[str], wait: bool, json: bool) -> None:
    """Submit all tasks of a file; the exit code is 1 where they are waited for and one fails.

    given: flags that say what a single task is like.
    """
    from zenos.cli.notes import note_programs
    from zenos.cli.output import put, put_json, say
    from zenos.cli.train_flags import read_spec
    from zenos.client import build
    from zenos.core.task import State

    if given:
        raise InvalidError(f"cannot use {given[0]} with a file of tasks: write it into the file")
    tasks = made.submit_batch(build.batch(read_spec(file), file.absolute().parent))
    note_programs(made.address, [task.spec.work for task in tasks], json=json)
    if wait:
        tasks = [made.task(task.id).wait() for task in tasks]
    if json:
        put_json(tasks)
    else:
        for task in tasks:
            put(task.id)
            said = f" after {', '.join(task.after)}" if task.after else ""
            say(f"{task.name}: {task.state}{said}")
    if wait and any(task.state is not State.SUCCEEDED for task in tasks):
        raise typer.Exit(FAILED)
