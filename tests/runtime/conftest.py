"""What a worker's process may do to itself, undone: tests run several in one process."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def worker_signals_undone() -> Iterator[None]:
    """A worker takes these for itself. SIGHUP stays ignored, in processes that are started too."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
