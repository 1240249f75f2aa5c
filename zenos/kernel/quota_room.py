"""Whose end makes room in the quotas of who waits: nobody's but tasks of the same owner.

A quota bounds what a user, or a project, holds at once. Beside a full one, what waits can't be
helped by a free node, nor by what others would give back; but its owner's own tasks give way to it
by the same rules as on a full node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zenos.core.quotas import accounts_of
from zenos.core.resources import Resources
from zenos.core.task import HOLDING, Task
from zenos.kernel.bounds import Lack
from zenos.kernel.entries import Entry, Ranked, by_wait
from zenos.kernel.pool import NOTHING

if TYPE_CHECKING:
    from zenos.kernel.state import KernelState


class Giver(NamedTuple):
    """A task that may give way, and what it gives back of what its quotas count."""

    task: Task
    gives: Resources


def waiting(state: KernelState, now: float) -> list[Entry]:
    """All that could use room, in the order in which it is tried: the overdue, then by score.

    Of buckets the heads; those too that quotas close.
    """
    queue = state.scheduler.queue
    overdue = [entry for entry in queue.overdue if queue.is_open(entry.key)]
    ranked = state.scheduler.ranking(now)
    if late_and_others := _closed(state, now):
        overdue = sorted([*overdue, *late_and_others[0]], key=by_wait)
        ranked = sorted([*ranked, *late_and_others[1]])
    return [*overdue, *(one.entry for one in ranked)]


def closed(state: KernelState, now: float) -> list[Entry]:
    """Of those only the ones that quotas keep from starting, where any task of the same owner might
    give way to them.
    """
    late, others = _closed(state, now, state.accounts.lowest) or ([], [])
    return [*sorted(late, key=by_wait), *(one.entry for one in sorted(others))]


def _closed(
    state: KernelState, now: float, least: Callable[[str, str], float] = lambda *_: -math.inf
) -> tuple[list[Entry], list[Ranked]] | None:
    """The overdue ones, and the others, in no order; None where there are none."""
    queue, contention = state.scheduler.queue, state.scheduler.contention()
    heads = queue.closed_heads(least)
    if not heads:
        return None
    late = [entry for entry in heads if queue.is_overdue(entry.task)]
    others = [entry for entry in heads if not queue.is_overdue(entry.task)]
    return late, [queue.rank(entry, now, contention) for entry in others]


def enough(
    state: KernelState,
    entry: Entry,
    there: Sequence[Giver],
    before: Sequence[Entry] = (),
) -> list[Giver] | None:
    """Those, in that order, whose end makes room for a waiting task in its owner's quotas.

    None needed, or None where that is impossible. Counted as given back is what those hold that end
    already; as held what others have a claim for, and what `before` waits for.
    """
    key = entry.key
    if state.scheduler.queue.is_open(key):
        return []
    beside = state.scheduler.promised(entry.task)
    beside += [(other.key.user, other.key.project, other.key.request) for other in before]
    beside += [_given_back(giver) for giver in _ending(state, key.user, key.project)]
    chosen: list[Giver] = []
    left = list(there)
    while True:
        lack = _lack(state, entry, beside, chosen)
        if lack is None:
            break
        helps = next((giver for giver in left if _counts(giver, lack)), None)
        if helps is None:
            return None
        chosen.append(helps)
        left.remove(helps)
    for giver in reversed(chosen[:]):
        others = [one for one in chosen if one is not giver]
        if _lack(state, entry, beside, others) is None:
            chosen = others
    return chosen


def _lack(
    state: KernelState,
    entry: Entry,
    beside: list[tuple[str, str, Resources]],
    chosen: list[Giver],
) -> Lack | None:
    key = entry.key
    more = [*beside, *map(_given_back, chosen)]
    return state.accounts.lack(key.user, key.project, key.request, more)


def _counts(giver: Giver, lack: Lack) -> bool:
    """Whether its end makes that lack smaller."""
    owned = lack.account in accounts_of(giver.task.principal)
    return owned and lack.what != "gpu_hours" and getattr(giver.gives, lack.what) > 0


def _given_back(giver: Giver) -> tuple[str, str, Resources]:
    who = giver.task.principal
    return who.user, who.project, NOTHING - giver.gives


def _ending(state: KernelState, user: str, project: str) -> list[Giver]:
    """Tasks of an owner that end already."""
    if not state.stopping:
        return []
    held = (state.tasks[task_id] for task_id in state.accounts.holders(user, project))
    return [Giver(t, t.granted) for t in held if t.stopping and t.state in HOLDING]
