"""How durable messages are counted, ours and the peer's. Standard library only: both environments
import it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

PRODUCERS, CONSUMERS = 4, 2
IN_FLIGHT = 64  # of each producer; as many does a consumer take at once
BODY_BYTES = 256


def rate(command: Callable[..., list[str]], each: int) -> float:
    """Start all parts, let them go together, and wait until all is acknowledged."""
    share = str(each * PRODUCERS // CONSUMERS)
    flight, size = str(IN_FLIGHT), str(BODY_BYTES)
    commands = [command("produce", str(each), flight, size) for _ in range(PRODUCERS)]
    commands += [command("consume", share, flight, size) for _ in range(CONSUMERS)]
    parts = [
        subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for one in commands
    ]
    try:
        for one in parts:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        begun = time.perf_counter()
        for one in parts:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in parts:
            assert one.stdout is not None
            assert one.stdout.readline() == "done\n"
        return each * PRODUCERS / (time.perf_counter() - begun)
    finally:
        for one in parts:
            one.kill()
            one.communicate()
