"""A producer or a consumer of durable messages, as a process of its own.

`produce COUNT IN_FLIGHT BYTES HOME` and `consume COUNT IN_FLIGHT BYTES HOME`: each says `ready`,
waits for a line, and says `done` when it has sent, or acknowledged, so many. With `many` at the end
they send and take so many with one call, else each message with a call of its own.
"""

from __future__ import annotations

import asyncio
import sys

from zenos import bus

TIMEOUT_S = 120.0


async def produce(home: str, count: int, in_flight: int, size: int, *, many: bool) -> None:
    """Send batches, each when all of the one before is kept."""
    async with bus.connect_async(home=home) as ours:
        topic, body = ours.topic("bench", durable=True), bytes(size)
        go()
        for _ in range(count // in_flight):
            if many:
                await topic.send_many([body] * in_flight, timeout_s=TIMEOUT_S)
                continue
            sends = (topic.send(body, timeout_s=TIMEOUT_S) for _ in range(in_flight))
            await asyncio.gather(*sends)
    print("done", flush=True)


async def consume(home: str, count: int, in_flight: int, *, many: bool) -> None:
    """Take and acknowledge as many at once."""

    async def take() -> None:
        async with topic.receive(timeout_s=TIMEOUT_S):
            pass

    async with bus.connect_async(home=home) as ours:
        topic = ours.topic("bench", durable=True, prefetch=1 if many else in_flight)
        go()
        left = count
        while left and many:
            wanted = min(left, in_flight)
            async with topic.receive_many(wanted, timeout_s=TIMEOUT_S) as messages:
                left -= len(messages)
        while left:
            await asyncio.gather(*(take() for _ in range(in_flight)))
            left -= in_flight
    print("done", flush=True)


def go() -> None:
    """Wait for the word."""
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    what, number, flight, length, where, *how = sys.argv[1:]
    together = how == ["many"]
    if what == "produce":
        asyncio.run(produce(where, int(number), int(flight), int(length), many=together))
    else:
        asyncio.run(consume(where, int(number), int(flight), many=together))
