"""Programs in tasks and a user's own program meet on the daemon's bus."""

from __future__ import annotations

import math
import signal
import sys
import time

import pytest

from tests.processes import until
from tests.system.harness import System
from zenos import bus
from zenos.bus.order import Policy
from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, InvalidError, NoDaemonError

SETTINGS = """
message_order: [data, state, command]
message_ageing: 3
topics:
  jobs/*: {deliveries: 1}
  few: {messages: 1, when_full: refuse}
"""
WORKER = """
import zenos
from zenos.core.errors import RefusedError
with zenos.bus.connect() as bus:
    with bus.topic("orders", durable=True).receive(timeout_s=60) as message:
        bus.topic(f"{bus.task}/done").call(message.body * 2, timeout_s=60)
    for name in ("orders/late", "others", "orders2"):
        try:
            bus.topic(name).send(b"")
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
        for name in ("others", "orders2"):  # but what is below a grant is granted, too
            with ours.topic(f"{task}/refused", durable=True).receive(timeout_s=60) as refusal:
                assert f"cannot use the topic {name}:" in refusal.body
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


def test_an_option_that_cannot_be_used_costs_no_message_and_no_line_of_the_log(
    system: System,
) -> None:
    system.start()
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        lost, kept = ours.topic("lost"), ours.topic("kept", durable=True)
        kept.send(b"leased")
        lease = kept.receive(timeout_s=60)
        logged = system.log
        lost.send("a")
        for do, options in (
            (lost.send, {"id": 5}),
            (lost.send, {"headers": {"n": 1}}),
            (kept.send, {"priority": True}),
            (kept.send, {"priority": 1.5}),
            (kept.send, {"headers": {1: "a"}}),
            (kept.send, {"delay_s": math.nan}),
        ):
            with pytest.raises(InvalidError, match="cannot use"):
                do("b", **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidError, match="lease_s"):
            kept.receive(lease_s="x")  # type: ignore[arg-type]
        lost.send("c")
        assert [lost.receive(timeout_s=60).body for _ in range(2)] == ["a", "c"]
        lease.ack()
        assert system.log == logged


@pytest.mark.parametrize("durable", [False, True])
def test_receiving_ends_in_time_while_the_daemon_is_stopped(system: System, durable: bool) -> None:
    system.start()
    assert system.process is not None
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        topic = ours.topic("work", durable=durable)
        topic.send("first")
        with topic.receive(timeout_s=60):
            pass
        system.process.send_signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(DeadlineError):
                topic.receive(timeout_s=0.5)
            # Long before its silence is noticed.
            assert time.monotonic() - begun < limits.SILENT_S / 2
        finally:
            system.process.send_signal(signal.SIGCONT)
        topic.send("next")
        with topic.receive(timeout_s=60) as message:
            assert message.body == "next"


def test_where_no_daemon_has_run_there_is_no_bus(system: System) -> None:
    with pytest.raises(NoDaemonError, match="zenos up"):
        bus.connect(home=system.home.root)


def test_names_of_topics_are_checked_before_a_task_is_accepted(system: System) -> None:
    system.start()
    with pytest.raises(InvalidError, match="cannot use the topic"):
        system.ask(lambda client: client.submit(["true"], topics=["../x"]))


def test_messages_go_as_the_settings_say(system: System) -> None:
    """In the order of kinds, and on the topics, that the home's settings name."""
    system.home.config.write_text(SETTINGS)
    system.start()
    with bus.connect(home=system.home.root, timeout_s=60) as ours:
        assert ours.session.output.policy == Policy(("data", "state", "command"), 3.0)
        jobs, few = ours.topic("jobs/a", durable=True), ours.topic("few")
        jobs.send(b"job")
        jobs.receive(timeout_s=60).nack(reason="no space")
        dead = system.ask(lambda client: client.bus.messages("jobs/a", "dead"))
        assert [message.reason for message in dead] == ["no space"]
        few.send(b"one")
        with pytest.raises(BusyError, match="1 messages wait"):
            few.send(b"two")
