"""The result of a thread that may not have ended yet."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from zenos.core.errors import ConflictError, DeadlineError
from zenos.threads.current import here

if TYPE_CHECKING:
    from zenos.threads.runner import Runner

T = TypeVar("T")


class Future(concurrent.futures.Future[T]):
    """A result to come: as in the standard library, so that its `wait` and `as_completed` take it.

    `await` works, too; a coroutine that is cancelled while it waits cancels the thread.
    """

    def __init__(self, runner: Runner, number: int) -> None:
        super().__init__()
        self._runner = runner
        self._number = number

    def result(self, timeout: float | None = None) -> T:
        """What the function returned; waits for it, at most `timeout` seconds.

        Raises what the function raised, after its last try. DeadlineError when the time of the
        thread, or of waiting, is over; LaneError when its process died; CancelledError.
        """
        may_wait(self._runner, self)
        try:
            return super().result(timeout)
        except TimeoutError:
            if self.done():
                return super().result(0)  # raises the function's own TimeoutError, if it is that
            raise DeadlineError(
                f"cannot have the result yet: it isn't there after {timeout} s; the thread goes on"
            ) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised, or None; waits as `result` does."""
        may_wait(self._runner, self)
        try:
            return super().exception(timeout)
        except TimeoutError:
            raise DeadlineError(
                f"cannot tell how it ends: it hasn't after {timeout} s; the thread goes on"
            ) from None

    def cancel(self) -> bool:
        """Nobody wants it any more; whether it was cancelled, and hadn't ended before.

        A thread that waits never starts. One that runs on an OS thread sees `cancelled()`; one in a
        process as well, and is killed after the grace time. Its result is dropped in any case.
        """
        self._runner.cancel(self._number)
        return self.cancelled()

    def running(self) -> bool:
        """Whether it runs on a lane."""
        return self._runner.runs(self._number)

    def give_up(self) -> None:
        """For the pool: it is cancelled, and whoever waits hears so."""
        if super().cancel():
            self.set_running_or_notify_cancel()

    def check_process(self) -> None:
        """InvalidError in a fork of its process, unless it had ended before."""
        if not self.done():
            self._runner.check_process()

    def __await__(self) -> Generator[None, None, T]:
        self.check_process()
        return asyncio.wrap_future(self).__await__()


def may_wait(runner: Runner, future: concurrent.futures.Future[T] | None = None) -> None:
    """ConflictError where waiting could last for ever: on a lane of the pool that is waited for.

    InvalidError in a fork of its process.
    """
    if future is not None and future.done():
        return
    runner.check_process()
    if here.pool is runner:
        raise ConflictError(
            "cannot wait for a thread on a lane of the same pool: when all lanes wait, none is "
            "left to run what they wait for; use another pool, or return the future"
        )


def wait_all(futures: Iterable[Future[T]], timeout: float | None = None) -> list[T]:
    """The results in order; waits for all. Raises as `result` does, for the first that failed."""
    waited = list(futures)
    for future in waited:
        future.check_process()
    concurrent.futures.wait(waited, timeout)
    return [future.result(0) for future in waited]
