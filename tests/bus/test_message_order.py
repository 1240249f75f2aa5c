"""The worked case of messages (examples/message_order.py)."""

from __future__ import annotations

import pytest

from examples import message_order
from zenos.bus.order import KINDS


def test_data_first_then_by_expected_latency() -> None:
    lines = message_order.run(("data", "state", "command"))
    assert [line.topic for line in lines] == [
        "inputs",
        "gradients",
        "metrics",
        "parameters",
        "stop",
    ]
    # 20 kB at 1 MB/s and 1 ms: expected after 21 ms, and there after 21 ms, since it goes first.
    assert lines[0].expected_s == lines[0].arrived_s == pytest.approx(0.021)
    assert lines[1].expected_s == pytest.approx(0.501)
    assert lines[1].arrived_s == pytest.approx(0.521)
    assert lines[-1].arrived_s == pytest.approx(2.5222)


def test_by_default_a_command_waits_for_nobody() -> None:
    lines = message_order.run(KINDS)
    assert [line.topic for line in lines] == [
        "stop",
        "metrics",
        "parameters",
        "inputs",
        "gradients",
    ]
    assert lines[0].arrived_s == pytest.approx(0.0012)
