"""How long a word takes through the daemon while 1 GB/s of data flows, and while none does.

The data are arrays of 16 MiB, copied into shared memory and read at the other end; the word is a
call with an empty body, at the highest priority, there and back.
"""

from __future__ import annotations

import time

from benchmarks import homes
from benchmarks.messages import part, percentiles, round_trips_us, through_daemon
from benchmarks.report import Row, compare, say, target
from zenos import bus
from zenos.core import limits

FLOW_BYTES_S = 1e9
P99_MS_MAX = 5.0
WARM_S = 2.0


def rows(*, quick: bool) -> list[Row]:
    """Round trips in ms, the peer being ourselves at rest."""
    count = 200 if quick else 5000
    with (
        homes.temporary() as root,
        homes.daemon(root),
        part("echo", str(root), "echo"),
        bus.connect(home=root) as ours,
        through_daemon(root) as calling,
    ):
        topic = calling.topic("echo")

        def once() -> None:
            topic.call(b"", priority=limits.PRIORITY_MAX)

        idle = [value / 1000 for value in round_trips_us(once, count)]
        with part("drain", str(root)), part("pour", str(root), str(FLOW_BYTES_S)):
            flowed = ours.topic("flow/count")
            time.sleep(WARM_S)
            begun, before = time.perf_counter(), flowed.call(b"")
            busy = [value / 1000 for value in round_trips_us(once, count)]
            speed = (flowed.call(b"") - before) / (time.perf_counter() - begun)
    say(f"{speed / 1e9:.2f} GB/s have flowed")
    what = f"call and reply while {speed / 1e9:.2f} GB/s of arrays flow through the bus"
    row = compare(what, "ms", busy, "ours, while nothing flows", idle, same_work=False)
    row = percentiles(row, busy)
    return [target(row, f"p99 ≤ {P99_MS_MAX:g} ms", row.ours.high <= P99_MS_MAX)]
