"""What follows when workers start, end, fail or are lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.kernel.harness import TRAIN, Harness, node, spec
from zenos.core import events as ev
from zenos.core import limits
from zenos.core.actions import Discard
from zenos.core.config import Config
from zenos.core.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnfittableError,
)
from zenos.core.task import Outcome, Principal, State
from zenos.kernel.due import LEFT_OVER_MIN


def test_a_task_runs_from_queued_to_succeeded() -> None:
    h = Harness()
    task = h.submit(spec())
    assert h.now(task).state is State.STARTING
    h.run(task)
    h.clock.advance(5)
    h.exit(task)
    ended = h.now(task)
    assert (ended.state, ended.ran_s, ended.allocation) == (State.SUCCEEDED, 5.0, None)
    assert h.kernel.state.resources.used().cpu == 0


def test_a_failed_program_is_tried_again_only_as_often_as_it_says() -> None:
    h = Harness()
    task = h.submit(spec(retries=1))
    h.exit(task, exit_code=3)
    assert h.now(task).state is State.QUEUED
    assert h.started[-1].generation == 1  # it waits for its backoff
    h.wait(1.0)
    assert h.started[-1].generation == 2
    h.exit(task, exit_code=3)
    assert h.now(task).state is State.FAILED


def test_a_lost_program_is_not_run_again_but_training_goes_on() -> None:
    h = Harness()
    program, training = h.submit(spec()), h.submit(spec(TRAIN))
    h.lose(program)
    h.lose(training)
    assert h.now(program).state is State.LOST
    assert h.now(training).state is State.QUEUED


def test_training_that_reports_an_error_is_not_tried_again_but_killed_training_is() -> None:
    h = Harness()
    wrong, killed = h.submit(spec(TRAIN)), h.submit(spec(TRAIN))
    h.exit(wrong, exit_code=1, error="cannot read the data")
    h.exit(killed, exit_code=None, signal=9)
    assert h.now(wrong).state is State.FAILED
    assert h.now(killed).state is State.QUEUED


def test_a_full_disk_does_not_end_a_training_for_good() -> None:
    h = Harness()
    full = {"exit_code": 1, "error": "cannot register m: no space left", "code": "storage"}
    train = h.submit(spec(TRAIN))
    h.run(train)
    h.exit(train, **full)
    assert h.now(train).state is State.QUEUED
    program = h.submit(spec())
    h.run(program)
    h.exit(program, **full)
    assert h.now(program).state is State.FAILED


def test_a_training_goes_on_when_one_of_its_processes_was_killed_but_not_for_want_of_memory() -> (
    None
):
    h = Harness()
    lost = {"exit_code": 1, "error": "cannot go on together: …", "code": "rank"}
    killed, greedy = h.submit(spec(TRAIN)), h.submit(spec(TRAIN))
    h.exit(killed, **lost)
    h.exit(greedy, **lost, oom=True)
    assert h.now(killed).state is State.QUEUED
    assert h.now(greedy).state is State.FAILED


def test_a_task_over_its_memory_limit_has_failed() -> None:
    h = Harness()
    task = h.submit(spec(TRAIN))
    h.exit(task, exit_code=None, signal=9, oom=True, error="cannot allocate: used 2 of 1")
    assert h.now(task).state is State.FAILED


def test_messages_of_an_older_generation_are_dropped() -> None:
    h = Harness()
    task = h.submit(spec(retries=3))
    h.exit(task, exit_code=1)
    h.wait(1.0)
    h.step(ev.WorkerLost(task=task.id, generation=1, reason="late"))
    assert (h.now(task).state, h.now(task).generation) == (State.STARTING, 2)


def test_cancelling_a_waiting_task_ends_it_and_a_running_one_is_stopped_first() -> None:
    h = Harness(node(cpu=1))
    running, waiting = h.submit(spec()), h.submit(spec())
    assert h.cancel(waiting).state is State.CANCELLED
    h.run(running)
    assert h.cancel(running).state is State.RUNNING
    assert h.stopped[-1].task == running.id
    h.exit(running, exit_code=None, signal=15)
    assert h.now(running).state is State.CANCELLED
    assert h.cancel(running).state is State.CANCELLED  # again is no error


def test_a_cancelled_training_that_saved_itself_is_cancelled_not_queued() -> None:
    h = Harness()
    task = h.submit(spec(TRAIN))
    h.run(task)
    h.cancel(task)
    h.exit(task, exit_code=75)
    assert h.now(task).state is State.CANCELLED


def test_only_what_is_suspended_is_told_to_save_and_has_the_time_for_it() -> None:
    h = Harness(node(cpu=4), config=Config(cancel_grace_s=3, suspend_grace_s=50))
    cancelled, limited, saved, starting = (
        h.submit(spec(TRAIN, time_limit_s=limit_s)) for limit_s in (None, 60, None, None)
    )
    for task in (cancelled, limited, saved):
        h.run(task)
    h.cancel(cancelled)
    h.wait(60)
    h.step(ev.Shutdown(suspend=True))
    told = {s.task: (s.save, s.grace_s) for s in h.stopped}
    assert told == {
        cancelled.id: (False, 3),
        limited.id: (False, 3),
        saved.id: (True, 50),
        starting.id: (False, 3),  # nothing is done yet that could be saved
    }
    again = h.restarted()
    assert {s.task: (s.save, s.grace_s) for s in again.stopped} == told
    h.cancel(saved)
    assert (h.stopped[-1].task, h.stopped[-1].save, h.stopped[-1].grace_s) == (saved.id, False, 3)


def test_a_time_limit_ends_a_task() -> None:
    h = Harness()
    task = h.submit(spec(time_limit_s=60))
    h.run(task)
    assert h.steps[-1].wake == h.clock.now() + 60
    h.wait(60)
    assert h.stopped[-1].task == task.id
    h.exit(task, exit_code=None, signal=15)
    assert h.now(task).state is State.FAILED
    assert "time limit of 60 s" in str(h.now(task).outcome)


@pytest.mark.parametrize("limit_s", [3.3, 10.0, 58.31, 100.1])
def test_a_time_limit_ends_at_the_moment_for_which_the_kernel_asked_to_be_called(
    limit_s: float,
) -> None:
    h = Harness(node(cpu=4))
    h.clock.advance(1_764_480_000.123)  # as large as kernel time is: so sums of it are rounded
    for _ in range(4):
        h.clock.advance(7.7)
        task = h.submit(spec(time_limit_s=limit_s))
        h.run(task)
        h.wait(h.steps[-1].wake - h.clock.now())
        assert h.now(task).stopping == "time limit"


def test_limits_and_deadlines_of_tasks_that_have_ended_take_no_memory_until_they_are_over() -> None:
    h = Harness(node(cpu=4), config=Config(ended_tasks_kept=0, ended_task_kept_s=0.0))
    h.run(h.submit(spec(time_limit_s=1e6)))  # theirs come first, and stay
    h.submit(spec(cpu=4, deadline=1e8, expected_s=10.0))
    for _ in range(300):
        task = h.submit(spec(time_limit_s=1e7, deadline=1e9, expected_s=10.0))
        h.run(task)
        h.exit(task)
    state = h.kernel.state
    assert max(len(state.time_limits), len(state.raises)) <= LEFT_OVER_MIN
    last = h.submit(spec(time_limit_s=60))
    h.run(last)
    assert h.steps[-1].wake == h.clock.now() + 60


def test_a_worker_that_could_not_be_started_is_tried_three_times_more() -> None:
    h = Harness()
    task = h.submit(spec())
    for _ in range(4):
        assert h.now(task).state is State.STARTING
        generation = h.now(task).generation
        h.step(ev.StartFailed(task=task.id, generation=generation, reason="no zygote"))
        h.wait(400)
    assert h.now(task).state is State.FAILED


def test_what_could_not_be_started_takes_nothing_of_the_retries() -> None:
    h = Harness()
    task = h.submit(spec(retries=1))

    def fail_to_start(times: int) -> None:
        for _ in range(times):
            generation = h.now(task).generation
            h.step(ev.StartFailed(task=task.id, generation=generation, reason="no zygote"))
            h.wait(400)

    fail_to_start(3)
    h.run(task)
    h.exit(task, exit_code=1)
    h.wait(400)
    assert (h.now(task).state, h.now(task).attempts) == (State.STARTING, 1)
    fail_to_start(3)  # it has started meanwhile: these are counted anew
    assert h.now(task).state is State.STARTING
    again = h.restarted()
    generation = again.now(task).generation
    again.step(ev.StartFailed(task=task.id, generation=generation, reason="no zygote"))
    assert again.now(task).state is State.FAILED


def test_faults_of_a_training_count_anew_once_it_has_come_further() -> None:
    h = Harness()
    task = h.submit(spec(TRAIN))

    def fault(saved_step: int) -> State:
        killed = Outcome(signal=9)
        h.run(task)
        h.step(
            ev.WorkerExited(
                task=task.id,
                generation=h.now(task).generation,
                outcome=killed,
                saved_step=saved_step,
            )
        )
        h.wait(limits.RETRY_BACKOFF_S_MAX)
        return h.now(task).state

    for number in range(3 * limits.TRAIN_RESTARTS_MAX):
        assert fault(100 * number) is State.STARTING
    last = 100 * (3 * limits.TRAIN_RESTARTS_MAX - 1)
    for _ in range(limits.TRAIN_RESTARTS_MAX - 1):  # after the one that brought it there
        assert fault(last) is State.STARTING
    assert fault(last) is State.FAILED


def test_shutdown_suspends_training_and_leaves_programs() -> None:
    h = Harness()
    program, training = h.submit(spec()), h.submit(spec(TRAIN))
    h.run(program)
    h.run(training)
    h.step(ev.Shutdown(suspend=True))
    assert [(s.task, s.save) for s in h.stopped] == [(training.id, True)]
    assert h.stopped[0].grace_s == h.config.suspend_grace_s == 120
    h.exit(training, exit_code=75)
    assert h.now(training).state is State.QUEUED
    assert len(h.started) == 2  # nothing starts any more
    with pytest.raises(UnavailableError):
        h.submit(spec())
    again = h.restarted()
    assert again.now(program).state is State.RUNNING
    assert again.started[-1].id == training.id


def test_a_restarted_kernel_holds_the_same_and_tells_stopping_workers_again() -> None:
    h = Harness(node(cpu=1))
    running, waiting = h.submit(spec()), h.submit(spec())
    h.run(running)
    h.cancel(running)
    again = h.restarted()
    assert again.kernel.state.resources.used().cpu == 1000
    assert again.stopped[0].task == running.id
    again.exit(running, exit_code=None, signal=15)
    assert again.now(running).state is State.CANCELLED
    assert again.started[-1].id == waiting.id


def test_a_request_larger_than_any_node_is_refused() -> None:
    h = Harness(node(gpu=2))
    with pytest.raises(UnfittableError, match="wants 3 GPUs, the largest node has 2"):
        h.submit(spec(gpu=3))
    with pytest.raises(UnfittableError, match="wants 8 CPUs"):
        h.submit(spec(cpu=8))
    with pytest.raises(UnfittableError, match="wants 1 GPU, no node has any"):
        Harness(node(gpu=0)).submit(spec(gpu=1))


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 101},
        {"priority": -1},
        {"expected_s": float("nan")},
        {"expected_s": -1.0},
        {"time_limit_s": float("inf")},
        {"retries": -1},
        {"name": "../x"},
        {"name": "a" * 10_000},
    ],
)
def test_absurd_numbers_and_names_are_refused(change: dict[str, object]) -> None:
    h = Harness()
    with pytest.raises(InvalidError, match="cannot"):
        h.submit(replace(spec(), **change))
    assert not h.kernel.state.tasks


def test_the_same_key_answers_with_the_same_task_and_refuses_another_request() -> None:
    h = Harness()
    first = h.submit(spec(), key="k")
    assert h.submit(spec(), key="k").id == first.id
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        h.submit(spec(name="other"), key="k")
    other = h.submit(spec(), key="k", principal=Principal(user="someone"))
    assert other.id != first.id
    again = h.restarted()
    assert again.submit(spec(), key="k").id == first.id


def test_unknown_tasks_are_not_found() -> None:
    with pytest.raises(NotFoundError):
        Harness().ask(ev.Cancel(request=1, task="t9"))


def test_ended_tasks_keys_and_events_have_a_retention() -> None:
    h = Harness(config=replace(Harness().config, ended_tasks_kept=2))
    tasks = []
    for _ in range(4):
        tasks.append(h.submit(spec(), key=f"k{len(tasks)}"))
        h.exit(tasks[-1])
    assert sorted(h.kernel.state.tasks) == ["t3", "t4"]
    h.wait(2 * 86400)
    assert not h.kernel.state.keys
    h.wait(31 * 86400)
    assert not h.kernel.state.tasks


def test_a_key_is_known_for_a_day() -> None:
    h = Harness()
    first = h.submit(spec(), key="k")
    h.clock.advance(limits.IDEMPOTENCY_KEPT_S)
    assert h.submit(spec(), key="k").id == first.id
    h.clock.advance(1)
    assert h.submit(spec(name="other"), key="k").id != first.id


def test_of_the_history_the_newest_events_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 100)
    h = Harness()
    for _ in range(60):
        h.exit(h.submit(spec()))
    pruned = [s.changes.prune_events_before for s in h.steps if s.changes.prune_events_before]
    assert pruned == sorted(set(pruned))
    assert 100 <= h.kernel.state.next_seq - pruned[-1] <= 101


def discarded(h: Harness) -> list[str]:
    return [
        task
        for step in h.steps
        for action in step.actions
        if isinstance(action, Discard)
        for task in action.tasks
    ]


def test_what_a_training_saved_goes_when_it_has_ended_and_not_while_it_may_go_on() -> None:
    h = Harness()
    killed, failed, program = h.submit(spec(TRAIN)), h.submit(spec(TRAIN)), h.submit(spec())
    h.exit(killed, exit_code=None, signal=9)
    h.lose(program)
    assert discarded(h) == []  # the first is queued again, a program has saved nothing
    h.exit(failed, exit_code=1, error="cannot read the data")
    assert discarded(h) == [failed.id]
    # Cancelled in the queue, with what its first run has saved.
    h.cancel(killed)
    assert h.now(killed).state is State.CANCELLED
    assert discarded(h) == [failed.id, killed.id]
    never = h.submit(spec(TRAIN, cpu=2))
    h.submit(spec(cpu=2))
    h.cancel(h.submit(spec(TRAIN, cpu=2)))
    assert len(discarded(h)) == 2
    h.cancel(never)


def test_a_training_whose_start_is_given_up_as_the_daemon_goes_down_waits_for_the_next() -> None:
    h = Harness()
    task = h.submit(spec(TRAIN))
    h.step(ev.Shutdown(suspend=True))
    h.step(ev.StartFailed(task=task.id, generation=1, reason="it was stopped before it started"))
    assert (h.now(task).state, h.now(task).start_failures) == (State.QUEUED, 0)
    assert h.restarted().now(task).state is State.STARTING
