"""What people read about a task."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from zenos.client.display import took_s
from zenos.core.specs import ProgramSpec
from zenos.core.task import Kind, Principal, State, Task, TaskSpec

TASK = Task(
    id="t1",
    spec=TaskSpec(work=ProgramSpec(argv=["true"])),
    principal=Principal(user="u", project="p"),
    submitted=100.0,
    kind=Kind.RUN,
)


@pytest.mark.parametrize(
    ("task", "seconds"),
    [
        (TASK, None),
        (replace(TASK, state=State.RUNNING, running=110.0), 15.0),
        # Restarted: what earlier generations took, and this one up to now.
        (replace(TASK, state=State.RUNNING, running=120.0, ran_s=7.0), 12.0),
        # The kernel adds the last generation when it ends: it counts once.
        (replace(TASK, state=State.SUCCEEDED, running=110.0, ended=118.0, ran_s=8.0), 8.0),
        (replace(TASK, state=State.QUEUED, ran_s=3.0), 3.0),
    ],
)
def test_the_time_a_task_ran_counts_each_generation_once(task: Task, seconds: float | None) -> None:
    assert took_s(task, now=125.0) == seconds
