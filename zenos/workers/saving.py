"""What is asked to save its state when the daemon goes down, and what of it has not."""

from __future__ import annotations

import logging
import os

import msgspec

from zenos.core import durable
from zenos.core.task import HOLDING, Kind, State, Task
from zenos.kernel.control import View
from zenos.kernel.supervision import EXIT_SUSPENDED
from zenos.workers.system import LocalSystem

log = logging.getLogger(__name__)


def that_save(view: View) -> list[str]:
    """Tasks that are asked to save their state when work is suspended."""
    live = HOLDING - {State.STARTING}
    return [t.id for t in view.tasks.values() if t.kind is Kind.TRAIN and t.state in live]


def tell_unsaved(saving: list[str], view: View, system: LocalSystem) -> None:
    """Say, in the log and to whoever waits for our end, what has not been saved in time."""
    unsaved = [t for t in saving if t in view.tasks and not _is_saved(view.tasks[t])]
    failed = [t for t in unsaved if _could_not_save(view.tasks[t])]
    for task_id in unsaved:
        log.warning(
            "%s was not saved %s: it goes on from its last checkpoint",
            task_id,
            "(its log says why)"
            if task_id in failed
            else f"within {system.config.suspend_grace_s:g} s (suspend_grace_s)",
        )
    record = {"pid": os.getpid(), "unsaved": unsaved, "failed": failed}
    try:
        durable.write_file(system.home.down, msgspec.json.encode(record))
    except OSError as error:
        log.warning("cannot write %s: %s", system.home.down, error.strerror)


def _is_saved(task: Task) -> bool:
    """Whether a training that was told to save has, or has ended for good."""
    outcome = task.outcome
    if task.is_ended or outcome is None:
        return task.is_ended
    said = outcome.result or {}
    return outcome.exit_code == EXIT_SUSPENDED and bool(said.get("saved", True))


def _could_not_save(task: Task) -> bool:
    """Whether it has ended in time and said that its state could not be written."""
    said = (task.outcome.result if task.outcome is not None else None) or {}
    return said.get("saved") is False
