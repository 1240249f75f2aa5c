"""What the bus asks of the system."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from zenos.core.task import State
from zenos.workers.system import LocalSystem


def test_programs_may_be_silent_while_their_task_is_paused_and_then_alone() -> None:
    tasks = {state.value: SimpleNamespace(state=state) for state in State}
    system = cast("LocalSystem", SimpleNamespace(view=SimpleNamespace(tasks=tasks)))
    silent = {state for state in State if LocalSystem.may_be_frozen(system, state.value)}
    assert silent == {State.PAUSING, State.PAUSED}
    assert not LocalSystem.may_be_frozen(system, "unknown")
