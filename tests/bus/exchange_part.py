"""One part of a durable exchange as a process: `daemon`, `sender` or `receiver`.

`python -m tests.bus.exchange_part PART DIRECTORY COUNT [many]`. What the sender was told to be kept
stands in the file `sent`, what the receiver has done in `done`: each id once, for it looks before.
many: several with each call.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from zenos.bus.envelope import Hello
from zenos.core.errors import ConflictError, DeadlineError

HELLO = Hello(task="", generation=0, token="x", program=True)
TIMEOUT_S = 120.0
LEASE_S = 3600.0
MANY = 3


def note(path: Path, id_: str) -> None:
    """One line, whole or not at all."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{id_}\n".encode())
    os.close(fd)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def daemon(directory: Path) -> None:
    """A broker on a database, for ever."""
    from zenos.bus.broker import Broker
    from zenos.bus.durable_topics import DurableTopics
    from zenos.core.clock import SystemClock
    from zenos.core.messages import TopicSettings
    from zenos.store.sqlite import SqliteStore

    store = await SqliteStore.open(directory / "db")
    # So few that the sender is there for as long as the receiver is.
    settings = TopicSettings(deliveries=1000, messages=64)
    messages = await store.load_messages()
    topics = DurableTopics(store, SystemClock(), messages, lambda _: settings)
    broker = Broker(lambda *_: True, lambda *_: None, durable=topics)
    await broker.start(directory / "run" / "bus")
    await topics.run()


def sender(directory: Path, count: int) -> None:
    """Send all that it doesn't know to be kept."""
    from zenos.bus.sync import Bus

    with Bus(directory / "run" / "bus", HELLO, timeout_s=TIMEOUT_S) as bus:
        topic = bus.topic("jobs", durable=True)
        for number in range(len(lines(directory / "sent")), count):
            note(directory / "sent", topic.send(number, id=f"m{number}", timeout_s=TIMEOUT_S))


def many_sender(directory: Path, count: int) -> None:
    """The same, several together."""
    from zenos.bus.sync import Bus

    with Bus(directory / "run" / "bus", HELLO, timeout_s=TIMEOUT_S) as bus:
        topic = bus.topic("jobs", durable=True)
        for first in range(len(lines(directory / "sent")), count, MANY):
            numbers = range(first, min(first + MANY, count))
            ids = [f"m{number}" for number in numbers]
            for id_ in topic.send_many(numbers, ids=ids, timeout_s=TIMEOUT_S):
                note(directory / "sent", id_)


def many_receiver(directory: Path, count: int) -> None:
    """The same, several together."""
    from zenos.bus.sync import Bus

    done = set(lines(directory / "done"))
    with Bus(directory / "run" / "bus", HELLO, timeout_s=TIMEOUT_S) as bus:
        topic = bus.topic("jobs", durable=True)
        while True:
            try:
                left = len(done) == count
                messages = topic.receive_many(
                    MANY, timeout_s=0.2 if left else TIMEOUT_S, lease_s=LEASE_S
                )
            except DeadlineError:
                return
            for message in messages:
                if message.id not in done:
                    note(directory / "done", message.id)
                    done.add(message.id)
            try:
                messages.ack()
            except ConflictError:
                continue


def receiver(directory: Path, count: int) -> None:
    """Do everything once."""
    from zenos.bus.sync import Bus

    done = set(lines(directory / "done"))
    with Bus(directory / "run" / "bus", HELLO, timeout_s=TIMEOUT_S) as bus:
        topic = bus.topic("jobs", durable=True)
        while True:
            try:
                # All has been done; is there anything left that should not be?
                left = len(done) == count
                message = topic.receive(timeout_s=0.2 if left else TIMEOUT_S, lease_s=LEASE_S)
            except DeadlineError:
                return
            if message.id not in done:
                note(directory / "done", message.id)
                done.add(message.id)
            try:
                message.ack()
            except ConflictError:
                continue  # the lease ended with the connection: it comes again


if __name__ == "__main__":
    part, where, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    many = sys.argv[4:] == ["many"]
    if part == "daemon":
        asyncio.run(daemon(where))
    elif part == "sender":
        (many_sender if many else sender)(where, number)
    else:
        (many_receiver if many else receiver)(where, number)
