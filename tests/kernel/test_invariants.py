"""The check that all other tests of the kernel count on finds what is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core.resources import Resources
from zenos.core.task import State, Task
from zenos.kernel.invariants import InvariantError


class Broken:
    """A kernel with a task that runs and one that waits, to be damaged in its state alone."""

    def __init__(self) -> None:
        h = Harness(node(cpu=1, gpu=2))
        running = h.submit(spec(gpu=0.5))
        h.run(running)
        self.state = h.kernel.state
        self.waiting = h.now(h.submit(spec()))
        self.running = h.now(running)
        self.pool = self.state.resources.pools["local"]
        self.state.check()

    def change(self, task: Task, **fields: Any) -> None:
        """As if the kernel had forgotten all else that hangs on them."""
        self.state.tasks[task.id] = replace(task, **fields)

    def end_of_waiting(self) -> None:
        self.state.scheduler.queue.remove(self.waiting.id)
        self.change(self.waiting, state=State.CANCELLED)

    def less_held(self) -> None:
        assert self.running.allocation is not None
        less = replace(self.running.allocation, resources=Resources(cpu=1))
        self.change(self.running, allocation=less)


BREAKS: dict[str, tuple[Callable[[Broken], object], str]] = {
    "at work without a share": (
        lambda b: b.change(b.running, allocation=None),
        "running with allocation None",
    ),
    "a share after the end": (
        lambda b: b.change(b.running, state=State.SUCCEEDED),
        "succeeded with allocation",
    ),
    "a share that was never given back": (
        lambda b: setattr(b.pool, "used", b.pool.used + Resources(cpu=1)),
        "local: counts .*, tasks hold",
    ),
    "a device that nobody holds": (
        lambda b: b.pool.gpu_used.__setitem__(1, 600),
        "local: counts GPUs",
    ),
    "more given out than there is": (
        lambda b: setattr(b.pool, "node", replace(b.pool.node, capacity=Resources(cpu=500))),
        "local: .* given out",
    ),
    "free that is no difference": (
        lambda b: setattr(b.pool, "free", b.pool.free + Resources(memory=1)),
        "local: .* given out",
    ),
    "waiting where nobody looks": (
        lambda b: b.state.scheduler.queue.remove(b.waiting.id),
        "queued, and waits in 0 queues",
    ),
    "waiting twice": (
        lambda b: b.state.delayed.add(b.waiting.id),
        "queued, and waits in 2 queues",
    ),
    "no generation": (
        lambda b: b.change(b.running, generation=0),
        "running without a generation",
    ),
    "an end without its time": (Broken.end_of_waiting, "cancelled with end None"),
    "less held than was asked for": (Broken.less_held, "running, and holds"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_found(what: str) -> None:
    damage, told = BREAKS[what]
    broken = Broken()
    damage(broken)
    with pytest.raises(InvariantError, match=told):
        broken.state.check()
