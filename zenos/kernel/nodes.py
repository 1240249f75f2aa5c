"""Nodes come, go and come back; people keep work from them. What follows for what runs there.

A node with a lease says every so often that it is there (`NodeBeat`). When it has said nothing for
as long as the lease, it is lost, and all that ran there with it: each task of which a part ran
there is dealt with by its kind (`supervision.node_lost`), and what of it runs elsewhere is told to
end. When the node comes back it says which workers it still has. Those are of generations that
nobody waits for any more, and are told to end: so no two generations of a task work for long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zenos.core import audit
from zenos.core import events as ev
from zenos.core.actions import StartWorker, StopWorker
from zenos.core.errors import NotFoundError
from zenos.core.node import Node
from zenos.core.resources import Resources
from zenos.core.task import Kind, State, Task
from zenos.core.wording import nearest
from zenos.kernel import supervision
from zenos.kernel.entries import order_of
from zenos.kernel.pool import NODES_NAMED_MAX, why_never
from zenos.kernel.resource_manager import ResourceManager, fits_once_open

if TYPE_CHECKING:
    from zenos.kernel.step import Kernel

ACTIONS: Final[dict[str | None, audit.Action]] = {
    None: "uncordon",
    "cordon": "cordon",
    "drain": "drain",
}
SUSPENDABLE: Final = (State.RUNNING, State.PAUSING, State.PAUSED)


def take(
    kernel: Kernel,
    event: ev.NodeUp | ev.NodeBeat | ev.NodeDown | ev.SetCordon | ev.Measured,
    now: float,
) -> None:
    """What is said of a node. Of one that isn't known only that it is there means anything."""
    match event:
        case ev.NodeUp():
            up(kernel, event, now)
            kernel.tell_again(now)
        case ev.NodeBeat():
            if event.node in kernel.state.heard:
                kernel.state.heard[event.node] = now
        case ev.NodeDown():
            node = kernel.state.nodes.get(event.node)
            if node is not None and node.lost is None:
                lose(kernel, node, event.reason, now)
        case ev.Measured():
            known = kernel.state.nodes.get(event.node)
            if known is not None:
                kernel.state.put_node(replace(known, measured=event.measured))
        case ev.SetCordon():
            action = ACTIONS[event.cordon]
            kernel.audit.answer(event, action, lambda: set_cordon(kernel, event), now)


def up(kernel: Kernel, event: ev.NodeUp, now: float) -> None:
    """A node is there. What people have said of it holds on.

    1. The workers that are to run there are told again what they are to do: it may not have heard.
    2. One that was to be started, and of which it knows nothing, is.
    3. Any other of which it knows nothing is lost: it was started anew, sooner than it was missed.
    4. Workers of which nothing is to run there are told to end.
    """
    state = kernel.state
    known = state.nodes.get(event.node.name)
    cordon = known.cordon if known is not None else event.node.cordon
    node = state.put_node(replace(event.node, cordon=cordon, lost=None))
    state.heard.pop(node.name, None)
    if node.lease_s is not None:
        state.heard[node.name] = now
    if event.running is None:
        return
    there = set(event.running)
    for task in _on(kernel, node.name):
        if (task.id, task.generation) in there:  # 1
            kernel.tell(task, now)
        elif task.state is State.STARTING and not task.stopping:  # 2
            kernel.actions.append(StartWorker(task=task))
        else:  # 3
            _lose_task(kernel, task, node.name, "it came back without its worker", now)
    here = {(task.id, task.generation) for task in _on(kernel, node.name)}
    for task_id, generation in sorted(there - here):  # 4
        kernel.actions.append(_kill(task_id, generation))


def lose(kernel: Kernel, node: Node, reason: str, now: float) -> None:
    """A node is gone, and all that ran there."""
    kernel.state.heard.pop(node.name, None)
    for task in _on(kernel, node.name):
        _lose_task(kernel, task, node.name, reason, now)
    kernel.state.put_node(replace(node, lost=now))


def set_cordon(kernel: Kernel, event: ev.SetCordon) -> Node:
    """Have nothing new start on a node, or let it."""
    node = kernel.state.nodes.get(event.node)
    if node is None:
        hint = nearest(event.node, list(kernel.state.nodes))
        raise NotFoundError(
            f"cannot find the node {event.node!r}{hint or ': zenos node list lists them'}"
        )
    if node.cordon == event.cordon:
        kernel.unchanged = True
        return node
    changed = replace(node, cordon=event.cordon)
    if node.name in kernel.state.resources.pools:
        return kernel.state.put_node(changed)
    kernel.state.nodes[node.name] = kernel.state.changes.nodes[node.name] = changed
    return changed


def kept_out(request: Resources, workers: int, nodes: Sequence[Node]) -> str:
    """Which nodes a task waits for to take work again, in words; empty where it needn't."""
    closed = [node for node in nodes if not node.takes_work]
    if not closed:
        return ""
    manager = ResourceManager()
    for node in nodes:
        manager.add(node, ())
    if manager.could_ever_hold(request, workers) or not fits_once_open(request, workers, nodes):
        return ""
    able = [node for node in closed if not why_never(request, [node])] or closed
    told = [f"node {node.name} is {node.standing}" for node in able[:NODES_NAMED_MAX]]
    return ", ".join(told)


def enforce(kernel: Kernel, now: float) -> None:
    """What time, and a drain, do.

    1. A node that was not heard of for as long as its lease is lost. After a restart of the daemon
       each has its whole lease again: nobody could hear them meanwhile.
    2. On a drained node what can save its state does, and goes back to the queue; replicas answer
       what they have and end. Everything else runs to its end.
    """
    state = kernel.state
    for name, node in list(state.nodes.items()) if kernel.fresh_leases else ():  # 1
        if node.lease_s is not None and node.lost is None:
            state.heard.setdefault(name, now)
    kernel.fresh_leases = False
    for name in [name for name in state.heard if _ends_at(kernel, name) <= now]:
        node = state.nodes[name]
        lose(kernel, node, f"nothing was heard of it for {node.lease_s:g} s", now)
    for name in sorted(state.drained):  # 2
        for task in _on(kernel, name):
            _send_away(kernel, task, name, now)


def next_wake(kernel: Kernel) -> float:
    """When the next lease is over; infinity without any."""
    return min((_ends_at(kernel, name) for name in kernel.state.heard), default=math.inf)


def _ends_at(kernel: Kernel, name: str) -> float:
    lease_s = kernel.state.nodes[name].lease_s
    return math.inf if lease_s is None else kernel.state.heard[name] + lease_s


def _send_away(kernel: Kernel, task: Task, node: str, now: float) -> None:
    if task.stopping:
        return
    if task.kind is Kind.SERVE:
        kernel.stop(task, "drained", now)
    elif task.can_save and task.state in SUSPENDABLE:
        saving = replace(task, state=State.SUSPENDING, yield_by=None, resuming=None)
        why = f"the node {node} is drained"
        kernel.stop(task, "suspend", now, into=saving, event="suspending", detail=why)


def _lose_task(kernel: Kernel, task: Task, node: str, reason: str, now: float) -> None:
    """Of a gang the other parts may run on: they are told to end, as is whatever is left there."""
    kernel.actions.append(_kill(task.id, task.generation))
    supervision.node_lost(kernel, task, node, reason, now)


def _kill(task: str, generation: int) -> StopWorker:
    return StopWorker(task=task, generation=generation, grace_s=0.0)


def _on(kernel: Kernel, node: str) -> list[Task]:
    """The tasks of which a part runs there, in the order of their submission."""
    there = sorted(kernel.state.on_node.get(node, ()), key=order_of)
    return [kernel.state.tasks[task_id] for task_id in there]
