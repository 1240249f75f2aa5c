"""A worker's end of the bus by itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.processes import signalled_until
from zenos.bus.channel import Channel
from zenos.bus.envelope import Envelope


def test_who_waits_for_a_message_is_not_held_up_by_a_signal(tmp_path: Path) -> None:
    channel = Channel(tmp_path / "nobody", "t1", 1, "token")
    late = threading.Timer(10, channel._incoming.put, [Envelope(id=1, kind="command")])
    late.start()  # who waits for ever is freed by this, and the test fails
    try:
        with signalled_until(time.monotonic() + 0.2):
            assert channel.receive(0.1) is None
        assert late.is_alive()
    finally:
        late.cancel()
        late.join()
        channel.close()
