"""Functions as tasks: how many in a second, one alone, and a map; beside Ray and the library's."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zenos
from benchmarks import homes
from benchmarks.report import Row, alternate, compare, target
from benchmarks.threads import increment
from zenos.calls.calling import links
from zenos.core import durable

LANES = 2
ITEMS = 100_000
CALLS = 10_000
ALONE = 500
RATE_RATIO_MIN, MAP_RATIO_MIN = 5.0, 0.9
ALONE_US_MAX = 300.0
Single = Callable[[int], object]


def rows(*, quick: bool) -> list[Row]:
    """Calls per second accepted durably, microseconds of one round trip, items per second."""
    rounds, calls, alone, items = (2, 1000, 50, ITEMS // 10) if quick else (9, CALLS, ALONE, ITEMS)
    chunk = -(-items // (4 * LANES))  # as multiprocessing.Pool.map cuts them by itself
    said = homes.ray("ray_calls.py")
    ray = json.loads(" ".join(said)) if said else {"rate": [], "alone_us": [], "map": []}
    context = multiprocessing.get_context("spawn")
    with (
        homes.temporary() as root,
        homes.daemon(root),
        calls_of(root),
        context.Pool(LANES) as pool,
        concurrent.futures.ProcessPoolExecutor(LANES, mp_context=context) as executor,
    ):
        list(executor.map(increment, range(100)))
        keep, pass_ = (_call(durable=True), _call(durable=False))
        peer: Single = lambda n: executor.submit(increment, n).result()  # noqa: E731
        pool_map = functools.partial(pool.map, increment, range(items), chunk)
        alternate(lambda: ours_map(items, chunk), pool_map, 2)  # all are warm
        rate, _ = alternate(lambda: ours_per_s(calls), lambda: ours_per_s(calls), -(-rounds // 2))
        kept, synced = alternate(lambda: times_us(keep, alone), lambda: syncs_us(root, alone), 3)
        passed, other = alternate(lambda: times_us(pass_, alone), lambda: times_us(peer, alone), 3)
        mapped, pooled = alternate(
            lambda: items / seconds(lambda: ours_map(items, chunk)),
            lambda: items / seconds(pool_map),
            rounds,
        )
    made = _alone_rows(_flat(kept), _flat(synced), _flat(passed), _flat(other), ray["alone_us"])
    many = compare(
        f"{calls:,} functions accepted durably, all in flight",
        "/s",
        rate,
        "Ray tasks, not durable",
        ray["rate"],
        more_is_better=True,
    )
    made.insert(0, _reach(many, f"≥ {RATE_RATIO_MIN:g} x", RATE_RATIO_MIN))
    what = f"zenos.map of {items:,} small functions, {LANES} lanes, chunks of {chunk:,}"
    name = "multiprocessing.Pool.map"
    beside = compare(what, "/s", mapped, name, pooled, more_is_better=True)
    made.append(_reach(beside, f"≥ {MAP_RATIO_MIN:g} x", MAP_RATIO_MIN))
    beside = compare(what, "/s", mapped, "Ray, the same chunks", ray["map"], more_is_better=True)
    made.append(_reach(beside, f"≥ {RATE_RATIO_MIN:g} x", RATE_RATIO_MIN))
    return made


def _alone_rows(
    kept: list[float],
    synced: list[float],
    passed: list[float],
    other: list[float],
    ray: list[float],
) -> list[Row]:
    sync_us = statistics.median(synced)
    durable_row = compare(
        "one function, round trip, durable",
        "µs",
        kept,
        "write and fsync of 200 bytes alone",
        synced,
        same_work=False,
    )
    passing = compare(
        "one function, round trip, not kept", "µs", passed, "ProcessPoolExecutor.submit", other
    )
    tail = sorted(passed)[int(0.99 * len(passed))]
    return [
        target(
            durable_row,
            f"≤ fsync + {ALONE_US_MAX:g} µs",
            durable_row.ours.median <= sync_us + ALONE_US_MAX,
        ),
        target(passing, f"≤ {ALONE_US_MAX:g} µs", passing.ours.median <= ALONE_US_MAX),
        target(compare("the same, 99th percentile", "µs", [tail]), "≤ 1000 µs", tail <= 1000),
        compare("one function, round trip, not kept", "µs", passed, "Ray task", ray),
    ]


def _reach(row: Row, reach: str, least: float) -> Row:
    return row if row.ratio is None else target(row, reach, row.ratio >= least)


@contextmanager
def calls_of(root: Path) -> Iterator[None]:
    """Calls go to the daemon of that home; at the end its hosts are let go."""
    before = os.environ.get("ZENOS_HOME")
    os.environ["ZENOS_HOME"] = str(root)
    try:
        yield
    finally:
        links.close(0)
        with zenos.connect(home=root) as client:
            for view in client.tasks(kind="call", state="queued,starting,running"):
                client.cancel(view.task.id)
                client.task(view.task.id).wait(60)
        if before is None:
            del os.environ["ZENOS_HOME"]
        else:
            os.environ["ZENOS_HOME"] = before


def _call(*, durable: bool) -> Single:
    return lambda n: zenos.call(increment, n, lanes=LANES, durable=durable).result(60)


def ours_map(items: int, chunk: int) -> list[int]:
    """All results of a map."""
    return list(zenos.map(increment, range(items), lanes=LANES, chunk=chunk))


def ours_per_s(calls: int) -> float:
    """Calls per second, from the first one to the last result; the results are checked."""
    begun = time.perf_counter()
    futures = [zenos.call(increment, number, lanes=LANES) for number in range(calls)]
    found = [future.result(60) for future in futures]
    took_s = time.perf_counter() - begun
    if found != list(range(1, calls + 1)):
        raise RuntimeError("cannot measure: the results are wrong")
    return calls / took_s


def times_us(call: Single, count: int) -> list[float]:
    """Of each call alone, in microseconds."""
    return [1e6 * seconds(functools.partial(call, number)) for number in range(count)]


def syncs_us(root: Path, count: int) -> list[float]:
    """What the disk takes by itself: a small write to the end of a file, made durable."""
    fd = os.open(root / "syncs", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def once() -> None:
        durable.append(fd, bytes(200))
        durable.sync(fd)

    try:
        return [1e6 * seconds(once) for _ in range(count)]
    finally:
        os.close(fd)


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _flat(rounds: list[list[float]]) -> list[float]:
    return [time_us for times in rounds for time_us in times]
