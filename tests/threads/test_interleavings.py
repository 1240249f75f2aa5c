"""All orders of events, with two lanes and three threads: nothing hangs, nothing is lost.

An exhaustive search over the states that the pool's machine can reach: from each state each event
that may happen next is tried, and what must hold is checked at each (see world.py).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.threads.world import World
from zenos.threads.machine import Cancel, Close, Event, Machine, Resize, Submit
from zenos.threads.policy import Policy

THREADS = (
    Submit(thread=1, group=1),
    Submit(thread=2, group=1, priority=75, retries=1, backoff_s=1.0),
    Submit(thread=3, group=2, priority=25, retries=1, timeout_s=5.0),
)


class Left(NamedTuple):
    """How often what happens from outside may still happen."""

    submits: tuple[Submit, ...] = THREADS
    deaths: int = 1
    interventions: int = 1


def moves(world: World, left: Left) -> list[tuple[Event, Left]]:
    """Each event that may happen next, and what is left after it."""
    found: list[tuple[Event, Left]] = [(event, left) for event in world.lane_events()]
    if left.submits and not world.machine.closing:
        found.append((left.submits[0], left._replace(submits=left.submits[1:])))
    if left.deaths:
        found += [(event, left._replace(deaths=left.deaths - 1)) for event in world.deaths()]
    if left.interventions:
        outside: list[Event] = [Cancel(thread) for thread in world.machine.threads]
        outside += [Resize(1), Resize(3)]
        outside += [] if left.submits else [Close(), Close(cancel=True)]
        after = left._replace(interventions=left.interventions - 1)
        found += [(event, after) for event in outside]
    return found


def search(world: World, left: Left) -> dict[object, list[object]]:
    """Visit every state: for each, the states that lanes and time alone lead to next."""
    onward: dict[object, list[object]] = {}
    stack = [(world, left, (world.fingerprint(), left))]
    while stack:
        world, left, key = stack.pop()
        if key in onward:
            continue
        onward[key] = []
        lanes = world.lane_events()
        steps: list[tuple[Event | None, Left]] = [*moves(world, left)]
        if world.wake != float("inf"):
            steps.append((None, left))
        if not lanes and world.wake == float("inf"):
            assert not world.machine.threads, f"it hangs: {world.machine.threads}"
            assert not world.machine.closing or world.machine.finished, "it doesn't end"
        for event, after in steps:
            other = world.copy()
            if event is None:
                other.pass_time()
            else:
                other.tell(event)
            next_key = (other.fingerprint(), after)
            if event is None or event in lanes:
                onward[key].append(next_key)
            if next_key not in onward:
                stack.append((other, after, next_key))
    return onward


def goes_round(onward: dict[object, list[object]]) -> bool:
    """Whether lanes and time can lead back to a state in which all was before."""
    entered, left = set(), set()
    stack = [(key, False) for key in onward]
    while stack:
        key, leaving = stack.pop()
        if leaving:
            left.add(key)
        elif key not in entered:
            entered.add(key)
            stack.append((key, True))
            for after in onward[key]:
                if after in entered and after not in left:
                    return True
                stack.append((after, False))
    return False


@pytest.mark.parametrize(
    ("policy", "killable", "left"),
    [
        ("priority", True, Left()),
        ("fifo", False, Left(deaths=0, interventions=2)),
        ("aged", True, Left(deaths=0)),
    ],
    ids=["processes", "os-threads", "aged"],
)
def test_no_order_of_events_hangs_or_loses_a_thread(
    policy: Policy, killable: bool, left: Left
) -> None:
    # In no state do threads wait for what can't come, and none is come back to: so from each,
    # whatever the lanes do, all threads end.
    onward = search(World(Machine(2, policy=policy, killable=killable, grace_s=1.0)), left)
    assert len(onward) > 500
    assert not goes_round(onward)
