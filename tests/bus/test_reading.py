"""Bodies are read as what they are, or not at all; and what came is let go of without a word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bus.harness import Station, station
from zenos.core import limits
from zenos.core.errors import InvalidError

LONG_S = 30.0
LEFT = """
import sys
from pathlib import Path

import numpy
import torch

import zenos  # whose modules are there until the end
from zenos.bus.envelope import Hello
from zenos.bus.sync import Bus

with Bus(Path(sys.argv[1]), Hello(task="", generation=0, token="x", program=True)) as bus:
    steps = bus.topic("steps")
    steps.send({"gradient": numpy.ones((1000, 1000))})
    with steps.receive(timeout_s=30) as message:
        gradient = message.body["gradient"]
    buffer = steps.buffer((1000, 1000), "bfloat16")
    buffer.tensor()[:] = 2
    steps.send(buffer)
    steps.send(buffer)
    assert steps.receive(timeout_s=30).body.dtype == torch.bfloat16
    unread = steps.receive(timeout_s=30)
"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Station]:
    with station(tmp_path / "run" / "bus") as made:
        yield made


@pytest.mark.parametrize("size", [1, 2 * limits.MIB])  # in the message, and in shared memory
def test_bytes_are_read_as_bytes_and_nothing_else(bus: Station, size: int) -> None:
    one = bus.connect()
    one.topic("bytes").send(b"5" * size)
    message = one.topic("bytes").receive(timeout_s=LONG_S)
    assert message.read(bytes) == message.read(int | bytes) == message.body == b"5" * size
    for type_ in (int, str, dict, list[int], np.ndarray, "foo", 5):
        with pytest.raises(InvalidError, match="cannot read a body"):
            message.read(type_)


def test_a_body_is_not_read_as_what_is_no_type(bus: Station) -> None:
    one = bus.connect()
    for body in (1, {"a": np.ones(3)}):
        one.topic("values").send(body)
        message = one.topic("values").receive(timeout_s=LONG_S)
        for type_ in ("foo", 5):
            with pytest.raises(InvalidError, match="cannot read a body as"):
                message.read(type_)


def test_a_program_that_ends_with_messages_in_hand_says_nothing_of_them(bus: Station) -> None:
    command = [sys.executable, "-c", LEFT, str(bus.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_tensor_without_values_is_not_sent(bus: Station) -> None:
    with pytest.raises(InvalidError, match="on the device 'meta'"):
        bus.connect().topic("t").send(torch.empty(3, device="meta"))
