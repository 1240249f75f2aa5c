"""Hosts of calls give way to what waits for their room.

The kernel doesn't know whether a host is idle, since calls don't go through it. So it says which
hosts others wait for, and each decides: it ends once it has had no call for a moment, rather than
after its keep-alive. So no call is ever interrupted, and there is no race with one that comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenos.core.actions import MakeRoom
from zenos.core.resources import Resources
from zenos.core.task import State, Task
from zenos.kernel import quota_room, scheduler

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel


class Hosts:
    """Which were told that others wait for their room. After a restart they are told again."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._told: dict[str, int] = {}  # generation, by task

    def give_way(self, now: float) -> None:
        """After scheduling: say to hosts what is new.

        1. In the order in which they would start, tasks want room on the first node where what is
           free, what comes back already, and hosts of at most their priority have enough of it, or
           a gang on several; where a quota of theirs is full, hosts of the same owner's have to
           make room in that.
        2. All those hosts are told: which of them are idle is not known.
        3. Those for which nobody waits any more are told so.
        """
        state = self._kernel.state
        if not state.hosts and not self._told:
            return
        wanted = self._wanted(now)
        for task_id, generation in [*self._told.items()]:  # 3
            if wanted.get(task_id) != generation:
                del self._told[task_id]
                task = state.tasks.get(task_id)
                if task is not None and task.generation == generation and not task.is_ended:
                    self._say(task, on=False)
        for task_id in sorted(wanted.keys() - self._told.keys(), key=scheduler.order_of):  # 2
            self._told[task_id] = wanted[task_id]
            self._say(state.tasks[task_id], on=True)

    def _say(self, task: Task, *, on: bool) -> None:
        self._kernel.actions.append(MakeRoom(task=task.id, generation=task.generation, on=on))

    def _wanted(self, now: float) -> dict[str, int]:
        state = self._kernel.state
        queue = state.scheduler.queue
        hosts = [
            task
            for task in (state.tasks[task_id] for task_id in state.hosts)
            if task.state is State.RUNNING and not task.stopping
        ]
        if not hosts or not len(queue) or self._kernel.draining:
            return {}
        wanted: dict[str, int] = {}
        coming = self._kernel.giving_way.coming()
        for entry in quota_room.waiting(state, now):  # 1
            key = entry.key
            own = [quota_room.Giver(h, h.granted) for h in hosts if h.spec.priority <= key.priority]
            if (owned := quota_room.enough(state, entry, own)) is None:
                continue
            left: dict[str, Resources] = {}
            told = [giver.task for giver in owned]
            parts = state.resources.parts(key.shape)
            for part in parts:
                able = (name for name in coming if state.resources.is_able(name, part))
                for name in [name for name in able if name not in left]:
                    here = [] if part.fits_in(coming[name]) else _of(hosts, name, key.priority)
                    room = sum((held for _, held in here), coming[name])
                    if part.fits_in(room):
                        left[name] = room - part
                        told += [task for task, _ in here]
                        break
            if left and len(left) == len(parts):
                coming.update(left)
                hosts = [host for host in hosts if host not in told]
                wanted |= {task.id: task.generation for task in told}
        return wanted


def _of(hosts: list[Task], node: str, priority: int) -> list[tuple[Task, Resources]]:
    return [
        (task, task.allocation.resources)
        for task in hosts
        if task.allocation is not None
        and task.allocation.node == node
        and task.spec.priority <= priority
    ]
