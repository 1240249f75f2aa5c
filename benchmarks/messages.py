"""Messages of 64 bytes between two programs: there and back, through the daemon and over the direct
socket of peers that talk much; and how many in a second."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import homes
from benchmarks.report import Figure, Row, compare, target
from zenos import bus
from zenos.bus import address

BODY = b"x" * 64
ROUND_TRIP_US_MAX = 120.0
RATE_MIN = 100_000
WARM = 200


def rows(*, quick: bool) -> list[Row]:
    """A call's round trip in µs, and messages in a second."""
    trips, count, rounds = (500, 10_000, 2) if quick else (20_000, 200_000, 5)
    with homes.temporary() as root, homes.daemon(root):
        near, calls = calls_us(root, trips, rounds)
        rates = rates_per_s(root, count, rounds)
        durable = durable_us(root, 20 if quick else 500)
    bare = raw_us(trips)
    said = homes.ray("zmq_messages.py")
    zmq = json.loads(" ".join(said)) if said else {"round_trips_us": [], "rates": []}
    said = homes.ray("ray_actor.py", str(trips // 10))
    actor = json.loads(" ".join(said)) if said else []
    reach = f"≤ {ROUND_TRIP_US_MAX:g} µs"
    what = "call and reply between peers that talk much, 64 B"
    talk = compare(what, "µs", near, "raw unix socket", bare)
    talk = target(talk, reach, talk.ours.median <= ROUND_TRIP_US_MAX)
    call = compare("call and reply through the daemon, 64 B", "µs", calls, "raw unix socket", bare)
    rate = compare(
        "messages in a second, one sender, one receiver, through the daemon",
        "/s",
        rates,
        "ZeroMQ push and pull over ipc, nothing in between",
        zmq["rates"],
        more_is_better=True,
        same_work=False,
    )
    made = [
        percentiles(talk, near),
        percentiles(call, calls),
        target(rate, f"≥ {RATE_MIN:,}/s", rate.ours.median >= RATE_MIN),
        compare("durable send, answered after the commit, one at a time", "µs", durable),
    ]
    if actor:
        made.insert(1, compare(what, "µs", near, "a method of a Ray actor", actor))
    if zmq["round_trips_us"]:
        made.insert(
            1,
            compare(
                what,
                "µs",
                near,
                "ZeroMQ request and reply over ipc, nothing in between",
                zmq["round_trips_us"],
                same_work=False,
            ),
        )
    return made


def percentiles(row: Row, values: list[float]) -> Row:
    """With the 1st and the 99th percentile instead of the extremes: of so many, one is anything."""
    import msgspec

    ranked = sorted(values)
    low, high = ranked[len(ranked) // 100], ranked[len(ranked) * 99 // 100]
    figure = Figure(median=row.ours.median, low=low, high=high, count=row.ours.count)
    return msgspec.structs.replace(row, ours=figure, what=f"{row.what} (1 % to 99 %)")


@contextmanager
def part(*arguments: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """The other end."""
    argv = [sys.executable, "-m", "benchmarks.message_part", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, pass_fds=fds) as process:
        try:
            yield process
        finally:
            process.terminate()


def through_daemon(root: Path) -> bus.Bus:
    """A bus whose calls never go over a direct socket."""
    where, hello = address.find(root)
    return bus.Bus(where, hello, direct=False)


def calls_us(root: Path, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """How long calls take between peers that talk much, and through the daemon: in turns."""
    with (
        part("echo", str(root), "near"),
        part("echo", str(root), "far"),
        bus.connect(home=root) as ours,
        through_daemon(root) as other,
    ):
        near, far = ours.topic("near"), other.topic("far")
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            found[0].extend(round_trips_us(lambda: near.call(BODY), count // rounds))
            found[1].extend(round_trips_us(lambda: far.call(BODY), count // rounds))
        return found


def round_trips_us(once: Callable[[], object], count: int) -> list[float]:
    """How long each takes, once it is warm."""
    for _ in range(WARM):
        once()
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        once()
        found.append(1e6 * (time.perf_counter() - begun))
    return found


def rates_per_s(root: Path, count: int, rounds: int) -> list[float]:
    """From the first one sent to the last one received."""
    found = []
    with part("sink", str(root), str(count), str(rounds)) as other, bus.connect(home=root) as ours:
        assert other.stdout is not None
        topic = ours.topic("sink")
        for _ in range(rounds):
            assert other.stdout.readline() == "ready\n"
            begun = time.perf_counter()
            for _ in range(count):
                topic.send(BODY)
            ours.flush()
            assert other.stdout.readline() == "done\n"
            found.append(count / (time.perf_counter() - begun))
    return found


def durable_us(root: Path, count: int) -> list[float]:
    """One durable message after another."""
    with bus.connect(home=root) as ours:
        topic = ours.topic("jobs", durable=True)
        return round_trips_us(lambda: topic.send(BODY), count)


def raw_us(count: int) -> list[float]:
    """The same bytes over a pair of sockets, with nothing in between."""
    ours, theirs = socket.socketpair()
    with part("socket", str(theirs.fileno()), fds=(theirs.fileno(),)):
        theirs.close()

        def once() -> None:
            ours.sendall(BODY)
            ours.recv(65536)

        found = round_trips_us(once, count)
        ours.close()
    return found
