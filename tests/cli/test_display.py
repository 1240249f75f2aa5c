"""What people read about a task."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from zenos.cli import rows
from zenos.cli.rows import prediction_facts
from zenos.client.display import render, summary, took_s
from zenos.client.types import ModelVersion, TaskView
from zenos.core.predictions import Prediction
from zenos.core.resources import Resources
from zenos.core.specs import DataSpec, ProgramSpec, TrainSpec
from zenos.core.task import Allocation, Kind, Outcome, Principal, State, Task, TaskEvent, TaskSpec
from zenos.core.wire import Progress

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


def test_an_elastic_training_says_how_many_workers_it_has() -> None:
    work = TrainSpec(model="m", data=DataSpec(paths=["/"]), workers=4, workers_min=1)
    task = replace(TASK, spec=TaskSpec(work=work, resources=Resources(cpu=4000)), kind=Kind.TRAIN)
    assert rows.workers_line(task) == "1 to 4"
    held = Allocation(node="local", resources=Resources(cpu=2000), workers=2)
    assert rows.workers_line(replace(task, allocation=held)) == "2 of 1 to 4"
    assert rows.workers_line(TASK) == ""


def test_a_long_history_shows_its_end_in_a_line_each() -> None:
    events = [
        TaskEvent(seq=n, at=float(n), task="t1", type="restarting", state=State.QUEUED,
                  generation=n, detail=f"fault {n}\n" + "x" * 1000)
        for n in range(20)
    ]  # fmt: skip
    lines = rows.history_lines(events).splitlines()
    assert lines[0] == "… and 5 before"
    assert len(lines) == 16
    assert "restarting: fault 19 xxx" in lines[-1]
    assert max(map(len, lines)) < 260
    assert rows.history_lines([]) == ""


def test_of_a_lost_task_it_is_told_what_to_do() -> None:
    lost = replace(TASK, state=State.LOST, outcome=Outcome(error="cannot say how it ended: killed"))
    assert summary(lost) == (
        f"cannot say how it ended: killed; 'zenos logs {TASK.id}' shows how far it came: submit it "
        "again if that does no harm"
    )


def test_a_cancelled_task_is_cancelled_and_no_more() -> None:
    assert summary(replace(TASK, state=State.CANCELLED, stopping="cancel")) == "cancelled"
    assert summary(replace(TASK, state=State.CANCELLED, stopping="limit")) == "cancelled: limit"


@pytest.mark.parametrize(
    ("error", "says"),
    [(0.0, "off by 0%"), (1.0, "off by 100%"), (151.5, "152 times what it took")],
)
def test_a_prediction_that_was_far_too_long_is_told_in_times(error: float, says: str) -> None:
    made = Prediction(expected_s=10, source="user", error=error, median_error=error, compared=2)
    (_, line), (_, known) = prediction_facts(made)
    assert line.endswith(f"; {says}")
    assert f"{says.replace('it', 'they')} in the median of 2" in known


def test_in_a_narrow_terminal_the_bar_has_a_row_of_its_own() -> None:
    progress = Progress(
        stage="training", done=204, total=252, loss=3.49, left_s=2.0,
        note="252 of 367 planned steps fit the time budget",
    )  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(TaskView(task=replace(TASK, state=State.RUNNING), progress=progress)))
    bar, known = console.export_text().rstrip().splitlines()
    assert bar.rstrip().endswith("204/252")
    assert known.split("  ")[-1] == progress.note


@pytest.mark.parametrize(("step", "shown"), [(100, "4.3257"), (160, "4.3257 at step 100")])
def test_a_held_out_loss_of_older_weights_says_of_which(step: int, shown: str) -> None:
    metrics = {"eval_loss": 4.3257, "eval_loss_at_step": 100, "published_at_step": step}
    assert shown in rows.model_row(ModelVersion(name="live", version=8, metrics=metrics))
