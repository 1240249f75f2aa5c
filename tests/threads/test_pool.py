"""What a program relies on, on OS threads and in processes alike."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.processes import until
from tests.threads import work
from zenos.core import limits
from zenos.core.errors import BusyError, ConflictError, DeadlineError, InvalidError, LaneError
from zenos.threads import Options, Pool, wait_all
from zenos.threads.runner import Kind

KINDS: tuple[Kind, ...] = ("thread", "process")


@pytest.fixture(params=KINDS, scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool of two lanes, shared by the tests that leave it as it was."""
    before = threading.active_count()
    with Pool(2, kind=request.param) as made:
        yield made
    assert threading.active_count() == before


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
def test_map_gives_the_results_in_order(pool: Pool, chunk: int | None) -> None:
    assert list(pool.map(work.square, range(500), chunk=chunk)) == [x * x for x in range(500)]


def test_map_unordered_gives_what_is_ready_first(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with pool.map_unordered(
        lambda x: work.wait_for(str(gate)) if x == 0 else x, range(10), chunk=1
    ) as results:
        first = list(itertools.islice(results, 5))
        gate.touch()
        assert sorted([*map(str, first), *map(str, results)]) == sorted(
            [str(gate), *map(str, range(1, 10))]
        )
    assert 0 not in first
    assert str(gate) not in first


def test_a_slow_first_item_holds_lanes_back_no_more_than_the_window(
    pool: Pool, tmp_path: Path
) -> None:
    gate, read = tmp_path / "gate", []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = pool.map(
        lambda x: (work.wait_for(str(gate)), x)[1] if x == 0 else x, items(), chunk=2, window=5
    )
    until(lambda: pool.snapshot().queued == 0)
    assert len(read) == 10  # five chunks, taken before anything was asked for
    gate.touch()
    assert next(results) == 0
    assert len(read) <= 12
    assert list(results) == list(range(1, 1000))


def test_a_generator_without_end_is_read_as_it_is_needed(pool: Pool) -> None:
    read = itertools.count()
    with pool.map(work.square, read) as results:
        assert list(itertools.islice(results, 100)) == [x * x for x in range(100)]
    assert next(read) < 200_000


def test_closing_results_early_leaves_nothing_running(pool: Pool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with pool.map(lambda x: x if x < 3 else work.until_told(str(begun)), range(9), chunk=1) as got:
        assert list(itertools.islice(got, 3)) == [0, 1, 2]
    until(lambda: pool.snapshot().threads == [])


def test_an_error_comes_in_its_place_after_the_results_before_it(pool: Pool) -> None:
    got: list[int] = []
    with pytest.raises(ValueError, match="five is refused"):
        got.extend(pool.map(work.fail_at_five, range(20), chunk=4))
    assert got == [0, 1, 2, 3, 4]


def test_an_error_of_the_input_comes_after_the_results_of_what_was_read(pool: Pool) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    got: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(pool.map(work.square, items(), chunk=2))
    assert got == [0, 1, 4, 9, 16][: len(got)]
    assert len(got) >= 4


def test_reduce_is_the_same_however_many_lanes_there_are(pool: Pool) -> None:
    items = [1 / n for n in range(1, 5000)]
    with Pool(1) as one:
        alone = one.reduce(lambda a, b: a + b, items, chunk=64)
    assert pool.reduce(lambda a, b: a + b, items, chunk=64) == alone
    assert pool.reduce(lambda a, b: a + b, "zenos", each=str.upper, chunk=2) == "ZENOS"
    with pytest.raises(InvalidError, match="cannot reduce nothing"):
        pool.reduce(lambda a, b: a + b, [])


def test_a_future_gives_the_result_or_the_error(pool: Pool) -> None:
    future = pool.submit(pow, 2, 10)
    assert future.result(60) == 1024
    assert future.done()
    failed = pool.submit(work.fail_at_five, 5)
    assert isinstance(failed.exception(60), ValueError)
    assert pool.submit(int, "ff", base=16).result(60) == 255


def test_futures_work_with_the_standard_library(pool: Pool) -> None:
    futures = [pool.submit(work.square, x) for x in range(10)]
    done = {future.result() for future in concurrent.futures.as_completed(futures, 60)}
    assert done == {x * x for x in range(10)}
    assert wait_all(futures) == [x * x for x in range(10)]
    called: list[int] = []
    futures[0].add_done_callback(lambda future: called.append(future.result()))
    assert called == [0]


async def test_a_future_can_be_awaited_and_a_cancelled_coroutine_cancels_it(
    pool: Pool, tmp_path: Path
) -> None:
    assert await pool.submit(work.square, 12) == 144
    future = pool.submit(work.until_told, str(tmp_path / "begun"))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(_of(future), 0.05)
    assert future.cancelled()


async def _of(future: concurrent.futures.Future[str]) -> str:
    return await future  # type: ignore[misc]


def test_a_cancelled_thread_that_waits_never_starts(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    busy = [pool.submit(work.wait_for, str(gate)) for _ in range(2)]
    waiting = pool.submit(Path.touch, tmp_path / "started")
    assert waiting.cancel()
    assert waiting.cancelled()
    gate.touch()
    wait_all(busy)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    assert pool.submit(work.square, 2).result() == 4
    assert not (tmp_path / "started").exists()
    assert not busy[0].cancel()  # it has ended


def test_a_cancelled_thread_that_runs_is_told_and_its_lane_goes_on(
    pool: Pool, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    deaths = pool.snapshot().lanes_died
    future = pool.submit(work.until_told, str(begun))
    until(begun.exists)
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    until(lambda: all(lane.state == "idle" for lane in pool.snapshot().lanes))
    assert pool.snapshot().lanes_died == deaths


def test_a_thread_over_its_time_ends_with_an_error_that_says_so(pool: Pool, tmp_path: Path) -> None:
    options = Options(timeout_s=0.05, name="slow")
    future = pool.submit(work.until_told, str(tmp_path / "begun"), options=options)
    with pytest.raises(DeadlineError, match=r"cannot finish slow: .* time limit of 0\.05 s"):
        future.result(60)


def test_waiting_too_short_is_an_error_and_the_thread_goes_on(pool: Pool, tmp_path: Path) -> None:
    future = pool.submit(work.wait_for, str(tmp_path / "gate"))
    with pytest.raises(DeadlineError, match="the thread goes on"):
        future.result(0.01)
    with pytest.raises(DeadlineError, match="the thread goes on"):
        future.exception(0.01)
    (tmp_path / "gate").touch()
    assert future.result(60)


def test_a_failed_thread_is_tried_again_as_often_as_it_was_asked(
    pool: Pool, tmp_path: Path
) -> None:
    options = Options(retries=2, backoff_s=0.001)
    assert pool.submit(work.fail_twice, str(tmp_path / "a"), options=options).result(60) == 3
    with pytest.raises(OSError, match="failure 2"):
        pool.submit(work.fail_twice, str(tmp_path / "b"), options=Options(retries=1)).result(60)
    other = Options(retries=5, retry_on=(KeyError,))
    with pytest.raises(OSError, match="failure 1"):
        pool.submit(work.fail_twice, str(tmp_path / "c"), options=other).result(60)


def test_what_was_cut_short_is_never_a_result(pool: Pool, tmp_path: Path) -> None:
    options = Options(timeout_s=2.0, retries=2)
    assert (
        pool.submit(work.slow_once, str(tmp_path / "mark"), options=options).result(60) == "whole"
    )


def test_a_retry_of_a_chunk_begins_at_the_item_that_failed(pool: Pool, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    call = functools.partial(work.note_and_fail, str(marks))
    results = pool.map(call, range(6), chunk=6, options=Options(retries=1))
    assert list(results) == list(range(6))
    assert marks.read_text().split() == ["0", "1", "2", "3", "3", "4", "5"]


def test_progress_is_told_and_ends_with_all(pool: Pool) -> None:
    told: list[tuple[int, int | None]] = []
    results = pool.map(
        work.square, range(100), chunk=10, progress=lambda done, total: told.append((done, total))
    )
    assert results.total == 100
    list(results)
    assert told == [(n, 100) for n in range(10, 101, 10)]
    assert results.done == 100


def test_a_snapshot_shows_who_runs_where_and_how_far(pool: Pool, tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    options = Options(name="shown", priority=75)
    for one in [pool.submit(work.half_way, str(begun), str(tmp_path)) for _ in range(2)]:
        one.result(60)  # each lane has used some time before
    begun.unlink()
    future = pool.submit(work.half_way, str(begun), str(gate), options=options)
    more = [pool.submit(work.wait_for, str(gate)) for _ in range(2)]
    until(begun.exists)
    view = pool.snapshot()
    gate.touch()
    wait_all([future, *more])
    (shown,) = [thread for thread in view.threads if thread.name == "shown"]
    assert (shown.state, shown.priority, shown.attempt, shown.progress) == ("running", 75, 1, 0.5)
    assert shown.lane in {lane.id for lane in view.lanes}
    assert (view.running, view.queued) == (2, 1)
    (lane,) = [lane for lane in view.lanes if lane.id == shown.lane]
    assert work.BURN_S <= shown.cpu_s <= lane.cpu_s - work.BURN_S
    assert [t.cpu_s for t in view.threads if t.lane is None] == [0.0]


def test_what_a_pool_cannot_do_is_said(pool: Pool) -> None:
    for call in (
        lambda: pool.resize(0),
        lambda: pool.map(work.square, [1], chunk=0),
        lambda: pool.map(work.square, [1], window=0),
        lambda: pool.submit(work.square, 1, options=Options(priority=101)),
        lambda: pool.submit(work.square, 1, options=Options(retries=-1)),
        lambda: pool.submit(work.square, 1, options=Options(timeout_s=0)),
        lambda: Pool(kind="fiber"),  # type: ignore[arg-type]
        lambda: Pool(0),
    ):
        with pytest.raises(InvalidError, match=r"^cannot "):
            call()


def test_what_comes_of_a_chunk_after_its_time_changes_nothing(tmp_path: Path) -> None:
    """Whether whoever iterates looks before, or after its lane has let go."""
    gate = tmp_path / "gate"

    def late(number: int) -> int:
        if number:
            work.wait_for(str(gate))
        return number

    with Pool(1) as pool:
        results = pool.map(late, range(3), chunk=3, options=Options(timeout_s=0.05))
        until(lambda: pool.snapshot().failed == 1)
        gate.touch()
        until(lambda: pool.snapshot().lanes[0].state == "idle")
        with pytest.raises(DeadlineError, match="longer than its time limit"):
            next(results)


def test_a_system_without_os_threads_is_an_error_and_not_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("starved-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    said = r"no lane can be started \(can't start new thread\)"
    with Pool(1, name="starved") as pool, pytest.raises(LaneError, match=said):
        pool.submit(work.square, 2).result(60)


def test_a_map_that_cannot_begin_leaves_nothing_behind(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    held = [pool.submit(work.wait_for, str(gate)) for _ in range(2)]
    until(lambda: pool.snapshot().queued == 0)
    monkeypatch.setattr(limits, "THREADS_WAITING_MAX", 3)
    with pytest.raises(BusyError, match="3 wait already"):
        pool.map(work.square, range(10), chunk=1)
    assert pool.snapshot().queued == 0
    gate.touch()
    wait_all(held)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_grows_at_once_and_shrinks_as_threads_end(kind: Kind, tmp_path: Path) -> None:
    gates = [tmp_path / str(n) for n in range(3)]
    with Pool(1, kind=kind) as pool:
        futures = [pool.submit(work.wait_for, str(gate)) for gate in gates]
        pool.resize(3)
        until(lambda: pool.snapshot().running == 3)
        pool.resize(1)
        assert pool.lanes == 1
        for left, gate in ((2, gates[0]), (1, gates[1])):
            gate.touch()
            until(lambda left=left: len(pool.snapshot().lanes) == left)
        gates[2].touch()
        wait_all(futures)


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_by_an_error_cancels_and_leaves_no_thread(kind: Kind, tmp_path: Path) -> None:
    before = threading.active_count()
    pool = Pool(1, kind=kind, grace_s=5)
    running = pool.submit(work.until_told, str(tmp_path / "begun"))
    waiting = pool.submit(work.square, 1)
    until((tmp_path / "begun").exists)
    with pytest.raises(KeyError), pool:
        raise KeyError
    assert running.cancelled()
    assert waiting.cancelled()
    assert threading.active_count() == before
    with pytest.raises(ConflictError, match="the pool is closed"):
        pool.submit(work.square, 1)


def test_closing_waits_for_what_was_begun(tmp_path: Path) -> None:
    with Pool(1) as pool:
        futures = [pool.submit(work.square, x) for x in range(50)]
    assert [future.result() for future in futures] == [x * x for x in range(50)]


def test_waiting_on_a_lane_for_its_own_pool_is_an_error_instead_of_a_deadlock() -> None:
    with Pool(1) as pool:
        for wait in (
            lambda: pool.submit(work.square, 2).result(),
            lambda: list(pool.map(work.square, [2])),
            pool.close,
        ):
            with pytest.raises(ConflictError, match="cannot wait for a thread on a lane"):
                pool.submit(wait).result(60)


def test_the_policy_decides_who_is_next(tmp_path: Path) -> None:
    order: list[int] = []
    with Pool(1, policy="priority") as pool:
        pool.submit(work.wait_for, str(tmp_path / "gate"))
        for priority in (25, 75, 50):
            pool.submit(order.append, priority, options=Options(priority=priority))
        (tmp_path / "gate").touch()
    assert order == [75, 50, 25]


@pytest.mark.parametrize("kind", KINDS)
def test_closing_waits_no_longer_than_it_may_for_who_is_called_back(
    kind: Kind, tmp_path: Path
) -> None:
    begin, called, gate = tmp_path / "begin", threading.Event(), threading.Event()

    def call_back(_: object) -> None:
        called.set()
        gate.wait(60)

    pool = Pool(1, kind=kind)
    pool.submit(work.wait_for, str(begin)).add_done_callback(call_back)
    begin.touch()
    assert called.wait(60)
    with ThreadPoolExecutor(1) as closing:
        closed = closing.submit(pool.close, timeout=0.05)
        try:
            assert closed.result(20) is False
        finally:
            gate.set()
    assert pool.close(timeout=60)
