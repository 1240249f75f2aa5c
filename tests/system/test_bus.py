"""Programs in tasks and a user's own program meet on the daemon's bus."""

from __future__ import annotations

import sys

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos import bus
from zenos.core.errors import InvalidError, NoDaemonError

WORKER = """
import zenos
from zenos.core.errors import RefusedError
with zenos.bus.connect() as bus:
    with bus.topic("orders", durable=True).receive(timeout_s=60) as message:
        bus.topic(f"{bus.task}/done").call(message.body * 2, timeout_s=60)
    try:
        bus.topic("others").send(b"")
    except RefusedError as error:
        bus.topic(f"{bus.task}/refused", durable=True).send(str(error))
"""


def test_a_task_and_its_user_exchange_messages(system: System) -> None:
    system.start()
    task = system.ask(
        lambda client: client.submit([sys.executable, "-c", WORKER], topics=["orders"]).id
    )
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        ours.topic("orders", durable=True).send(21)
        with ours.topic(f"{task}/done").receive(timeout_s=60) as result:
            assert result.body == 42
            assert result.sender.startswith(f"{task}.")
            result.reply(b"thanks")
        with ours.topic(f"{task}/refused", durable=True).receive(timeout_s=60) as refusal:
            assert "cannot use the topic others" in refusal.body
    until(lambda: all(one.is_ended for one in system.tasks().values()))
    assert {one.state for one in system.tasks().values()} == {"succeeded"}


def test_durable_messages_outlive_the_daemon(system: System) -> None:
    system.start()
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        topic = ours.topic("orders", durable=True)
        topic.send(b"kept")
        system.restart()
        with topic.receive(timeout_s=60) as message:
            assert message.body == b"kept"


def test_where_no_daemon_has_run_there_is_no_bus(system: System) -> None:
    with pytest.raises(NoDaemonError, match="zenos up"):
        bus.connect(home=system.home.root)


def test_names_of_topics_are_checked_before_a_task_is_accepted(system: System) -> None:
    system.start()
    with pytest.raises(InvalidError, match="cannot use the topic"):
        system.ask(lambda client: client.submit(["true"], topics=["../x"]))
