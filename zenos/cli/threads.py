"""Threads of tasks, as lines under them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from zenos.cli.output import coloured, put_json, table
from zenos.cli.rows import clipped, task_doing, with_owners
from zenos.client.display import COLOURS, show_seconds, took_s
from zenos.core.errors import NotFoundError
from zenos.core.task import State

if TYPE_CHECKING:
    from zenos.client import Client, TaskThreads, TaskView
    from zenos.core.task import Principal
    from zenos.core.thread_views import PoolView, ThreadView

COLUMNS = ("ID", "NAME", "POOL", ">LANE", "STATE", ">PRIO", ">TIME", ">CPU TIME", "PROGRESS")
_COLOURS = {
    "running": COLOURS[State.RUNNING],
    "prefill": COLOURS[State.STARTING],
    "queued": COLOURS[State.QUEUED],
    "delayed": COLOURS[State.PAUSED],
}


def threads_of(client: Client, views: Iterable[TaskView]) -> dict[str, TaskThreads]:
    """What the threads of these tasks do, of those that have some; by id."""
    found = {}
    for view in views:
        if view.threads:
            try:
                found[view.task.id] = client.threads(view.task.id)
            except NotFoundError:  # ended and forgotten meanwhile
                continue
    return found


def put_tree(
    views: Sequence[TaskView], known: Mapping[str, TaskThreads], *, empty: str, json: bool
) -> None:
    """Print tasks with their threads; of json: each task's view with its `processes`."""
    if json:
        put_json(
            [
                {
                    **msgspec.to_builtins(view),
                    "processes": known[view.task.id].processes if view.task.id in known else [],
                }
                for view in views
            ]
        )
        return
    lines = list(_lines(views, known))
    rows, owners = [row for row, _ in lines], [owner for _, owner in lines]
    table(*with_owners(COLUMNS, rows, owners), empty=empty)


def _lines(
    views: Iterable[TaskView], known: Mapping[str, TaskThreads]
) -> Iterator[tuple[tuple[Any, ...], Principal | None]]:
    """Each task with whose it is, and under it its threads."""
    for view in views:
        task = view.task
        state = coloured(str(task.state), COLOURS[task.state])
        took = show_seconds(took_s(task, time.time()))
        priority = task.spec.priority
        row = (task.id, task.label, "", "", state, priority, took, "", task_doing(view))
        yield row, task.principal
        if task.id in known:
            yield from ((line, None) for line in thread_lines(known[task.id]))


def thread_lines(threads: TaskThreads) -> Iterator[tuple[Any, ...]]:
    """A line for each thread, and one for those of a pool that aren't shown."""
    for process in threads.processes:
        for pool in process.pools:
            for thread in pool.threads:
                yield _line(pool, thread)
            more = pool.running + pool.queued - len(pool.threads)
            if more > 0:
                yield "  …", f"{more} more", pool.name, "", "", "", "", "", ""


def _line(pool: PoolView, thread: ThreadView) -> tuple[Any, ...]:
    runs = thread.runs
    doing = []
    if thread.unit:
        doing += [_count(thread)] if runs or thread.total else []
    elif runs or thread.progress:
        doing.append(f"{thread.progress:.0%}")
    if thread.items != 1:
        doing.append(f"of {thread.items} items")
    if thread.attempt > 1:
        doing.append(f"(try {thread.attempt})")
    return (
        f"  {thread.id}",
        thread.name,
        pool.name,
        "" if thread.lane is None else thread.lane,
        coloured(thread.state, _COLOURS[thread.state]),
        thread.priority,
        show_seconds(thread.ran_s if runs else thread.waited_s),
        f"{thread.cpu_s:.1f} s" if runs and (thread.cpu_s or not thread.unit) else "",
        clipped(" ".join(doing)),
    )


def _count(thread: ThreadView) -> str:
    """As `37 of 128 tokens`."""
    done = f"{thread.done:,}"
    return f"{done} of {thread.total:,} {thread.unit}" if thread.total else f"{done} {thread.unit}"
