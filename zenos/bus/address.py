"""Where the bus of a home is, and by which token one is let in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zenos.bus.envelope import Hello
from zenos.core.errors import InvalidError, NoDaemonError, StorageError, UnauthorizedError
from zenos.core.home import Home
from zenos.core.inside import Inside, inside, secret


def find(home: str | Path | None = None) -> tuple[Callable[[], Path], Hello]:
    """Where the socket is now, and what to say first: as the task in which this runs, else as the
    user.

    home: by default `ZENOS_HOME`; one that is given is used as the user, and so is another than
    that of the task (`ZENOS_TASK_HOME`). Raises NoDaemonError where
    no daemon has ever run, UnauthorizedError without a token.
    """
    if home is not None and not isinstance(home, str | Path):
        raise InvalidError(f"cannot use a {type(home).__name__} as home: give a path")
    place = Home.of(home) if home is not None else Home.default()
    who = inside(place) if home is None else None
    if who is not None:
        token = _task_token(place, who)
        hello = Hello(task=who.task, generation=who.generation, token=token, program=True)
        return lambda: place.bus, hello
    if not place.token.exists():
        raise NoDaemonError(
            f"cannot reach a daemon: none has run on {place.root}; start it with 'zenos up'"
        )
    token = _read(place.token).strip()
    return lambda: place.bus, Hello(task="", generation=0, token=token, program=True)


def _task_token(place: Home, who: Inside) -> str:
    try:
        return secret(place, *who)
    except FileNotFoundError as error:
        raise _without_token(error.filename) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _without_token(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from None


def _without_token(path: Path | str) -> UnauthorizedError:
    return UnauthorizedError(
        f"cannot find the token of the bus in {path}: set ZENOS_HOME to the daemon's home"
    )
