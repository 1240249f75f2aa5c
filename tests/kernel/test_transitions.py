"""From which state a task may go to which; what isn't in the table cannot happen."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from tests.kernel.harness import Harness, spec
from zenos.core.errors import TransitionError
from zenos.core.task import ENDED, State, Task, check_transition

ENDS = "succeeded failed cancelled lost"
LEGAL = {
    "queued": "starting cancelled failed",
    "starting": f"running queued {ENDS}",
    "running": f"pausing suspending queued {ENDS}",
    "pausing": f"paused running suspending queued {ENDS}",
    "paused": f"running suspending queued {ENDS}",
    "suspending": f"queued {ENDS}",
}
PAIRS = list(itertools.product(State, State))


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda state: str(state))
def test_only_what_the_table_has_is_legal(old: State, new: State) -> None:
    if str(new) in LEGAL.get(str(old), "").split():
        check_transition(old, new)
        return
    with pytest.raises(TransitionError) as caught:
        check_transition(old, new)
    assert caught.value.message == f"cannot go from {old} to {new}"


@pytest.mark.parametrize("new", [state for state in State if state is not State.SUCCEEDED])
def test_the_kernel_takes_over_no_state_that_cannot_follow(new: State) -> None:
    h = Harness()
    done = h.submit(spec())
    h.exit(done)
    ended: Task = h.now(done)
    assert ended.state in ENDED
    with pytest.raises(TransitionError, match=f"from succeeded to {new}"):
        h.kernel.state.put(ended, replace(ended, state=new), h.clock.now(), "by mistake")
    assert h.now(done) is ended
