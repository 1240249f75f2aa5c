"""What is said of threads: whoever says it, it can be shown, and it is not much."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from zenos.core import limits
from zenos.core.thread_views import LaneView, PoolView, ProcessThreads, ThreadView
from zenos.kernel.shown_threads import ShownThreads

NUMBERS = st.integers(-(2**63), 2**63)
TIMES = st.floats(allow_nan=True, allow_infinity=True)
THREADS = st.builds(
    ThreadView,
    id=NUMBERS,
    name=st.text(st.characters(exclude_categories=()), max_size=200),
    priority=NUMBERS,
    attempt=NUMBERS,
    items=NUMBERS,
    lane=st.none() | NUMBERS,
    progress=TIMES,
    cpu_s=TIMES,
    waited_s=TIMES,
    ran_s=TIMES,
)
LANES = st.builds(LaneView, id=NUMBERS, pid=NUMBERS, cpu_s=TIMES)
POOLS = st.builds(PoolView, lanes=st.lists(LANES, max_size=3), threads=st.lists(THREADS))


def pool(threads: int, name: str = "pool") -> PoolView:
    counts = dict.fromkeys(("submitted", "succeeded", "failed", "cancelled", "retried"), 0)
    return PoolView(
        name=name,
        kind="thread",
        policy="fifo",
        wanted=1,
        queued=threads,
        running=0,
        lanes_died=0,
        lanes=[LaneView(id=n, state="idle", pid=1, cpu_s=0.0) for n in range(threads)],
        threads=[
            ThreadView(id=n, name="t", state="queued", priority=50, attempt=0, items=1)
            for n in range(threads)
        ],
        **counts,
    )


def report(*pools: PoolView) -> ProcessThreads:
    return ProcessThreads(pid=1, pools=list(pools))


@given(st.builds(ProcessThreads, pid=NUMBERS, pools=st.lists(POOLS, max_size=3)))
def test_whatever_a_task_says_can_be_sent_and_shown(said: ProcessThreads) -> None:
    shown = said.bounded()
    text = msgspec.json.encode(shown)
    assert msgspec.json.decode(text, type=ProcessThreads) == shown
    assert json.loads(text) == msgspec.to_builtins(shown)
    for view in shown.pools:
        for name in [view.name, *(thread.name for thread in view.threads)]:
            assert name.isprintable()
            assert len(name) <= limits.NAME_SHOWN_CHARS_MAX
        for thread in view.threads:
            assert 0 <= thread.progress <= 1
            assert min(thread.id, thread.items, thread.cpu_s, thread.waited_s, thread.ran_s) >= 0
    assert shown.bounded() == shown


def test_there_is_a_bound_on_pools_lanes_and_threads() -> None:
    most = limits.THREADS_REPORTED_MAX
    shown = report(*(pool(most - 1) for _ in range(limits.POOLS_REPORTED_MAX + 1))).bounded()
    assert len(shown.pools) == limits.POOLS_REPORTED_MAX
    assert [len(view.threads) for view in shown.pools[:3]] == [most - 1, 1, 0]
    assert [len(view.lanes) for view in shown.pools[:3]] == [most - 1, 1, 0]
    assert shown.count == (most - 1) * limits.POOLS_REPORTED_MAX


def test_a_report_is_shown_until_its_process_or_its_task_is_gone() -> None:
    shown = ShownThreads()
    shown.heard("t1", "a", report(pool(2)), 10.0)
    shown.heard("t1", "b", report(pool(1)), 10.0)
    shown.heard("t2", "c", report(pool(1)), 10.0)
    assert shown.count("t1") == 3
    shown.heard("t1", "a", report(pool(1)), 11.0)
    (first, second) = shown.of("t1", 13.0)
    assert first.pools[0].threads[0].waited_s == 2.0
    assert second.pools[0].threads[0].waited_s == 3.0
    shown.gone("t1", "a")
    assert shown.count("t1") == 1
    shown.gone("t1", "unknown")
    shown.forget("t1")
    assert shown.of("t1", 13.0) == []
    assert shown.count("t2") == 1


def test_a_task_of_very_many_processes_shows_the_first_of_them() -> None:
    shown = ShownThreads()
    for number in range(limits.THREAD_PROCESSES_MAX + 5):
        shown.heard("t1", f"p{number}", report(pool(1)), 0.0)
    assert len(shown.of("t1", 0.0)) == limits.THREAD_PROCESSES_MAX
    shown.gone("t1", "p0")
    shown.heard("t1", "late", report(pool(1)), 0.0)
    assert len(shown.of("t1", 0.0)) == limits.THREAD_PROCESSES_MAX
