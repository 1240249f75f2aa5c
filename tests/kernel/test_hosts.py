"""Hosts of calls hear that others wait for their room, and that nobody does any more."""

from __future__ import annotations

from msgspec.structs import replace

from tests.kernel.harness import Harness, node, spec
from zenos.core import events as ev
from zenos.core.specs import CallSpec
from zenos.core.task import State, Task

HOST = CallSpec(python="/usr/bin/python3", key="key")


def wanted(h: Harness) -> list[tuple[str, bool]]:
    """What hosts were told since it was asked last."""
    said, h.wanted = h.wanted, []
    return [(action.task, action.on) for action in said]


def host(h: Harness, cpu: float, priority: int = 50) -> Task:
    task = h.submit(spec(HOST, cpu=cpu, priority=priority))
    h.run(task)
    return h.now(task)


def test_a_host_hears_once_that_others_wait_and_once_that_none_does() -> None:
    h = Harness(node(cpu=2))
    here = host(h, 2)
    assert wanted(h) == []
    waiting = h.submit(spec(cpu=1))
    h.step()
    assert wanted(h) == [(here.id, True)]
    h.cancel(waiting)
    h.step()
    assert wanted(h) == [(here.id, False)]


def test_a_host_that_ends_gives_its_room_to_who_waits() -> None:
    h = Harness(node(cpu=2))
    here = host(h, 2)
    waiting = h.submit(spec(cpu=2))
    h.exit(here)
    assert h.now(waiting).state is State.STARTING
    assert wanted(h) == [(here.id, True)]  # and nothing is said to what has ended


def test_who_is_less_urgent_or_would_not_fit_anyway_does_not_want_it() -> None:
    h = Harness(node(cpu=4))
    here = host(h, 2, priority=50)
    h.run(h.submit(spec(cpu=1)))
    h.submit(spec(cpu=2, priority=25))
    assert wanted(h) == []
    h.submit(spec(cpu=4, priority=75))
    assert wanted(h) == []  # three with the host: the program's core is missing
    h.submit(spec(cpu=3, priority=75))
    assert wanted(h) == [(here.id, True)]


def test_as_many_hosts_hear_it_as_the_first_node_takes_that_has_room_with_them() -> None:
    h = Harness(node(cpu=2), node(cpu=2, name="second"))
    hosts = [host(h, 1) for _ in range(4)]
    nodes = {task.id: task.allocation.node for task in hosts if task.allocation is not None}
    h.submit(spec(cpu=2))
    assert wanted(h) == [(task, True) for task, name in nodes.items() if name == "local"]


def test_the_next_daemon_tells_them_again() -> None:
    h = Harness(node(cpu=2))
    here = host(h, 2)
    h.submit(spec(cpu=1))
    assert wanted(h) == [(here.id, True)]
    again = h.restarted()
    again.step(ev.WorkerStarted(task=here.id, generation=here.generation, pid=1))
    assert wanted(again) == [(here.id, True)]


def test_who_is_to_run_elsewhere_does_not_want_it() -> None:
    h = Harness(node(cpu=2), replace(node(cpu=2, name="second"), labels=["disk=fast"]))
    here = host(h, 2)
    h.run(h.submit(spec(cpu=2)))
    assert here.allocation is not None
    assert here.allocation.node == "local"
    h.submit(spec(cpu=1, node="second"))
    h.submit(spec(cpu=1, labels={"disk": "fast"}))
    assert wanted(h) == []
    h.submit(spec(cpu=1, node="local"))
    assert wanted(h) == [(here.id, True)]
