"""A pool of lanes, as a program uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any, NoReturn, Self, TypeVar

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.threads import allocation, machine
from zenos.threads.checks import number, text, whole
from zenos.threads.decomposition import decompose
from zenos.threads.future import Future, may_wait
from zenos.threads.job import DEFAULTS, Job, Options
from zenos.threads.machine import Outcome
from zenos.threads.mapping import Fold, Progress, Results
from zenos.threads.policy import POLICIES, Policy
from zenos.threads.runner import Kind, Runner
from zenos.threads.views import PoolView

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Runs threads on lanes.

    lanes: how many; else one for each core of the task's allocation. kind: `thread` for OS threads
    of this process, `process` for warm processes that are started once. policy: which waiting
    thread is next (see policy.py). grace_s: how long a process has to end what was cancelled or is
    over its time, before it is killed and replaced. ageing: how much a long wait can add to a
    priority, with the policy `aged`.

    Use it in a `with`: leaving that waits for all threads, or cancels them when an error is the
    reason for leaving. All methods may be called from any OS thread. In a fork of its process it
    can only be closed: everything else raises InvalidError.
    """

    def __init__(
        self,
        lanes: int | None = None,
        *,
        kind: Kind = "thread",
        policy: Policy = "fifo",
        name: str = "pool",
        grace_s: float = limits.THREAD_GRACE_S,
        ageing: float = 25.0,
    ) -> None:
        if kind not in ("thread", "process") or policy not in POLICIES:
            raise InvalidError(
                f"cannot make a pool of kind {kind!r} and policy {policy!r}: kinds are thread and "
                f"process, policies {', '.join(POLICIES)}"
            )
        count = allocation.lanes_for(allocation.cpus()) if lanes is None else _checked(lanes)
        self.kind, self.policy, self.name = kind, policy, text(name, "name")
        self._grace_s = number(grace_s, "grace_s")
        weight = number(ageing, "ageing", most=limits.THREAD_AGEING_MAX)
        self._runner = Runner(count, kind, policy, name, self._grace_s, weight)

    # -- threads

    def submit(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        options: Options | None = None,
        **kwargs: Any,
    ) -> Future[T]:
        """Call the function with these arguments on a lane. BusyError when too many wait."""
        number = self._runner.number()
        future: Future[T] = Future(self._runner, number)

        def end(job: Job, outcome: Outcome) -> None:
            error = self._runner.error_of(job, outcome)
            if isinstance(error, CancelledError):
                future.give_up()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(job.results[0])

        made = self._runner.function(function, single=True)
        self._runner.start(Job(number, made, [(args, kwargs)], (options or DEFAULTS).check(), end))
        return future

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        options: Options | None = None,
        chunk: int | None = None,
        window: int | None = None,
        progress: Progress | None = None,
    ) -> Results[R]:
        """Call the function with each item; results in the order of the items, as they come.

        A thread is a chunk of items: of `chunk`, else of about 50 ms of work, learned on the way
        (one item where `options` limit its time). At most `window` chunks are taken from `items`
        and not yet given out: a generator is read only as far as that.

        Results can be closed early; what isn't needed any more is cancelled then, as it is when an
        item fails, whose error is raised in its place. progress: called with the number of items
        done, and of all where that is known, in whoever iterates.
        """
        return Results(
            self._runner, function, items, options, chunk=chunk, window=window, progress=progress
        )

    def map_unordered(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        options: Options | None = None,
        chunk: int | None = None,
        window: int | None = None,
        progress: Progress | None = None,
    ) -> Results[R]:
        """As `map`, but results come as chunks end, whichever is first."""
        return Results(
            self._runner,
            function,
            items,
            options,
            chunk=chunk,
            window=window,
            progress=progress,
            ordered=False,
        )

    def reduce(
        self,
        combine: Callable[[R, R], R],
        items: Iterable[T],
        *,
        each: Callable[[T], R] | None = None,
        options: Options | None = None,
        chunk: int = limits.REDUCE_ITEMS,
    ) -> R:
        """All items combined to one, each of them through `each` first, if that is given.

        Items are combined from left to right in runs of `chunk`, these on lanes, and their results
        from left to right. So the order is the same whatever the lanes do, and with floating-point
        sums the result is, too; it is that of functools.reduce where `combine` is associative.
        InvalidError when there is no item.
        """
        chunk = whole(chunk, "chunk", 1)
        fold = Fold(combine, each)
        with self.map(fold, decompose(items, size=chunk), options=options, chunk=1) as parts:
            found = list(parts)
        if not found:
            raise InvalidError("cannot reduce nothing: there are no items")
        return Fold[R, R](combine, None)(found)

    # -- lanes

    @property
    def lanes(self) -> int:
        """How many lanes there are to be."""
        return self._runner.lanes

    def resize(self, lanes: int) -> None:
        """Have so many lanes. More start at once; fewer are left as running threads end."""
        self._runner.check_process()
        self._runner.step(machine.Resize(_checked(lanes)))

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no more, wait until all threads have ended, and end the lanes; whether that is done.

        cancel: cancel all threads first. A function on an OS thread can't be ended from outside:
        for one that doesn't look at `cancelled()` this waits only the pool's grace time. In a fork
        it leaves the parent's threads and lanes alone, and is done at once.
        """
        if self._runner.is_forked:
            return True
        may_wait(self._runner)
        self._runner.step(machine.Close(cancel))
        if cancel and timeout is None and self.kind == "thread":
            timeout = self._grace_s
        return self._runner.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(cancel=error is not None)

    def __reduce__(self) -> NoReturn:
        raise InvalidError("cannot send a pool to another process: make one there")

    # -- what it shows

    def snapshot(self) -> PoolView:
        """Lanes and threads as they are now; of those that wait, the first thousand."""
        return self._runner.snapshot()


def _checked(lanes: int) -> int:
    return whole(lanes, "lanes", 1, limits.LANES_MAX)
