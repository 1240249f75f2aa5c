"""Pausing, suspending, resuming, other priorities: what each costs, frees, and may be asked of."""

from __future__ import annotations

import pytest

from tests.kernel.harness import PROGRAM, TRAIN, YIELDING, Harness, node, spec
from zenos.core import events as ev
from zenos.core.actions import PauseWorker, ResumeWorker
from zenos.core.config import Config
from zenos.core.errors import ConflictError, InvalidError, NotFoundError, RefusedError
from zenos.core.resources import Resources
from zenos.core.specs import DeploymentSpec, TrainSpec, Work
from zenos.core.task import Principal, State, Task


def running(h: Harness, work: Work = TRAIN, **more: object) -> Task:
    task = h.submit(spec(work, **more))  # type: ignore[arg-type]
    h.run(task)
    assert h.now(task).state is State.RUNNING
    return task


def used(h: Harness) -> Resources:
    return h.kernel.state.resources.used()


def test_a_paused_task_gives_its_cpu_back_and_keeps_all_else() -> None:
    h = Harness(node(cpu=2, gpu=1))
    task = running(h, cpu=2, gpu=1, memory="1GB")
    assert h.pause(task).state is State.PAUSING
    assert [(type(a), a.how) for a in h.told] == [(PauseWorker, "step")]
    assert used(h).cpu == 2000  # until it says that it has paused
    h.paused(task)
    assert h.now(task).state is State.PAUSED
    assert used(h) == Resources.of(gpu=1, memory="1GB")
    assert used(h.restarted()) == used(h)

    other = h.submit(spec(cpu=1))
    assert h.now(other).state is State.STARTING
    memory = h.submit(spec(cpu=1, memory="2.5GB"))
    assert h.now(memory).state is State.QUEUED


def test_who_resumes_waits_for_its_cpu_ahead_of_the_queue() -> None:
    h = Harness(node(cpu=2))
    task = running(h, cpu=2)
    h.pause(task)
    h.paused(task)
    first, second = running(h, PROGRAM, cpu=1), running(h, PROGRAM, cpu=1)
    waiting = h.submit(spec(cpu=1, priority=100))
    resumed = h.resume(task)
    assert (resumed.state, resumed.held) == (State.PAUSED, None)
    assert resumed.resuming is not None
    h.exit(first)
    assert h.now(waiting).state is State.QUEUED  # what is free is kept for who was there before
    h = h.restarted()
    h.exit(second)
    assert h.now(task).state is State.RUNNING
    assert isinstance(h.told[-1], ResumeWorker)
    h.exit(task)
    assert h.now(waiting).state is State.STARTING


def test_of_two_that_resume_the_first_goes_on_first() -> None:
    h = Harness(node(cpu=2))
    one, two = running(h, cpu=2), running(h, cpu=0)
    h.pause(one)
    h.paused(one)
    other = running(h, PROGRAM, cpu=2)
    h.pause(two)
    h.paused(two)
    h.resume(one)
    h.wait(1)
    h.resume(two)
    assert h.now(two).state is State.RUNNING  # it wants no CPU, so it waits for none
    h.pause(one)  # asked again while it waits: it stays, and frees what was kept for it
    assert h.now(one).held == "pause"
    h.exit(other)
    assert h.now(one).state is State.PAUSED


def test_paused_time_is_no_run_time() -> None:
    h = Harness()
    task = running(h, time_limit_s=100)
    h.wait(60)
    h.pause(task)
    h.paused(task)
    h.wait(10_000)
    assert h.now(task).state is State.PAUSED
    h = h.restarted()
    h.resume(task)
    step = h.wait(30)
    assert h.now(task).stopping is None
    assert step.wake == h.clock.now() + 10
    h.wait(10)
    assert h.now(task).stopping == "time limit"
    h.exit(task)
    assert h.now(task).ran_s == 100


def test_a_pause_without_an_answer_is_given_up_also_if_the_answer_comes_late() -> None:
    h = Harness(config=Config(pause_grace_s=5))
    task = running(h)
    h.pause(task)
    assert h.wait(4).wake == h.clock.now() + 1
    step = h.wait(1)
    assert (h.now(task).state, h.now(task).held) == (State.RUNNING, None)
    assert step.changes.events[-1].detail.startswith("cannot pause: no answer within 5 s")
    assert isinstance(h.told[-1], ResumeWorker)
    count = len(h.told)
    h.paused(task)
    assert len(h.told) == count + 1
    assert isinstance(h.told[-1], ResumeWorker)
    assert h.now(task).state is State.RUNNING


def test_after_a_restart_every_worker_hears_again_what_it_is_to_do() -> None:
    h = Harness(node(cpu=5), config=Config(pause_grace_s=5))
    goes, pausing, paused = (running(h, YIELDING) for _ in range(3))
    saving = running(h, YIELDING)
    h.pause(pausing)
    h.pause(paused)
    h.paused(paused)
    h.suspend(saving)
    h.clock.advance(100)  # while no daemon was there; nothing could be confirmed
    h = h.restarted()
    assert [(type(a), a.task, a.how) for a in h.told] == [
        (ResumeWorker, goes.id, "signals"),
        (PauseWorker, pausing.id, "signals"),
        (PauseWorker, paused.id, "signals"),
    ]
    assert [(a.task, a.save) for a in h.stopped] == [(saving.id, True)]
    assert h.now(pausing).state is State.PAUSING
    h.paused(pausing)
    assert h.now(pausing).state is State.PAUSED


@pytest.mark.parametrize("work", [TRAIN, YIELDING])
@pytest.mark.parametrize("while_paused", [False, True])
def test_a_suspended_task_is_held_until_it_is_resumed(work: Work, while_paused: bool) -> None:
    h = Harness(config=Config(suspend_grace_s=9))
    task = running(h, work)
    if while_paused:
        h.pause(task)
        h.paused(task)
    assert h.suspend(task).state is State.SUSPENDING
    assert [(a.save, a.grace_s) for a in h.stopped] == [(True, 9)]
    h.exit(task, exit_code=75)
    told = [event.detail for event in h.steps[-1].changes.events if event.type == "suspended"]
    assert told == ["it has saved its state"]
    now = h.now(task)
    assert (now.state, now.held, now.allocation) == (State.QUEUED, "suspend", None)
    h = h.restarted()
    h.wait(100_000)
    assert h.now(task).state is State.QUEUED
    h.resume(task)
    assert (h.now(task).state, h.now(task).generation) == (State.STARTING, 2)


def test_who_is_killed_while_saving_goes_back_to_its_last_checkpoint() -> None:
    h = Harness()
    task = running(h)
    h.suspend(task)
    h.exit(task, exit_code=None, signal=9)
    assert (h.now(task).state, h.now(task).held) == (State.QUEUED, "suspend")
    assert h.now(task).attempts == 0
    assert not any(type(a).__name__ == "Discard" for s in h.steps for a in s.actions)


def test_resumed_while_it_saves_it_goes_on_afterwards() -> None:
    h = Harness()
    task = running(h)
    h.suspend(task)
    h.resume(task)
    assert h.now(task).state is State.SUSPENDING
    h.exit(task, exit_code=75)
    assert h.now(task).state is State.STARTING


def test_a_queued_task_is_held_where_it_is() -> None:
    h = Harness(node(cpu=1))
    first = running(h, PROGRAM)
    task = h.submit(spec())
    assert h.suspend(task).held == "suspend"
    h.exit(first)
    assert h.now(task).state is State.QUEUED
    assert h.resume(task).held is None
    assert h.now(task).state is State.STARTING


def test_who_was_submitted_first_goes_on_first_of_those_that_were_resumed_at_once() -> None:
    h = Harness(node(cpu=2))
    for _ in range(8):
        h.exit(h.submit(spec(memory="5MB")))
    elder, younger = (h.submit(spec(memory="5MB")) for _ in range(2))
    assert (elder.id, younger.id) == ("t9", "t10")  # the other way round as words
    for task in (elder, younger):
        h.run(task)
        h.pause(task)
        h.paused(task)
    others = [h.submit(spec(memory="5MB")) for _ in range(2)]
    h.step(*(ev.Resume(request=1, task=task.id) for task in (younger, elder)))
    h.exit(others[0])
    assert (h.now(elder).state, h.now(younger).state) == (State.RUNNING, State.PAUSED)


@pytest.mark.parametrize("at", ["pausing", "paused", "resuming", "suspending", "held"])
def test_cancelled_at_any_time(at: str) -> None:
    h = Harness(node(cpu=1))
    task = running(h)
    if at in ("suspending", "held"):
        h.suspend(task)
        if at == "held":
            h.exit(task, exit_code=75)
    else:
        h.pause(task)
        if at != "pausing":
            h.paused(task)
    if at == "resuming":
        running(h, PROGRAM)
        h.resume(task)
    h.cancel(task)
    if at != "held":
        assert h.stopped[-1].save is False
        h.exit(task, exit_code=None, signal=15)
    assert h.now(task).state is State.CANCELLED
    assert h.now(task).held is None
    assert used(h).cpu == (1000 if at == "resuming" else 0)


def test_going_down_saves_paused_trainings_and_leaves_frozen_programs() -> None:
    h = Harness()
    train, program = running(h), running(h, PROGRAM)
    for task in (train, program):
        h.pause(task)
        h.paused(task)
    h.step(ev.Shutdown(suspend=True))
    assert [(a.task, a.save) for a in h.stopped] == [(train.id, True)]
    h.exit(train, exit_code=75)
    assert (h.now(train).state, h.now(train).held) == (State.QUEUED, "pause")
    h = h.restarted()
    assert h.now(train).state is State.QUEUED
    assert h.now(program).state is State.PAUSED
    h.resume(train)
    assert h.now(train).state is State.STARTING


def test_another_numerics_holds_a_training_until_it_may_be_inexact() -> None:
    h = Harness()
    task = running(h)
    h.exit(task, exit_code=1, error="cannot resume bit for bit", code="numerics")
    assert (h.now(task).state, h.now(task).held) == (State.QUEUED, "numerics")
    h.resume(task, inexact=True)
    work = h.now(task).spec.work
    assert isinstance(work, TrainSpec)
    assert work.inexact
    assert h.started[-1].spec.work == work


def test_a_niced_task_takes_its_place_by_its_new_priority() -> None:
    h = Harness(node(cpu=1))
    first = running(h, PROGRAM)
    one, two, three = (h.submit(spec()) for _ in range(3))
    h.wait(1)
    h.nice(three, 90)
    assert h.nice(two, 10).spec.priority == 10
    h.nice(two, 50)
    h = h.restarted()
    order = [one, two]
    h.exit(first)
    for task in (three, *order):
        assert h.now(task).state is State.STARTING, task.id
        h.exit(task)


def test_what_cannot_be_is_said_in_words() -> None:
    h = Harness(node(cpu=4))
    program, ended = running(h, PROGRAM), running(h, PROGRAM)
    h.exit(ended)
    starting = h.submit(spec(cpu=0))
    h.ask(ev.Deploy(request=1, spec=DeploymentSpec(model="alpha", min_replicas=1, memory="100MB")))
    (replica,) = (t for t in h.kernel.state.tasks.values() if t.kind == "serve")
    h.run(replica)
    for verb in (h.pause, h.suspend):
        with pytest.raises(RefusedError, match=r"is a replica.*zenos stop"):
            verb(replica)
        with pytest.raises(ConflictError, match=r"it has ended .succeeded."):
            verb(ended)
        with pytest.raises(ConflictError, match="just starting"):
            verb(starting)
    with pytest.raises(RefusedError, match=r"--yields signals or helper.*zenos pause t1"):
        h.suspend(program)
    with pytest.raises(ConflictError, match="running, neither paused nor held"):
        h.resume(program)
    with pytest.raises(InvalidError, match="no training"):
        h.resume(program, inexact=True)
    with pytest.raises(RefusedError, match="deployment's"):
        h.nice(replica, 1)
    for priority in (-1, 101):
        with pytest.raises(InvalidError, match="from 0 to 100"):
            h.nice(program, priority)
    h.pause(program)
    with pytest.raises(ConflictError, match="being paused already"):
        h.pause(program)
    h.paused(program)
    with pytest.raises(ConflictError, match="paused already"):
        h.pause(program)
    with pytest.raises(NotFoundError):
        h.ask(ev.Pause(request=0, task="t99"))
    stranger = Principal(user="eve", project="other")
    for event in (ev.Pause, ev.Suspend, ev.Resume):
        with pytest.raises(RefusedError, match="belongs to local"):
            h.ask(event(request=0, task=program.id, principal=stranger))


def test_who_gives_way_to_another_can_be_held_meanwhile() -> None:
    h = Harness(node(cpu=1))
    low = h.submit(spec(TRAIN))
    h.run(low)
    h.wait(60)
    high = h.submit(spec(priority=75))
    assert h.now(low).state is State.SUSPENDING
    assert h.suspend(low).held == "suspend"
    with pytest.raises(ConflictError, match="it is being suspended"):
        h.suspend(low)
    h.exit(low, exit_code=75)
    h.run(high)
    h.exit(high)
    assert (h.now(low).state, h.now(low).held) == (State.QUEUED, "suspend")
    h.resume(low)
    assert h.now(low).state is State.STARTING
