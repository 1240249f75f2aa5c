"""Tasks that come after others: when they start, and how they end when they can't."""

from __future__ import annotations

import pytest

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core.actions import Reply
from zenos.core.config import Config
from zenos.core.errors import InvalidError, NotFoundError, RefusedError
from zenos.core.task import Principal, State, Task


def chain(h: Harness, length: int) -> list[Task]:
    """Each after the one before; all could run at once."""
    tasks = [h.submit(spec(cpu=0.1, memory="5MB", name="first"))]
    for _ in range(length - 1):
        tasks.append(h.submit(spec(cpu=0.1, memory="5MB", after=(tasks[-1].id,))))
    return tasks


def test_a_child_starts_once_its_parent_has_succeeded_and_waits_since_then() -> None:
    h = Harness()
    parent, child = chain(h, 2)
    assert [task.id for task in h.started] == [parent.id]
    h.run(parent)
    h.wait(50_000)  # it is not overdue: it has not waited for its turn
    assert h.kernel.state.waiting_for(h.now(child)) == "comes after first (running)"
    assert h.kernel.state.scheduler.queue.overdue == []
    h.exit(parent)
    assert h.now(child).state is State.STARTING
    assert h.now(child).queued == h.clock.now()
    assert h.now(child).waited_s == 0


@pytest.mark.parametrize("how", ["exit", "cancel", "lose", "shut"])
def test_the_chain_behind_a_failure_is_cancelled_in_the_same_step_with_the_cause(how: str) -> None:
    h = Harness()
    first, second, third, other = *chain(h, 3), h.submit(spec(cpu=0.1, memory="5MB"))
    h.run(first)
    if how == "exit":
        h.exit(first, exit_code=3)
    elif how == "lose":
        h.lose(first)
    elif how == "cancel":
        h.cancel(first)
        h.exit(first, exit_code=None, signal=15)
    else:
        h.cancel(second)
    said = {
        "exit": "t1 has failed",
        "lose": "t1 is lost",
        "cancel": "t1 was cancelled",
        "shut": "t2 was cancelled",
    }[how]
    changed = h.steps[-1].changes.tasks
    assert h.now(third).state is State.CANCELLED
    assert changed[third.id].state is State.CANCELLED
    assert h.now(third).stopping == said
    outcome = h.now(third).outcome
    assert outcome is not None
    assert outcome.error == f"cannot start: it comes after the success of t2, and {said}"
    assert not h.now(other).is_ended
    assert h.kernel.state.children == ({} if how != "shut" else {"t1": {"t2": None}})


def test_a_long_chain_ends_at_once() -> None:
    h = Harness()
    tasks = chain(h, 200)
    h.run(tasks[0])
    h.exit(tasks[0], exit_code=1)
    assert {h.now(task).state for task in tasks[1:]} == {State.CANCELLED}
    assert h.now(tasks[-1]).stopping == "t1 has failed"


def test_any_end_will_do_where_that_is_said() -> None:
    h = Harness()
    parent = h.submit(spec(cpu=0.1, name="job"))
    child = h.submit(spec(cpu=0.1, after=("any:job",)))
    both = h.submit(spec(cpu=0.1, after=("any:job", child.id)))
    assert h.now(both).after == ("any:t1", "t2")
    h.run(parent)
    h.exit(parent, exit_code=9)
    assert h.now(child).state is State.STARTING
    assert h.kernel.state.waiting_for(h.now(both)) == "comes after t2 (starting)"
    h.run(child)
    h.exit(child)
    assert h.now(both).state is State.STARTING


def test_a_retry_is_no_end() -> None:
    h = Harness()
    parent = h.submit(spec(retries=1))
    child = h.submit(spec(after=(parent.id,)))
    h.run(parent)
    h.exit(parent, exit_code=1)
    assert h.now(child).state is State.QUEUED
    h.wait(10)
    h.run(parent)
    h.exit(parent)
    assert h.now(child).state is State.STARTING


def test_a_parent_that_has_ended_counts_at_once() -> None:
    h = Harness()
    good, bad = h.submit(spec(name="good")), h.submit(spec(name="bad"))
    for task, code in ((good, 0), (bad, 1)):
        h.run(task)
        h.exit(task, exit_code=code)
    assert h.now(h.submit(spec(after=("good", "any:bad")))).state is State.STARTING
    child = h.submit(spec(after=("good", "bad")))
    assert (child.state, child.stopping) == (State.CANCELLED, "t2 has failed")


def test_a_name_means_the_newest_task_of_it_at_the_submission() -> None:
    h = Harness()
    first = h.submit(spec(cpu=0.1, name="job"))
    second = h.submit(spec(cpu=0.1, name="job"))
    child = h.submit(spec(cpu=0.1, name="job", after=("job",)))  # not itself
    assert child.after == (second.id,)
    h.run(first)
    h.exit(first, exit_code=1)
    h.run(second)
    h.exit(second)
    assert h.now(child).state is State.STARTING


def test_who_cannot_be_waited_for_is_said() -> None:
    h = Harness(config=Config(ended_tasks_kept=0))
    gone = h.submit(spec())
    h.run(gone)
    h.exit(gone)
    assert gone.id not in h.kernel.state.tasks
    with pytest.raises(NotFoundError, match=r"cannot wait for t1: it has ended and been forgotten"):
        h.submit(spec(after=("t1",)))
    for name in ("t2", "t3", "nobody", "t99999999999"):
        with pytest.raises(NotFoundError, match=f"cannot wait for '{name}': there is no such task"):
            h.submit(spec(after=(name,)))
    for wrong in ("", "any:", "a b", "any:any:t1", "../x", "x" * 65):
        with pytest.raises(InvalidError):
            h.submit(spec(after=(wrong,)))
    with pytest.raises(InvalidError, match="at most 1000"):
        h.submit(spec(after=("x",) * 1001))
    theirs = h.submit(spec(), principal=Principal(user="you", project="other"))
    with pytest.raises(RefusedError, match="of another project"):
        h.submit(spec(after=(theirs.id,)), principal=Principal(user="me", project="mine"))
    assert len(h.kernel.state.tasks) == 1
    assert h.submit(spec(after=(theirs.id,))).after == (theirs.id,)  # the operator may


def test_who_is_held_meanwhile_waits_for_both() -> None:
    h = Harness()
    parent, child = chain(h, 2)
    h.suspend(child)
    h.run(parent)
    h.exit(parent)
    assert h.now(child).state is State.QUEUED
    h.resume(child)
    assert h.now(child).state is State.STARTING
    parent, child = chain(h, 2)
    h.suspend(child)
    h.cancel(parent)
    h.exit(parent, exit_code=None, signal=15)
    assert h.now(child).state is State.CANCELLED


def test_the_same_key_is_answered_with_the_same_child_whoever_has_the_name_by_then() -> None:
    h = Harness()
    h.submit(spec(cpu=0.1, name="job"))
    child = h.submit(spec(cpu=0.1, after=("job",)), key="k")
    h.submit(spec(cpu=0.1, name="job"))
    assert h.submit(spec(cpu=0.1, after=("job",)), key="k") == child


def test_an_end_and_a_submission_in_one_step_are_taken_in_order() -> None:
    h = Harness()
    parent = h.submit(spec())
    h.run(parent)
    ended = ev.Cancel(request=1, task=parent.id)
    submitted = ev.Submit(request=2, spec=spec(after=(parent.id,)))
    answers = [a.result for a in h.step(ended, submitted).actions if isinstance(a, Reply)]
    child = answers[1]
    assert isinstance(child, Task)
    assert child.state is State.QUEUED  # its parent is only being ended
    h.exit(parent, exit_code=None, signal=15)
    assert h.now(child).state is State.CANCELLED


def test_a_restart_between_forgets_nothing() -> None:
    h = Harness(node(cpu=1), config=Config(ended_tasks_kept=1))
    first, second = h.submit(spec(name="a")), h.submit(spec(name="b"))
    child = h.submit(spec(after=("a", "b")))
    h.run(first)
    h.exit(first)
    h = h.restarted()
    assert h.kernel.state.waiting_for(h.now(child)) == "comes after b (starting)"
    h.run(second)
    h = h.restarted()
    h.exit(second)  # and the first is forgotten
    assert first.id not in h.kernel.state.tasks
    assert h.now(child).state is State.STARTING
