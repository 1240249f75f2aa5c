"""How long a task that failed waits until it is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.harness import Harness, node, spec
from zenos.core import limits
from zenos.core.task import State
from zenos.kernel.supervision import backoff_s

ids = st.integers(1, 10**9).map(lambda number: f"t{number}")


@given(st.integers(1, 2000), ids)
def test_it_is_doubled_within_its_bounds_and_the_same_each_time(failures: int, task: str) -> None:
    plain_s = min(limits.RETRY_BACKOFF_S * 2.0 ** min(failures - 1, 30), limits.RETRY_BACKOFF_S_MAX)
    found_s = backoff_s(failures, task)
    assert 0.75 * plain_s <= found_s <= plain_s
    assert backoff_s(failures, task) == found_s


def test_tasks_that_failed_together_come_again_apart() -> None:
    h = Harness(node(cpu=20, memory="100GB"))
    tasks = [h.submit(spec(retries=1)) for _ in range(20)]
    for task in tasks:
        h.run(task)
        h.exit(task, exit_code=1)
    again = {h.now(task).not_before for task in tasks}
    assert len(again) == 20
    assert h.clock.now() + 0.75 <= min(again) <= max(again) <= h.clock.now() + 1
    h.wait(1)
    assert {h.now(task).state for task in tasks} == {State.STARTING}
