"""One timer for all deadlines of an event loop: each ends what waits, and none keeps it."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import weakref

from zenos.bus.deadlines import SPENT_MAX, Deadlines

LONG_S = 60.0


def note(ended: list[int], place: int, _: object) -> None:
    ended.append(place)


async def test_each_ends_in_its_time_whatever_came_first() -> None:
    loop = asyncio.get_running_loop()
    deadlines, ended = Deadlines(loop), list[int]()
    futures = []
    for place, after_s in enumerate((LONG_S, 0.02, 0.01, -1.0)):
        future: asyncio.Future[bool] = loop.create_future()
        future.add_done_callback(functools.partial(note, ended, place))
        deadlines.watch(future, time.monotonic() + after_s)
        futures.append(future)
    assert await asyncio.gather(*futures[1:]) == [False] * 3
    assert ended == [3, 2, 1]
    assert not futures[0].done()
    deadlines.close()


async def test_what_came_in_time_is_let_go_long_before() -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    first = loop.create_future()
    gone = weakref.ref(first)
    deadlines.watch(first, time.monotonic() + LONG_S)
    first.set_result(True)
    del first
    kept = loop.create_future()
    deadlines.watch(kept, time.monotonic() + 0.05)
    for _ in range(SPENT_MAX + 1):
        done = loop.create_future()
        deadlines.watch(done, time.monotonic() + LONG_S)
        done.set_result(True)
    gc.collect()
    assert gone() is None
    assert await kept is False
    deadlines.close()
