"""The policy in its simplest form: it looks at everything, each time."""

from __future__ import annotations

from tests.kernel.reference.quotas import ReferenceQuotas
from tests.kernel.reference.scheduling import ReferenceResources, ReferenceScheduler
from tests.kernel.reference.yielding import ReferencePreemption
from zenos.core.actions import Snapshot
from zenos.core.config import Config
from zenos.kernel.step import Kernel


def reference(config: Config, snapshot: Snapshot | None = None) -> Kernel:
    """A kernel that decides by looking at every task and every node."""
    kernel = Kernel(config, snapshot)
    state = kernel.state
    waiting = [state.scheduler.queue.entry(task_id) for task_id in state.tasks]
    resources = ReferenceResources()
    for pool in state.resources.pools.values():
        there = (state.tasks[task_id] for task_id in state.on_node.get(pool.node.name, ()))
        resources.add(pool.node, [t.allocation for t in there if t.allocation is not None])
    scheduler = ReferenceScheduler(config, resources)
    scheduler.queue.owners = ReferenceQuotas(kernel)
    scheduler.queue.take(entry for entry in waiting if entry is not None)
    state.resources, state.scheduler = resources, scheduler
    kernel.preemption = ReferencePreemption(kernel)
    return kernel
