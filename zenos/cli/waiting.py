"""Saying what a command waits for: room on the machine, another start, space on the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from zenos.cli.output import say

if TYPE_CHECKING:
    from zenos.client import Client, TaskHandle, TaskView

LOOK_S = 0.5
WORK_S = 2.0  # what takes longer says what it is, and later that it still goes on
WORK_AGAIN_S = 15.0


def room(name: str, replicas: list[TaskView]) -> str | None:
    """What a deployment waits for while all its replicas are queued; None when they are not.

    One that has failed before waits to be started again, whatever room there is.
    """
    from zenos.client.display import again

    if not replicas or any(view.task.state != "queued" for view in replicas):
        return None
    failed = next((why for view in replicas if (why := again(view.task))), None)
    if failed is not None:
        return f"{name} is started again: {failed}"
    waits = next((view.waits for view in replicas if view.waits), None)
    return f"{name} waits for room{f': {waits}' if waits else ''}"


def replicas_of(made: Client, name: str) -> list[TaskView]:
    """The tasks that are the deployment's replicas."""
    from zenos.core.task import Kind

    known = {r for d in made.deployments() if d.name == name for r in d.replicas}
    return [view for view in made.tasks(kind=Kind.SERVE) if view.task.id in known]


def until_end(handle: TaskHandle) -> None:
    """Quietly until a task ends; only what keeps it from ending is told, each reason once."""
    from zenos.cli import output
    from zenos.client.display import again
    from zenos.core.wire import WAITS_FOR_SPACE

    told = set()
    with closing(handle.follow()) as views:
        for view in views:
            name, reason = view.task.name, again(view.task)
            said = f"{name} waits to be started again: {reason}" if reason else ""
            if view.progress is not None and view.progress.stage == WAITS_FOR_SPACE:
                said = f"{name} waits for space on the disk of its home: free some there"
            if said and said not in told:
                told.add(said)
                output.say(said)


@contextmanager
def naming(handle: TaskHandle) -> Iterator[None]:
    """Where the daemon stays away, also say that the task is not lost with it, and which it is."""
    from zenos.core.errors import NoDaemonError

    try:
        yield
    except NoDaemonError as error:
        label = f" ({handle.task.label})" if handle.task.label else ""
        raise NoDaemonError(
            f"{error.message}; {handle.id}{label} goes on, at the latest once the daemon is up: "
            f"'zenos logs -f {handle.id}' follows it then"
        ) from None


@contextmanager
def at_work(what: str) -> Iterator[None]:
    """Says on stderr what is being done where that takes a while, and then again and again."""
    done = threading.Event()

    def tell() -> None:
        begun = time.monotonic()
        wait_s = WORK_S
        while not done.wait(wait_s):
            say(f"{what}: {time.monotonic() - begun:.0f} s so far")
            wait_s = WORK_AGAIN_S

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        done.set()
        telling.join()  # so that it says nothing after the result


@contextmanager
def saying_room(name: str) -> Iterator[threading.Event]:
    """Says once on stderr when the model waits for room. Set the event when it has answered.

    It looks from a thread with a client of its own, since the command itself waits in a request.
    """
    answered = threading.Event()
    looking = threading.Thread(target=_look, args=(name, answered), daemon=True)
    looking.start()
    try:
        yield answered
    finally:
        answered.set()


def _look(name: str, answered: threading.Event) -> None:
    from zenos.client import connect
    from zenos.core.errors import ZenosError

    while not answered.wait(LOOK_S):
        try:
            with connect(retry_s=0) as made:
                told = room(name, replicas_of(made, name))
        except ZenosError:
            continue  # the command's own request says what is wrong
        if told is not None and not answered.is_set():
            say(f"{told}; Ctrl-C ends the request")
            return
