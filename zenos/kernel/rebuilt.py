"""A kernel from a picture: it decides as the one of which the picture was taken.

So `zenos why` and `zenos plan` ask the policy itself, and there is no second one. What it decides
is for nobody: try anything out on it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from zenos.core.actions import Snapshot
from zenos.core.outlook import Held, Picture
from zenos.kernel.entries import Shape
from zenos.kernel.scheduler import Claim, Place, Reservation
from zenos.kernel.step import Kernel
from zenos.kernel.victims import EVERYBODY


def build(picture: Picture) -> Kernel:
    """A kernel of its own in that state. Its actions are for nobody."""
    kernel = Kernel(
        picture.config,
        Snapshot(
            now=picture.now,
            next_task=picture.next_task,
            tasks={task.id: task for task in picture.tasks},
            arrays=dict(picture.arrays),
            nodes={node.name: node for node in picture.nodes},
            usage=dict(picture.usage),
            deployments={row.name: row for row in picture.deployments},
        ),
    )
    state = kernel.state
    kernel.preemption.at_once = EVERYBODY  # no event waits for it
    kernel.told_again()
    for node in picture.nodes:
        state.put_node(replace(node, lease_s=None))  # nobody says here that it is there
    kernel.draining = picture.draining
    if picture.reservation:
        spec = state.tasks[picture.reservation[0].task].spec
        state.scheduler.reservation = Reservation(
            picture.reservation[0].task,
            Shape(spec.request, spec.workers),
            _places(picture.reservation),
        )
    for task, held in itertools.groupby(picture.claims, key=lambda row: row.task):
        rows = list(held)
        victims = frozenset((task, generation) for task, generation in rows[0].victims)
        state.scheduler.claims[task] = Claim(_places(rows), victims)
    kernel.preemption.renew_claims()
    state.scheduler.resuming = dict(picture.resuming)
    for task_id in picture.overdue_running:
        state.started_overdue(state.tasks[task_id])
    kernel.preemption.given_way.update(
        (task_id, tuple(times)) for task_id, times in picture.given_way.items()
    )
    asking = state.asking
    asking.in_flight, asking.used_at = dict(picture.in_flight), dict(picture.used_at)
    asking.unanswered, asking.asked_at = dict(picture.unanswered), dict(picture.asked_at)
    asking.needed_at = {name: list(times) for name, times in picture.needed_at.items()}
    asking.unloaded, asking.ready_at = set(picture.unloaded), dict(picture.ready_at)
    state.scheduler.queue.collect_overdue(picture.now)
    return kernel


def _places(rows: Sequence[Held]) -> tuple[Place, ...]:
    return tuple(Place(row.node, row.request, row.coming) for row in rows)


def order(kernel: Kernel, now: float) -> Iterator[str]:
    """Waiting tasks in the order in which they are tried; takes them out of the kernel's queue.

    The overdue ones as they came, then by score: when the head of a bucket is gone, the next one's
    turn comes by its own.
    """
    queue, contention = kernel.state.scheduler.queue, kernel.state.scheduler.contention()
    for entry in queue.overdue:
        yield entry.task
    waiting = kernel.state.scheduler.ranking(now)
    while waiting:
        entry = heapq.heappop(waiting).entry
        yield entry.task
        queue.remove(entry.task)
        following = queue.head(entry.key)
        if following is not None:
            heapq.heappush(waiting, queue.rank(following, now, contention))
