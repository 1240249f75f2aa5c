"""Durable messages and a daemon that is killed: what was answered is there, once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.crash.machine import AWAY
from tests.processes import until
from tests.system.harness import System
from tests.system.test_disk import Disk, disk, full
from zenos import bus
from zenos.client import connect
from zenos.core import limits
from zenos.core.errors import InvalidError, StorageError, UnavailableError
from zenos.core.home import Home
from zenos.core.messages import Message, MessageChanges
from zenos.store.sqlite import SqliteStore

TOPIC = "jobs/resize"
__all__ = ["disk", "full"]  # fixtures


def ids(system: System) -> Counter[str]:
    """How often each message waits."""
    found = system.ask(lambda client: client.bus.messages(TOPIC, limit=1000))
    return Counter(message.id for message in found)


@pytest.mark.parametrize("label", ["topics.decided", "topics.committed"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_was_answered_is_there_once(system: System, label: str, count: int) -> None:
    system.start(f"{label}=kill@{count}")
    sent: list[str] = []
    for number in range(6):
        # Sent again to the next daemon, under the same id, where the answer was lost.
        name = f"m{number}"
        system.ask(lambda client, name=name: client.bus.send(TOPIC, name, id=name))
        sent.append(name)
    assert system.process is not None
    assert ids(system) == Counter(sent)
    system.restart()
    assert ids(system) == Counter(sent)


def test_a_dead_message_stays_dead_over_a_restart_with_its_reason(system: System) -> None:
    system.start()
    system.ask(lambda client: client.bus.send(TOPIC, "x", id="m1", deadline_s=0.05))
    until(lambda: system.ask(lambda client: client.bus.messages(TOPIC, "dead")))
    system.restart()
    (dead,) = system.ask(lambda client: client.bus.messages(TOPIC, "dead"))
    assert (dead.id, dead.body) == ("m1", "x")
    assert "deadline" in (dead.reason or "")
    assert system.ask(lambda client: client.bus.replay(TOPIC)) == 1
    system.restart()
    assert ids(system) == Counter(["m1"])


def test_a_full_disk_takes_no_message_and_loses_none(full: System, disk: Disk) -> None:
    full.start()
    kept: list[str] = []
    with connect(home=full.home.root, retry_s=0) as client:
        client.bus.send(TOPIC, "first", id="first")
        kept.append("first")
        disk.fill()
        refused = ""
        for number in range(2000):
            try:
                client.bus.send(TOPIC, "x" * 16384, id=f"m{number}", deadline_s=1.0)
            except (UnavailableError, StorageError) as error:
                refused = error.message
                break
            kept.append(f"m{number}")
        assert refused
        disk.clear()
        until(lambda: client.status().pid)

        def goes_on() -> bool:
            try:
                client.bus.send(TOPIC, "last", id="last")
            except AWAY:
                return False
            return True

        until(goes_on)
        found = {message.id for message in client.bus.messages(TOPIC, limit=1000)}
    assert {*kept, "last"} <= found
    full.restart()
    assert {*kept, "last"} <= set(ids(full))


def test_durable_sends_over_the_bus_wait_for_a_database_that_another_process_locks(
    system: System,
) -> None:
    """Those under way are answered after the commit, others are refused for now; none is lost."""
    system.start()
    with bus.connect(home=system.home.root, timeout_s=60) as ours, ThreadPoolExecutor(20) as lanes:
        topic = ours.topic(TOPIC, durable=True)

        def send(number: int) -> None:
            topic.send(number, id=f"m{number}", timeout_s=120)

        send(0)
        with closing(sqlite3.connect(system.home.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            sending = [lanes.submit(send, number) for number in range(1, 20)]
            until(lambda: "locked; trying again" in system.log, 120)
            with pytest.raises(UnavailableError, match="locked"):
                send(20)
            assert not any(one.done() for one in sending)
            other.execute("ROLLBACK")
        for one in sending:
            one.result(120)

        def is_taken_again() -> bool:
            try:
                send(20)
            except UnavailableError:
                return False
            return True

        until(is_taken_again)
    expected = Counter(f"m{number}" for number in range(21))
    assert ids(system) == expected
    system.restart()
    assert ids(system) == expected


def test_a_database_that_another_process_locks_is_waited_for(system: System) -> None:
    system.start()
    system.ask(lambda client: client.bus.send(TOPIC, "x", id="m1"))
    with closing(sqlite3.connect(system.home.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with connect(home=system.home.root, retry_s=0) as client:
            client.http.timeout = 1.0
            with pytest.raises(AWAY):
                client.http.post(
                    "/api/bus/messages", json={"topic": TOPIC, "body": "y", "id": "m2"}
                )
        other.execute("ROLLBACK")
    system.ask(lambda client: client.bus.send(TOPIC, "y", id="m2"))
    assert ids(system) == Counter(["m1", "m2"])


async def keep(home: Home, message: Message) -> None:
    """Have a message in the database, whatever a daemon would say of it."""
    store = await SqliteStore.open(home.database)
    await store.commit_messages(MessageChanges(put={message.number: message}))
    await store.close()


def test_a_message_that_no_frame_holds_is_dead_and_the_daemon_lives(system: System) -> None:
    """An older version kept it. Nobody can be given it, and others get theirs."""
    system.start()
    assert system.shut_down("suspend") == 0
    headers = {"a": "x" * limits.MIB}
    asyncio.run(keep(system.home, Message(number=1, topic=TOPIC, id="large", headers=headers)))
    system.start()
    daemon = system.process
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        jobs = ours.topic(TOPIC, durable=True)
        with ThreadPoolExecutor(1) as lane:
            receiving = lane.submit(jobs.receive, timeout_s=60)
            until(lambda: system.ask(lambda client: client.bus.messages(TOPIC, "dead")))
            jobs.send("small", id="small")
            with receiving.result(60) as message:
                assert message.id == "small"
    assert system.process is daemon, "it went down"
    for _ in range(2):
        (dead,) = system.ask(lambda client: client.bus.messages(TOPIC, "dead"))
        assert (dead.id, dead.failures) == ("large", 0)
        assert "headers" in (dead.reason or "")
        system.restart()


def test_headers_that_no_frame_holds_are_refused_by_each_way_in(system: System) -> None:
    system.start()
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        jobs = ours.topic(TOPIC, durable=True)
        for large in ("日" * 6000, "x" * 16_250):
            with pytest.raises(InvalidError, match="header"):
                jobs.send_many([b"x"], headers={"a": large})
            with pytest.raises(InvalidError, match="header"):
                jobs.send(b"", headers={"a": large})
        jobs.send(b"", id="whole", headers={"a": "日" * 5000})
        with jobs.receive(timeout_s=60) as message:
            assert (message.id, message.headers["a"]) == ("whole", "日" * 5000)
