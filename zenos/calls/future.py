"""The result of a call that may not have ended yet."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, TypeVar

from zenos.calls.where import where
from zenos.core.errors import ConflictError, DeadlineError, InvalidError

if TYPE_CHECKING:
    from zenos.calls.link import Link

T = TypeVar("T")
GOES_ON: Final = (
    "zenos: the call that was waited for goes on, and those that its lane is to run wait for it; "
    "cancel() ends it, or without its future 'zenos cancel' its host, which 'zenos ps --kind call' "
    "shows"
)


class CallFuture(concurrent.futures.Future[T]):
    """A result to come: as in the standard library, so that its `wait` and `as_completed` take it.

    `await` works, too; a coroutine that is cancelled while it waits cancels the call.
    """

    def __init__(self, link: Link, number: int, *, durable: bool) -> None:
        super().__init__()
        self.number = number
        self.durable = durable
        self.is_accepted = False
        self.seconds = 0.0  # for which the function ran
        self._link = link
        self._accepted: threading.Event | None = None
        self._process = os.getpid()
        self._once = threading.Lock()
        self._has_end = False

    def result(self, timeout: float | None = None) -> T:
        """What the function returned; waits for it, at most `timeout` seconds.

        Raises what the function raised, with the traceback from its lane as the cause.
        DeadlineError when the call's time limit, or the time of waiting, is over; LaneError when
        its lane died; WorkerError when nobody can tell how it ended; CancelledError. Who is
        interrupted no longer waits; the call goes on.
        """
        asked = timeout
        try:
            if not self.done():
                timeout = self._lead(self.done, timeout)
            if self.done():
                return super().result(0)
            with self._link.following(self.done):
                return super().result(timeout)
        except TimeoutError:
            if self.done():
                return super().result(0)  # raises the function's own TimeoutError, if it is that
            raise DeadlineError(
                f"cannot have the result yet: it isn't there after {asked} s; the call goes on"
            ) from None
        except KeyboardInterrupt as interrupt:
            self._note(interrupt)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised, or None; waits as `result` does."""
        asked = timeout
        try:
            if not self.done():
                timeout = self._lead(self.done, timeout)
            if self.done():
                return super().exception(0)
            with self._link.following(self.done):
                return super().exception(timeout)
        except TimeoutError:
            raise DeadlineError(
                f"cannot tell how it ends: it hasn't after {asked} s; the call goes on"
            ) from None
        except KeyboardInterrupt as interrupt:
            self._note(interrupt)
            raise

    def _note(self, interrupt: KeyboardInterrupt) -> None:
        """Say that the call outlives the waiting: mostly nobody has its future any more."""
        if not self.done() and GOES_ON not in getattr(interrupt, "__notes__", ()):
            interrupt.add_note(GOES_ON)

    def cancel(self) -> bool:
        """Nobody wants it any more; whether it was cancelled, and hadn't ended before.

        A call that waits never starts. One that runs sees `zenos.threads.cancelled()`, and its
        lane is killed after a second. Its result is dropped in any case.
        """
        if not super().cancel():
            return self.cancelled()
        self.takes_end()
        self._link.cancel(self.number)
        return True

    def takes_end(self) -> bool:
        """Whether it may be given its result or error. Who is told so gives it; nobody else is.

        A call can end as it is cancelled, each in a thread of its own: one of both comes first.
        """
        with self._once:
            if self._has_end:
                return False
            self._has_end = True
        return self.set_running_or_notify_cancel()

    def wait_accepted(self, timeout: float | None = None) -> bool:
        """Wait until a durable call is on the disk, or has ended; whether it is so.

        One that isn't durable is accepted at once.
        """
        if not self.durable or self._is_kept():
            return True
        self._link.ask()
        event = self._event()
        left_s = self._link.lead(self._is_kept, timeout)
        if not self._is_kept():
            with self._link.following(self._is_kept):
                event.wait(left_s)
        return self._is_kept()

    def _event(self) -> threading.Event:
        """Set once it is on the disk, or has ended: one for all who wait for that."""
        with self._once:
            event = self._accepted
            if event is not None:
                return event
            event = self._accepted = threading.Event()
        super().add_done_callback(lambda _: event.set())
        return event

    def _is_kept(self) -> bool:
        return self.is_accepted or self.done()

    def accept(self) -> None:
        """For the link: it is on the disk."""
        self.is_accepted = True
        if self._accepted is not None:
            self._accepted.set()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Have it called with this once it has ended: by the thread that hears of it."""
        super().add_done_callback(fn)
        self._link.attend()

    def on_end(self, tell: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """As add_done_callback, of who will wait for the link itself."""
        super().add_done_callback(tell)

    def _lead(self, is_done: Callable[[], bool], timeout: float | None) -> float | None:
        self._may_wait()
        return self._link.lead(is_done, timeout)

    def _may_wait(self) -> None:
        may_wait()
        if self._process != os.getpid():
            raise InvalidError(
                "cannot wait for a call that was made before a fork: call again here"
            )

    def __await__(self) -> Generator[None, None, T]:
        if not self.done():
            self._may_wait()
        return asyncio.wrap_future(self).__await__()


def may_wait() -> None:
    """ConflictError where waiting for a call could last for ever: inside of one."""
    if where.is_lane:
        raise ConflictError(
            "cannot wait for a call inside a call: with all lanes waiting, none is left to run "
            "what they wait for; use a pool of zenos.threads there"
        )
