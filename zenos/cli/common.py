"""What the commands share: options, the client, shell completion of names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zenos.client import Client
    from zenos.core.errors import ZenosError
    from zenos.core.task import Task

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
COMPLETION_TIMEOUT_S = 1.0
ENDING_CHARS_MAX = 1000  # of why a task failed; the rest is in its log
S = TypeVar("S")
T = TypeVar("T")


@contextmanager
def client() -> Iterator[Client]:
    """The client of the daemon that the environment names; raises NoDaemonError without one."""
    from zenos.cli.patience import tell_of_silence
    from zenos.client import connect

    with connect() as made:
        tell_of_silence(made)
        yield made


def complete(names: Callable[[Client], list[str]]) -> Callable[[str], list[str]]:
    """Completion by what the daemon has; nothing when it cannot be asked at once."""

    def completion(incomplete: str) -> list[str]:
        try:
            from zenos.client import connect

            with connect(retry_s=0) as made:
                made.http.timeout = COMPLETION_TIMEOUT_S
                return [name for name in names(made) if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a shell that completes must never see an error
            return []

    return completion


def _tasks(made: Client) -> list[str]:
    return sorted(
        {name for view in made.tasks(limit=200) for name in (view.task.id, view.task.name)}
    )


def _models(made: Client) -> list[str]:
    found: set[str] = set()
    for version in made.models():
        found |= {version.name, version.ref}
        found |= {f"{version.name}:{alias}" for alias in version.aliases}
    return sorted(found)


def _deployments(made: Client) -> list[str]:
    return sorted(deployment.name for deployment in made.deployments())


def complete_from(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completion by names that no daemon is needed for."""
    return lambda incomplete: [name for name in known() if name.startswith(incomplete)]


def _architectures() -> Iterable[str]:
    from zenos.core.specs import ARCHITECTURES, MODEL_TYPES

    return (*ARCHITECTURES, *MODEL_TYPES)


complete_architectures = complete_from(_architectures)
complete_priorities = complete_from(lambda: ("low", "normal", "high"))
complete_tasks = complete(_tasks)
complete_models = complete(_models)
complete_deployments = complete(_deployments)


def parse_settings(items: list[str] | None) -> dict[str, Any]:
    """`["hidden_size=256", "tie=true"]` as a mapping: values are JSON where they can be read so.

    Raises InvalidError for a number that is none, or too large to be one: `NaN`, `1e999`.
    """
    import json
    import math

    from zenos.core.errors import InvalidError

    settings: dict[str, Any] = {}
    for item in items or []:
        name, equals, text = item.partition("=")

        def number(word: str, item: str = item) -> float:
            found = float(word)
            if not math.isfinite(found):
                raise InvalidError(f"cannot use --set {item[:60]}: {word[:40]} is no number")
            return found

        if not equals or not name:
            raise InvalidError(f"cannot read the setting {item[:60]!r}: write NAME=VALUE")
        try:
            settings[name] = json.loads(text, parse_float=number, parse_constant=number)
        except (ValueError, RecursionError):
            settings[name] = text
    return settings


def for_each(items: Iterable[S], act: Callable[[S], T]) -> tuple[list[T], list[ZenosError]]:
    """What came of each item, such as a name, and the errors of those where nothing did.

    What can be done is done, however many others are misspelt, somebody else's, or in another
    state; `end_with` tells of them. Errors that are of no single item are raised.
    """
    from zenos.core.errors import ConflictError, InvalidError, NotFoundError, RefusedError

    done: list[T] = []
    failed: list[ZenosError] = []
    for item in dict.fromkeys(items):
        try:
            done.append(act(item))
        except (NotFoundError, InvalidError, ConflictError, RefusedError) as error:
            failed.append(error)
    return done, failed


def end_with(failed: list[ZenosError]) -> None:
    """Say what could not be done, and end with the exit code of the first; nothing if all was."""
    from zenos.cli.errors import exit_code, tell

    for error in failed:
        tell(error)
    if failed:
        raise typer.Exit(exit_code(failed[0]))


def finish(task: Task) -> None:
    """End the command as the task ended; of a failure, say which task it was and where to look."""
    from zenos.cli.errors import FAILED, say_error
    from zenos.client.display import summary
    from zenos.core.errors import WorkerError
    from zenos.core.task import State

    if task.state is not State.SUCCEEDED:
        message = summary(task)
        if message.startswith("cannot"):
            name = f"{task.spec.name}, " if task.spec.name else ""
            message = (
                message if len(message) <= ENDING_CHARS_MAX else f"{message[:ENDING_CHARS_MAX]}…"
            )
            logs = f"'zenos logs {task.id}'"
            shows = "" if logs in message else f"; {logs} shows what it wrote"
            say_error(f"{message} ({name}{task.id}{shows})", WorkerError.code)
        else:
            say_error(f"{task.name} was {message}", WorkerError.code)
        raise typer.Exit(FAILED)
