"""Threads of a task on warm processes: many small functions, and one alone."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.pool
import statistics
import time
from collections.abc import Callable

from benchmarks.report import Row, alternate, compare, target
from zenos.threads import Pool, wait_all

LANES = 2
ITEMS = 100_000
CALLS = 1000
RATIO_MIN = 0.9


def increment(number: int) -> int:
    """A function that costs nothing but being called."""
    return number + 1


def rows(*, quick: bool) -> list[Row]:
    """Items per second through `map`, functions per second, microseconds of one round trip."""
    rounds, items, calls = (3, ITEMS // 10, CALLS // 10) if quick else (15, ITEMS, CALLS)
    # As multiprocessing.Pool.map cuts them by itself: four chunks for each process.
    chunk = -(-items // (4 * LANES))
    context = multiprocessing.get_context("spawn")
    with (
        Pool(LANES, kind="process") as ours,
        context.Pool(LANES) as theirs,
        concurrent.futures.ProcessPoolExecutor(LANES, mp_context=context) as executor,
    ):
        peer = functools.partial(theirs.map, increment, range(items))
        rate = functools.partial(per_s, items)
        alternate(lambda: ours_map(ours, items, chunk), lambda: peer(chunk), 2)  # all are warm
        list(executor.map(increment, range(100)))
        same, own = (
            alternate(
                lambda: rate(lambda: ours_map(ours, items, size)),  # noqa: B023 - called at once
                lambda: rate(lambda: peer(size)),  # noqa: B023
                rounds,
            )
            for size in (chunk, None)
        )
        many = alternate(
            lambda: per_s(calls, lambda: ours_calls(ours, calls)),
            lambda: per_s(calls, lambda: executor_calls(executor, calls)),
            rounds,
        )
        alone = alternate(
            lambda: median_us(lambda: ours.submit(increment, 1).result(), calls),
            lambda: median_us(lambda: executor.submit(increment, 1).result(), calls),
            rounds,
        )
    pool, futures = "multiprocessing.Pool.map", "ProcessPoolExecutor.submit"
    made = compare(
        f"map of {items:,} small functions, {LANES} processes, chunks of {chunk:,}",
        "/s",
        same[0],
        pool,
        same[1],
        more_is_better=True,
    )
    reached = made.ratio is not None and made.ratio >= RATIO_MIN
    return [
        target(made, f"≥ {RATIO_MIN:g} x", reached),
        compare(
            f"map of {items:,} small functions, {LANES} processes, each with its own chunks",
            "/s",
            own[0],
            pool,
            own[1],
            more_is_better=True,
        ),
        compare(
            f"{calls:,} functions submitted one by one, all in flight",
            "/s",
            many[0],
            futures,
            many[1],
            more_is_better=True,
        ),
        compare("one function in a warm process, round trip", "µs", alone[0], futures, alone[1]),
    ]


def ours_map(pool: Pool, items: int, chunk: int | None) -> list[int]:
    """All results of a map."""
    return list(pool.map(increment, range(items), chunk=chunk))


def ours_calls(pool: Pool, calls: int) -> list[int]:
    """All results of single functions."""
    return wait_all([pool.submit(increment, number) for number in range(calls)])


def executor_calls(executor: concurrent.futures.Executor, calls: int) -> list[int]:
    """The same by the standard library."""
    futures = [executor.submit(increment, number) for number in range(calls)]
    return [future.result() for future in futures]


def per_s(count: int, work: Callable[[], list[int]]) -> float:
    """Items per second; the results are checked."""
    begun = time.perf_counter()
    found = work()
    took_s = time.perf_counter() - begun
    if found != list(range(1, count + 1)):
        raise RuntimeError("cannot measure: the results are wrong")
    return count / took_s


def median_us(call: Callable[[], object], count: int) -> float:
    """The median time of a call, in microseconds."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times)
