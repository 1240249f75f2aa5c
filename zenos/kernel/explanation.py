"""Why a task waits, runs where it runs, or ended: asked of the kernel itself, on copies of it.

Its score is what the queue ranks it by, its place the order in which the queue is tried, its start
that of the forecast, and what would let it start now what does so on a copy (`remedies`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from zenos.core import limits, priority
from zenos.core.outlook import HeldBack, Holder, Lack, Picture, Score, Stay, Why
from zenos.core.quotas import accounts_of, shown
from zenos.core.resources import Resources, show_some
from zenos.core.task import Kind, State, Task
from zenos.kernel import scheduler, supervision
from zenos.kernel.entries import Shape
from zenos.kernel.forecast import Forecast
from zenos.kernel.nodes import kept_out
from zenos.kernel.pool import Pool, why_never
from zenos.kernel.rebuilt import build, order
from zenos.kernel.remedies import remedies
from zenos.kernel.step import Kernel

NODES_SHOWN_MAX: Final = 8
HOLDERS_SHOWN_MAX: Final = 10
Enough = Callable[[], bool]


def explain(
    picture: Picture,
    task_id: str,
    tried: Enough = lambda: False,
    seen: Enough = lambda: False,
) -> Why:
    """All of it for a task that has not ended.

    tried: when to look no further for what would help; seen: when to look no further ahead. What
    was found until then is told.
    """
    kernel = build(picture)
    state, now = kernel.state, picture.now
    task = state.tasks[task_id]
    waits = task.state is State.QUEUED
    goes_on = task.state is State.PAUSED and task.resuming is not None
    lacks = _lacks(kernel, task, now) if waits or goes_on else []
    made = Why(
        task=task.id,
        label=task.label,
        state=task.state,
        at=now,
        reason=reason(kernel, task, lacks, now),
        until=_until(task, now),
        waiting=picture.waiting,
        exact=not picture.left_out,
        lacks=lacks,
        held_back=_held_back(picture, lacks) if lacks else [],
        stay=_stay(kernel, task, now) if task.allocation is not None else None,
    )
    if task.kind is not Kind.SERVE:
        expected_s = state.estimates.total(task)[0]
        made = replace(made, expected_s=expected_s, expected_by=picture.sources.get(task.id))
    made = _placed(made, kernel, now)
    if waits or task.state in (State.PAUSED, State.PAUSING):
        made = replace(made, remedies=remedies(picture, task, lacks, tried))
        made = _expected(made, picture, task, seen)
    return made


def ended(task: Task, now: float) -> Why:
    """How an ended task ended."""
    said = task.outcome.describe() if task.outcome is not None else ""
    if task.state is State.CANCELLED:
        words = f"cancelled{f' ({task.stopping})' if task.stopping not in (None, 'cancel') else ''}"
        words += " before it started" if not task.generation else ""
    elif task.state is State.SUCCEEDED:
        words = "succeeded: its worker ended with exit code 0"
    else:
        words = f"{task.state}: {said}" if said else str(task.state)
    if task.attempts > 1:
        words += f"; {task.attempts} runs have failed"
    return Why(
        task=task.id, label=task.label, state=task.state, at=now, reason=words, until=task.ended
    )


# -- in a sentence


def reason(kernel: Kernel, task: Task, lacks: list[Lack], now: float) -> str:
    """Why a task is in the state that it is in."""
    if task.stopping and task.state is not State.SUSPENDING:
        return f"it is being ended ({task.stopping})"
    if task.state is State.QUEUED:
        return _why_queued(kernel, task, lacks, now)
    node = task.allocation.node if task.allocation is not None else ""
    if task.state is State.PAUSED and task.resuming is not None:
        return f"it was paused and is to go on: it waits for its CPU on {node}"
    return {
        State.STARTING: f"its worker is being started on {node}",
        State.RUNNING: f"it runs on {node}, which had room for it when its turn came",
        State.PAUSING: "somebody paused it: it gives its CPU back at its next step",
        State.PAUSED: f"somebody paused it: it keeps its memory on {node}, until it is resumed",
        State.SUSPENDING: "it saves its state, to give everything back",
    }[task.state]


def _why_queued(kernel: Kernel, task: Task, lacks: list[Lack], now: float) -> str:
    if task.held is not None:
        said = task.outcome.error if task.held == "numerics" and task.outcome else None
        words = {
            "pause": "it was paused when it ended",
            "suspend": "somebody suspended it",
            "numerics": said or "it would go on with other numerics",
        }[task.held]
        return f"it is held: {words}; it waits until it is resumed"
    if before := kernel.state.waiting_for(task):
        return before
    if task.not_before > now and task.generation == 0:
        return "it is not to start before its time"
    if task.not_before > now:
        said = f" ({task.outcome.describe()})" if task.outcome is not None else ""
        return f"it is tried again after a while, since its last run failed{said}"
    if kernel.draining:
        return "the daemon is going down: nothing starts any more"
    nodes = [pool.node for pool in kernel.state.resources.pools.values()]
    never = why_never(task.spec.request, nodes)
    if never:
        return f"cannot ever fit: {never}"
    if closed := kept_out(task.spec.request, task.spec.workers, nodes):
        return f"it waits until a node takes it: {closed}"
    if full := kernel.state.accounts.waiting_for(task):
        return full
    if promised := _promised(kernel, task):
        return promised
    if not lacks:
        return "it starts with the next decision"
    first = lacks[0]
    if first.in_pieces:
        return f"no GPU of {first.node} has enough free: they are given out in pieces"
    words = f"it waits for {show_some(first.lacks)} more on {first.node}"
    if first.outside != Resources():
        words += f", where {show_some(first.outside)} is used by processes outside zenos"
    if first.held_back != Resources():
        words += f", where {show_some(first.held_back)} is held back for others"
    return words


def _promised(kernel: Kernel, task: Task) -> str:
    """For whom its owner's quotas hold back what they have room for, in words; empty for nobody."""
    those, accounts, who = kernel.state.scheduler, kernel.state.accounts, task.principal
    entry = those.queue.entry(task.id)
    if entry is None or not those.is_promised(entry):
        return ""
    lack = accounts.lack(who.user, who.project, task.spec.request, those.claimed(entry))
    if lack is None:
        return ""
    tasks = kernel.state.tasks
    theirs = [t for t in those.claims if lack.account in accounts_of(tasks[t].principal)]
    names = ", ".join(t for t in theirs if t != task.id)
    name = shown(lack.account)
    return f"{name} has room for it, but that is held back for {names}, to which others give way"


def _until(task: Task, now: float) -> float | None:
    if task.state is State.QUEUED:
        return task.not_before if task.held is None and task.not_before > now else None
    return task.stop_at if task.stopping else task.yield_by


# -- its place and score


def _placed(made: Why, kernel: Kernel, now: float) -> Why:
    """Its place and score. Takes the kernel's queue apart."""
    queue = kernel.state.scheduler.queue
    entry = queue.entry(made.task)
    if entry is None:
        return made
    contention = kernel.state.scheduler.contention()
    ranked = queue.rank(entry, now, contention)
    ageing = kernel.config.ageing
    who = kernel.state.tasks[made.task].principal
    owner = kernel.state.accounts.standings(who.user, who.project)[0]
    score = Score(
        priority=entry.key.priority,
        ageing=ageing,
        p=ranked.p,
        waited_s=now - entry.queued,
        expected_s=priority.execution_s(entry.expected_s, contention),
        contention=contention,
        demoted=entry.key.demoted,
        penalty=queue.behind_all if entry.key.demoted else 0.0,
        total=ranked.score,
        raised=entry.key.raised,
        cost=ranked.cost,
        owner=owner.account,
        had=owner.had,
        due=owner.due,
    )
    overdue = queue.is_overdue(entry.task)
    is_open, ahead = queue.is_open(entry.key), 0
    for task_id in order(kernel, now) if is_open else ():
        if task_id == made.task:
            break
        ahead += 1
    return replace(
        made,
        score=score,
        overdue=overdue,
        overdue_at=queue.overdue_at(entry),
        late_at=queue.late_at(entry),
        ahead=ahead if is_open else None,  # it isn't tried at all
    )


# -- what it lacks, and who has it


def _lacks(kernel: Kernel, task: Task, now: float) -> list[Lack]:
    """Of each node that could hold it, the one that lacks the least first."""
    state = kernel.state
    held = state.scheduler.reserved(task.id)
    request = task.spec.request
    if task.allocation is not None:  # paused, and to go on: its CPU, where it is
        request = Resources(cpu=task.granted.cpu)
        pool = state.resources.pools.get(task.allocation.node)
        pools = [pool] if pool is not None else []
        held = {}
    else:  # of a gang that no node could hold, one part
        request = next(iter(state.resources.parts(Shape(request, task.spec.workers))), request)
        pools = state.resources.able(request)
    found = [_lack(kernel, pool, request, held.get(pool.node.name), now) for pool in pools]
    found = [lack for lack in found if lack.lacks != Resources() or lack.in_pieces]
    if len(found) < len(pools):
        return []  # one of them has room
    whole = {pool.node.name: pool.node.capacity for pool in pools}
    return sorted(found, key=lambda lack: _share(lack, whole[lack.node]))[:NODES_SHOWN_MAX]


def _share(lack: Lack, capacity: Resources) -> float:
    """The largest share of the node's capacity that it lacks."""
    names = ("cpu", "gpu", "memory", "gpu_memory")
    return max(int(getattr(lack.lacks, n)) / max(int(getattr(capacity, n)), 1) for n in names)


def _lack(
    kernel: Kernel, pool: Pool, request: Resources, held: Resources | None, now: float
) -> Lack:
    kept = held or Resources()
    room = pool.free.without(kept)
    short = Resources(
        cpu=_short(request.cpu, room.cpu),
        gpu=_short(request.gpu, room.gpu),
        memory=_short(request.memory, room.memory),
        gpu_memory=_short(request.gpu_memory, room.gpu_memory),
    )
    in_pieces = short == Resources() and not pool.has_devices(request)
    wanted = Resources(gpu=1) if in_pieces else short
    return Lack(
        node=pool.node.name,
        lacks=short,
        in_pieces=in_pieces,
        held_back=pool.free - room,
        outside=pool.withheld if _shares(pool.withheld, wanted) else Resources(),
        holders=_holders(kernel, pool.node.name, wanted, now),
    )


def _short(wanted: int, there: int) -> int:
    return max(0, wanted - there) if wanted else 0


def _holders(kernel: Kernel, node: str, wanted: Resources, now: float) -> list[Holder]:
    """Who holds some of what is wanted, who is expected to end first at the head."""
    found: list[Holder] = []
    for task in (kernel.state.tasks[task_id] for task_id in kernel.state.holding):
        held = task.allocation.on(node) if task.allocation is not None else None
        if held is None or not _shares(held.resources, wanted):
            continue
        found.append(
            Holder(
                task=task.id,
                label=task.label,
                priority=task.spec.priority,
                resources=held.resources,
                until=_ends_at(kernel, task, now),
                stopping=task.stopping,
            )
        )
    found.sort(key=lambda h: (h.until is None, h.until or 0.0, scheduler.order_of(h.task)))
    return found[:HOLDERS_SHOWN_MAX]


def _shares(held: Resources, wanted: Resources) -> bool:
    names = ("cpu", "gpu", "memory", "gpu_memory")
    return any(getattr(held, name) and getattr(wanted, name) for name in names)


def _ends_at(kernel: Kernel, task: Task, now: float) -> float | None:
    """When a running task is expected to end; None of one that doesn't by itself."""
    if task.kind is Kind.SERVE or task.running is None or task.stopping:
        return None
    ran = replace(task, ran_s=supervision.ran_s(task, now))
    return now + kernel.state.estimates.expected_s(ran)


def _held_back(picture: Picture, lacks: list[Lack]) -> list[HeldBack]:
    nodes = {lack.node for lack in lacks}
    found = [
        HeldBack(kind="reservation", task=first.task, node=first.node, resources=first.request)
        for first in picture.reservation
        if first.node in nodes
    ]
    for claim in picture.claims:
        if claim.node in nodes:
            victims = [task for task, _ in claim.victims]
            row = HeldBack(
                kind="claim",
                task=claim.task,
                node=claim.node,
                resources=claim.request,
                victims=victims,
            )
            found.append(row)
    found += [
        HeldBack(kind="resuming", task="", node=node, resources=wants)
        for node, wants in picture.resuming.items()
        if node in nodes
    ]
    return found


# -- what is expected, and where it is


def _expected(made: Why, picture: Picture, task: Task, enough: Enough) -> Why:
    """When it starts, by the forecast."""
    if task.held is not None:
        return replace(made, starts_note="when somebody resumes it")
    if picture.draining:
        return replace(made, starts_note="when a daemon runs again")
    ahead = Forecast(picture)
    ahead.run(limits.FORECAST_S_MAX, lambda: task.id in ahead.starts or enough())
    if task.id in ahead.starts:
        return replace(made, starts_at=ahead.starts[task.id])
    never = made.reason if made.reason.startswith("cannot ever fit") else ""
    return replace(made, starts_note=never or "not as far as can be seen ahead")


def _stay(kernel: Kernel, task: Task, now: float) -> Stay:
    held = task.allocation
    assert held is not None  # noqa: S101 - the caller has looked
    ran_s = supervision.ran_s(task, now)
    since = task.running if task.running is not None else task.started
    residence = None
    if task.can_save and task.running is not None:
        residence = task.running + kernel.config.residence_s
    able = [pool.node.name for pool in kernel.state.resources.able(task.spec.request)]
    return Stay(
        node=held.node,
        resources=held.resources,
        devices=sorted(held.shares),
        since=since,
        ran_s=ran_s,
        ends_at=_ends_at(kernel, task, now),
        started_overdue=task.id in kernel.state.overdue_running,
        may_yield=task.can_save,
        residence_until=residence if residence is not None and residence > now else None,
        guarded=kernel.preemption.guards(task.id, now),
        demoted=scheduler.is_demoted(task, ran_s, kernel.config),
        given_way=kernel.preemption.times_given_way(task.id, now),
        others=[name for name in able if name != held.node][:NODES_SHOWN_MAX],
    )
