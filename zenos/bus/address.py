"""Where the bus of a home is, and by which token one is let in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from zenos.bus.envelope import Hello
from zenos.core.errors import NoDaemonError, StorageError, UnauthorizedError
from zenos.core.home import Home


class _StartFile(msgspec.Struct):
    """What is needed of `runs/TASK/GENERATION.json`."""

    token: str = ""


def find(home: str | Path | None = None) -> tuple[Callable[[], Path], Hello]:
    """Where the socket is now, and what to say first: as the task in which this runs, else as the
    user.

    home: by default `ZENOS_HOME`; one that is given is used as the user, and so is another than
    that of the task (`ZENOS_TASK_HOME`). Raises NoDaemonError where
    no daemon has ever run, UnauthorizedError without a token.
    """
    place = Home(Path(home).expanduser().absolute()) if home is not None else Home.default()
    task = os.environ.get("ZENOS_TASK") if home is None and _is_the_tasks(place) else None
    if task:
        generation = os.environ.get("ZENOS_GENERATION", "")
        if generation.isdecimal() and task.isalnum():
            token = _task_token(place, task, int(generation))
            hello = Hello(task=task, generation=int(generation), token=token, program=True)
            return lambda: place.bus, hello
    if not place.token.exists():
        raise NoDaemonError(
            f"cannot reach a daemon: none has run on {place.root}; start it with 'zenos up'"
        )
    token = _read(place.token).strip()
    return lambda: place.bus, Hello(task="", generation=0, token=token, program=True)


def _is_the_tasks(place: Home) -> bool:
    said = os.environ.get("ZENOS_TASK_HOME")
    return not said or os.path.realpath(said) == os.path.realpath(place.root)


def _task_token(place: Home, task: str, generation: int) -> str:
    path = place.runs / task / f"{generation}.json"
    try:
        return msgspec.json.decode(_read(path), type=_StartFile).token
    except msgspec.DecodeError as error:
        raise StorageError(f"cannot read {path}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnauthorizedError(
            f"cannot find the token of the bus in {path}: set ZENOS_HOME to the daemon's home"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from None
