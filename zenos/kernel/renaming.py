"""The machine has another name now: what is remembered of it, under the new one."""

from __future__ import annotations

from msgspec.structs import replace

from zenos.core.actions import Changes, Snapshot
from zenos.core.task import Allocation


def of_this_machine(snapshot: Snapshot, name: str) -> Changes | None:
    """What has to change so that the daemon's own machine is called `name`; None: nothing.

    Nodes with a lease are others. Those without were this machine, whatever it was called: what
    runs there runs here. A constraint to the old name stays: people wrote it.
    """
    old = {node.name for node in snapshot.nodes.values() if node.lease_s is None} - {name}
    if not old:
        return None
    last = max((snapshot.nodes[one] for one in sorted(old)), key=lambda node: node.lost is None)
    made = Changes(
        now=snapshot.now,
        next_task=snapshot.next_task,
        next_seq=snapshot.next_seq,
        next_audit=snapshot.next_audit,
        deleted_nodes=sorted(old),
    )
    if name not in snapshot.nodes:
        made.nodes[name] = replace(last, name=name)  # with what people have said of it
    for task in snapshot.tasks.values():
        held = task.allocation
        if held is not None and any(part.node in old for part in held.parts):
            made.tasks[task.id] = replace(task, allocation=_moved(held, old, name))
    return made


def _moved(held: Allocation, old: set[str], name: str) -> Allocation:
    return replace(
        held,
        node=name if held.node in old else held.node,
        others=tuple(_moved(other, old, name) for other in held.others),
    )
