"""Durable messages in a second, with many producers: each sent, committed, received, acknowledged.

Redis Streams with `appendfsync always` promises the same: an answer means that it is on the disk.
Both have so many producers, each with so many messages under way, and so many consumers, which
read and acknowledge in batches of the same size; both write to the same disk.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks import homes
from benchmarks.durable_rate import BODY_BYTES, CONSUMERS, IN_FLIGHT, PRODUCERS, rate
from benchmarks.report import Row, compare, say, target

RATIO_MIN = 1.0


def rows(*, quick: bool) -> list[Row]:
    """Messages in a second, from the first that is sent to the last acknowledgement."""
    each, rounds = (640, 1) if quick else (6400, 5)
    with homes.temporary() as root, homes.daemon(root):
        ours = [rate(lambda *part: argv(root, *part), each) for _ in range(rounds)]
    server = shutil.which("redis-server")
    peer: list[float] = []
    if server is None:
        say("redis-server isn't installed: apt-get install redis-server")
    elif homes.PEERS.exists():
        with homes.temporary() as root:
            said = homes.ray("redis_streams.py", server, str(root), str(each), str(rounds))
        peer = json.loads(" ".join(said or ["[]"]))
    row = compare(
        f"durable messages in a second, {PRODUCERS} producers with {IN_FLIGHT} under way each, "
        f"{CONSUMERS} consumers, {BODY_BYTES} B: sent, received and acknowledged",
        "/s",
        ours,
        "Redis Streams, appendfsync always",
        peer,
        more_is_better=True,
    )
    if row.ratio is not None:
        row = target(row, f"≥ {RATIO_MIN:g} x", row.ratio >= RATIO_MIN)
    return [row]


def argv(root: Path, *part: str) -> list[str]:
    """Our part of that name."""
    return [sys.executable, "-m", "benchmarks.durable_part", *part, str(root)]
