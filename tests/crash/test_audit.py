"""A change and the row of who made it: both are there after a kill, or neither."""

from __future__ import annotations

import signal

import pytest

from tests.crash.machine import Machine

LABELS = ("loop.decided", "store.commit.written", "store.commit.after")


@pytest.mark.parametrize("label", LABELS)
def test_a_change_and_its_row_are_one(machine: Machine, label: str) -> None:
    machine.start(f"{label}=kill@3")
    ids = [machine.submit(number) for number in range(3)]
    machine.finish()
    rows = machine.ask(lambda client: client.audit.rows(action="submit"))
    assert sorted(row.subject for row in rows) == sorted(ids)
    assert sorted(row.key or "" for row in rows) == ["k0", "k1", "k2"]


def test_the_end_by_a_signal_has_a_row(machine: Machine) -> None:
    machine.start()
    assert machine.process is not None
    machine.process.send_signal(signal.SIGTERM)
    assert machine.process.wait(60) == 0
    machine.start()
    (row,) = machine.ask(lambda client: client.audit.rows(action="down"))
    assert (row.via, row.subject, row.accepted) == ("signal", "suspend", True)
