"""The worked case of messages: one slow link, three kinds, and the order in which they go.

The link carries 1 MB a second and adds 1 ms. Five messages wait for it: gradients and a batch of
inputs (data), a step's metrics and a model's parameters (state), and a command to stop. The order
is by kind, then by the expected latency L = D / V + 1 ms; once with data first, as the case was
first told, and once as zenos does by default, with commands first. This is the real queue under a
virtual clock.

Run it with `python examples/message_order.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from zenos.bus.envelope import Kind
from zenos.bus.order import KINDS, Item, Link, Policy, SendQueue
from zenos.core.clock import VirtualClock

SPEED_BYTES_S, LATENCY_S = 1e6, 0.001
MESSAGES: tuple[tuple[Kind, str, int], ...] = (
    ("state", "parameters", 2_000_000),
    ("data", "gradients", 500_000),
    ("command", "stop", 200),
    ("data", "inputs", 20_000),
    ("state", "metrics", 1_000),
)


class Line(NamedTuple):
    """One message on its way: when it is there, and what it was expected to take."""

    kind: Kind
    topic: str
    size: int
    expected_s: float
    arrived_s: float


def run(order: tuple[Kind, ...]) -> list[Line]:
    """Send all; each takes the link for D / V, and is there 1 ms later."""
    clock = VirtualClock()
    link = Link(SPEED_BYTES_S, LATENCY_S)
    waiting = SendQueue(Policy(order=order), link)
    for kind, topic, size in MESSAGES:
        waiting.put(Item(kind, 50, "worker", topic, bytes(size)), clock.now())
    lines = []
    while batch := waiting.take(clock.now(), 1):
        (item,) = batch
        size = len(item.frame)
        clock.advance(size / SPEED_BYTES_S)
        arrived = clock.now() + LATENCY_S
        lines.append(Line(item.kind, item.topic, size, link.expected_s(size), arrived))
    return lines


def table(lines: list[Line], title: str) -> Table:
    """The messages for people, in the order in which they arrive."""
    result = Table(title=title, title_justify="left")
    for column in ("message", "kind", "bytes", "L", "is there after"):
        result.add_column(column, justify="left" if column in ("message", "kind") else "right")
    for line in lines:
        times = (f"{1000 * seconds:,.1f} ms" for seconds in (line.expected_s, line.arrived_s))
        result.add_row(line.topic, line.kind, f"{line.size:,}", *times)
    return result


def main() -> None:
    """Print both orders."""
    console = Console()
    console.print(table(run(("data", "state", "command")), "order: data, state, command"))
    console.print(table(run(KINDS), f"order: {', '.join(KINDS)} (the default)"))


if __name__ == "__main__":
    main()
