"""Being inside a task: which one it is, and the secret by which the daemon knows it.

Every program of a task finds these in its environment and in a file of the daemon's home. On the
bus they are said apart (`zenos.bus.envelope.Hello`); over HTTP they are one bearer token.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

import msgspec

from zenos.core.errors import StorageError
from zenos.core.home import Home

_TOKEN: Final = re.compile(r"task\.(t[0-9]{1,18})\.([0-9]{1,9})\.([!-~]{1,128})")


class Inside(NamedTuple):
    """One generation of a task."""

    task: str
    generation: int


class _StartFile(msgspec.Struct):
    """What is needed of `runs/TASK/GENERATION.json`."""

    token: str = ""


def inside(home: Home) -> Inside | None:
    """The task in which this process runs, if it is one of that home's daemon."""
    task = os.environ.get("ZENOS_TASK", "")
    generation = os.environ.get("ZENOS_GENERATION", "")
    said = os.environ.get("ZENOS_TASK_HOME")  # stays when the program goes to a home of its own
    if said and os.path.realpath(said) != os.path.realpath(home.root):
        return None
    if not (task.isascii() and task.isalnum() and generation.isdecimal()):
        return None
    return Inside(task, int(generation))


def secret(home: Home, task: str, generation: int) -> str:
    """By which that generation is let in. FileNotFoundError where there is none, StorageError."""
    path = home.runs / task / f"{generation}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_StartFile).token
    except FileNotFoundError:
        raise
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from None


def bearer(who: Inside, secret: str) -> str:
    """The bearer token of a generation."""
    return f"task.{who.task}.{who.generation}.{secret}"


def parse(token: str) -> tuple[Inside, str] | None:
    """The counterpart of `bearer`; None for what is no task's token."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else (Inside(found[1], int(found[2])), found[3])
