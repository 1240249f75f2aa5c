"""What would let a task start now: each thing that might is done to a copy of the kernel.

Told is only what works there. Nothing here knows the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from zenos.core import events as ev
from zenos.core import limits
from zenos.core.node import Node
from zenos.core.outlook import Lack, Picture, Remedy
from zenos.core.quotas import accounts_of, shown
from zenos.core.resources import Resources, show_some
from zenos.core.task import HOLDING, Kind, Outcome, State, Task
from zenos.kernel.entries import order_of
from zenos.kernel.forecast import Forecast
from zenos.kernel.placement import WHOLE
from zenos.kernel.rebuilt import build

PRIORITIES_TRIED_MAX: Final = 12
ENDS_TRIED_MAX: Final = 24
ENDS_TOLD_MAX: Final = 5
NODES_TRIED_MAX: Final = 4
OWNERS_TRIED_MAX: Final = 4


class Trial(Forecast):
    """A copy on which something is done, at one instant.

    Its workers do what they are asked to, at once, and nothing by themselves: those that are told
    to end do, those that are to pause have paused.
    """

    def __init__(self, picture: Picture, *events: ev.Event) -> None:
        super().__init__(picture)
        self.left: list[str] = []  # whose workers have ended, beside those of the events
        self._step(list(events))
        while self._coming and self._coming[0][0] <= self.now:
            due = self._due()
            self.left += [event.task for event in due if isinstance(event, ev.WorkerExited)]
            self._step(due)

    def runs(self, task_id: str) -> bool:
        """Whether the task has started, or goes on."""
        state = self.kernel.state.tasks[task_id].state
        return state in HOLDING and state not in (State.PAUSING, State.PAUSED, State.SUSPENDING)

    def _set_out(self) -> None:
        pass  # what is asked of models at this instant goes on

    def _started(self, task: Task) -> None:
        pass

    def _works(self, task: Task) -> None:
        pass


def remedies(
    picture: Picture, task: Task, lacks: Sequence[Lack], enough: Callable[[], bool]
) -> list[Remedy]:
    """What would let it start now, each by itself; nothing where it starts anyway.

    1. That somebody resumes it, if it is held.
    2. A higher priority: the lowest that does it.
    3. The end of one task on a node that could hold it; where that isn't enough, of several.
    4. The same, of those that hold what a quota of its owner has no more of.
    5. What it lacks, being there on a node.
    6. That nothing is held back for another any more.
    7. That a node which is cordoned or drained takes work again.
    """
    if Trial(picture).runs(task.id):
        return []
    found: list[Remedy] = []
    for ways in (_resumed, _higher, _ends, _ends_in_quota, _larger, _dropped, _uncordoned):
        for remedy, events in ways(picture, task, lacks):
            if enough():
                return found
            if len(remedy.tasks) > 1 and any(one.kind == "end" for one in found):
                break  # one alone does it
            if remedy.kind == "end" and remedy.tasks in [one.tasks for one in found]:
                continue  # it holds of both
            trial = Trial(picture, *events)
            if trial.runs(task.id):
                yields = [name for name in dict.fromkeys(trial.left) if name != task.id]
                found.append(_told(remedy, yields))
                if _is_enough(remedy, found):
                    break
    return found


Ways = Iterator[tuple[Remedy, list[ev.Event]]]


def _is_enough(remedy: Remedy, found: list[Remedy]) -> bool:
    """Of priorities the lowest is told, of sets of tasks the first."""
    if remedy.kind == "end":
        ends = [one for one in found if one.kind == "end"]
        return len(ends) >= ENDS_TOLD_MAX or len(remedy.tasks) > 1
    return remedy.kind == "priority"


def _resumed(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if task.held is None:
        return
    inexact = task.held == "numerics"
    event = ev.Resume(request=0, task=task.id, inexact=inexact, principal=task.principal)
    words = f"zenos resume {'--inexact ' if inexact else ''}{task.id}"
    yield Remedy(kind="resume", text=words, tasks=[task.id]), [event]


def _higher(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task) or task.kind is Kind.SERVE:
        return
    own = task.spec.priority
    others = {other.spec.priority for other in picture.tasks if other.id != task.id}
    tried = {min(p + more, limits.PRIORITY_MAX) for p in others for more in (0, 1) if p >= own}
    for value in sorted(p for p in tried if p > own)[:PRIORITIES_TRIED_MAX]:
        event = ev.Nice(request=0, task=task.id, priority=value, principal=task.principal)
        yield Remedy(kind="priority", text=f"priority {value}", priority=value), [event]


def _ends(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task) and task.resuming is None:
        return
    nodes = [lack.node for lack in lacks][:NODES_TRIED_MAX]
    there: dict[str, list[Task]] = {name: [] for name in nodes}
    for other in picture.tasks:
        held = other.allocation.parts if other.allocation is not None else ()
        for part in held if other.id != task.id and not other.stopping else ():
            if part.node in there:
                there[part.node].append(other)
    for tasks in there.values():
        tasks.sort(key=lambda t: (t.spec.priority, t.spec.resources.cpu, order_of(t.id)))
    alone: dict[str, tuple[Task, str]] = {}  # a gang on several nodes is asked about once
    for name in nodes:
        for other in there[name]:
            alone.setdefault(other.id, (other, name))
    for other, name in [*alone.values()][:ENDS_TRIED_MAX]:
        yield _end_on([other], name), [_exited(other)]
    for name in nodes:
        for count in range(2, min(len(there[name]), ENDS_TRIED_MAX) + 1):
            several = there[name][:count]
            yield _end_on(several, name), [_exited(other) for other in several]


def _ends_in_quota(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task):
        return
    who = task.principal
    lack = build(picture).state.accounts.lack(who.user, who.project, task.spec.request)
    if lack is None or lack.what == "gpu_hours":
        return  # no end of a task brings hours back
    holders: list[Task] = []
    for other in picture.tasks:
        holds = other.state in HOLDING and getattr(other.granted, lack.what)
        if holds and not other.stopping and lack.account in accounts_of(other.principal):
            holders.append(other)
    holders.sort(key=lambda t: (t.spec.priority, getattr(t.granted, lack.what), order_of(t.id)))
    holders = [other for other in holders if other.id != task.id][:ENDS_TRIED_MAX]
    sets = [[other] for other in holders]
    sets += [holders[:count] for count in range(2, len(holders) + 1)]
    of = f" of what {shown(lack.account)} may hold"
    for tasks in sets:
        held = sum((other.granted for other in tasks), Resources())
        yield _end(tasks, held, of), [_exited(other) for other in tasks]


def _end_on(tasks: list[Task], node: str) -> Remedy:
    parts = (task.allocation.on(node) for task in tasks if task.allocation is not None)
    held = sum((part.resources for part in parts if part is not None), Resources())
    return replace(_end(tasks, held, f" on {node}"), node=node)


def _end(tasks: list[Task], held: Resources, where: str) -> Remedy:
    names = ", ".join(named(task) for task in tasks)
    verb = "holds" if len(tasks) == 1 else "hold"
    return Remedy(
        kind="end",
        text=f"the end of {names} ({verb} {show_some(held)}{where})",
        tasks=[task.id for task in tasks],
        resources=held,
    )


def _exited(task: Task) -> ev.Event:
    return ev.WorkerExited(task=task.id, generation=task.generation, outcome=Outcome(exit_code=0))


def _larger(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task) and task.resuming is None:
        return
    nodes = {node.name: node for node in picture.nodes}
    for lack in lacks[:NODES_TRIED_MAX]:
        grown, more = _grown(nodes[lack.node], lack, task.spec.resources)
        remedy = Remedy(
            kind="node",
            text=f"{show_some(more)} more, free on {lack.node}",
            node=lack.node,
            resources=more,
        )
        yield remedy, [ev.NodeUp(node=grown)]


def _grown(node: Node, lack: Lack, request: Resources) -> tuple[Node, Resources]:
    """The node with what is lacking, GPUs being whole there; and what that is."""
    more = lack.lacks
    if more.gpu or more.gpu_memory or lack.in_pieces:
        count = -(-max(more.gpu, WHOLE if lack.in_pieces or more.gpu_memory else 0) // WHOLE)
        if lack.in_pieces and request.gpu > WHOLE:
            count = request.gpu // WHOLE
        memory = count * node.gpu_memory_each
        more = replace(more, gpu=count * WHOLE, gpu_memory=memory)
        node = replace(node, gpus=node.gpus + count)
    if node.measured is not None:
        left = node.measured.memory_left + more.memory
        node = replace(node, measured=replace(node.measured, memory_left=left))
    return replace(node, capacity=node.capacity + more), more


def _dropped(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task):
        return
    able = {lack.node for lack in lacks}
    held = [*picture.reservation, *picture.claims]
    known = {other.id: other for other in picture.tasks}
    for row in [row for row in held if row.task != task.id and row.node in able][:OWNERS_TRIED_MAX]:
        owner = known[row.task]
        if owner.kind is Kind.SERVE:
            continue  # another would be made in its place
        event = ev.Cancel(request=0, task=owner.id, principal=owner.principal)
        words = f"zenos cancel {owner.id}, for which {show_some(row.request)} is held back"
        text = f"{words} on {row.node}"
        yield Remedy(kind="cancel", text=text, tasks=[owner.id], node=row.node), [event]


def _uncordoned(picture: Picture, task: Task, lacks: Sequence[Lack]) -> Ways:
    if not _is_in_queue(picture, task):
        return
    kept = [node for node in picture.nodes if node.cordon is not None and node.lost is None]
    for node in kept[:NODES_TRIED_MAX]:
        event = ev.SetCordon(request=0, node=node.name, cordon=None, principal=task.principal)
        words = f"zenos node uncordon {node.name}"
        yield Remedy(kind="uncordon", text=words, node=node.name), [event]


def _is_in_queue(picture: Picture, task: Task) -> bool:
    return task.state is State.QUEUED and task.held is None and task.not_before <= picture.now


def _told(remedy: Remedy, yields: list[str]) -> Remedy:
    if not yields:
        return remedy
    who = ", ".join(yields)
    verb = "gives" if len(yields) == 1 else "give"
    return replace(remedy, text=f"{remedy.text}: {who} {verb} way", yields=yields)


def named(task: Task) -> str:
    """`t7 (name)`."""
    return f"{task.id} ({task.label})" if task.label else task.id
