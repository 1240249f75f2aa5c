"""Durable messages in a second, with many producers: each sent, committed, received, acknowledged.

Redis Streams with `appendfsync always` promises the same: an answer means that it is on the disk.
Both have so many producers, each with so many messages under way, and so many consumers, which
read and acknowledge in batches of the same size; both write to the same disk. Ours are measured
twice: as a call for each message, which Redis's are not, and as a call for each batch, as there.
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
        taken: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):  # in turns
            taken[0].append(rate(lambda *part: argv(root, *part), each))
            taken[1].append(rate(lambda *part: [*argv(root, *part), "many"], each))
    server = shutil.which("redis-server")
    peer: list[float] = []
    if server is None:
        say("redis-server isn't installed: apt-get install redis-server")
    elif homes.PEERS.exists():
        with homes.temporary() as root:
            said = homes.ray("redis_streams.py", server, str(root), str(each), str(rounds))
        peer = json.loads(" ".join(said or ["[]"]))
    what = (
        f"durable messages in a second, {PRODUCERS} producers with {IN_FLIGHT} under way each, "
        f"{CONSUMERS} consumers, {BODY_BYTES} B: sent, received and acknowledged"
    )
    together = f"the same, {IN_FLIGHT} with each call (send_many, receive_many)"
    found = []
    for name, ours in zip((what, together), taken, strict=True):
        peer_name = "Redis Streams, appendfsync always"
        row = compare(name, "/s", ours, peer_name, peer, more_is_better=True)
        if row.ratio is not None:
            row = target(row, f"≥ {RATIO_MIN:g} x", row.ratio >= RATIO_MIN)
        found.append(row)
    return found


def argv(root: Path, *part: str) -> list[str]:
    """Our part of that name."""
    return [sys.executable, "-m", "benchmarks.durable_part", *part, str(root)]
