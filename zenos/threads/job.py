"""What a pool knows of a thread beside its state: the function, the items, what came of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.wording import shown
from zenos.threads import codec
from zenos.threads.checks import number, text, whole
from zenos.threads.current import Flag, Ran
from zenos.threads.lane import call
from zenos.threads.machine import Outcome


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How threads are run.

    priority: 0 to 100, higher first. expected_s: run time of one item, else learned from its
    group. retries: tries after the first, when one of `retry_on` is raised or the lane's process
    dies, after backoff_s seconds, doubled each time. timeout_s: for one attempt. name: for people.
    """

    priority: int = limits.PRIORITY_NORMAL
    expected_s: float = 0.0
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff_s: float = 0.0
    timeout_s: float | None = None
    name: str = ""

    def check(self) -> Options:
        """Itself. InvalidError when something in it is out of its range, or of another type."""
        if self is DEFAULTS:
            return self
        whole(self.priority, "priority", limits.PRIORITY_MIN, limits.PRIORITY_MAX)
        whole(self.retries, "retries", 0, limits.RETRIES_MAX)
        number(self.expected_s, "expected_s", most=limits.EXPECTED_S_MAX)
        number(self.backoff_s, "backoff_s")
        if self.timeout_s is not None:
            number(self.timeout_s, "timeout_s", above=True)
        if not isinstance(self.retry_on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.retry_on
        ):
            raise InvalidError(
                f"cannot use retry_on={shown(self.retry_on)}: give a tuple of exception classes"
            )
        text(self.name, "name")
        return self


DEFAULTS = Options()


class Function(msgspec.Struct, frozen=True):
    """A function to call. parts: its pickle, for processes. single: items are its arguments."""

    work: Callable[..., Any]
    single: bool
    key: int = 0
    parts: list[codec.Buffer] = []

    def caller(self) -> Callable[[Any], Any]:
        """What to call with an item."""
        return functools.partial(call, self.work) if self.single else self.work


class Job:
    """A thread's work: the items, in order, and the results of the first of them so far."""

    def __init__(
        self,
        number: int,
        function: Function,
        items: list[Any],
        options: Options,
        on_end: Callable[[Job, Outcome], None],
    ) -> None:
        self.number = number
        self.function = function
        self.items = items
        self.options = options
        self.on_end = on_end
        self.name = options.name or getattr(function.work, "__name__", type(function.work).__name__)
        self.results: list[Any] = []
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.sent_bytes = 0
        self.parts: list[codec.Buffer] | None = None  # the first try's items, pickled ahead
        self.flag = Flag()
        self.cpu_begun_s = 0.0

    @property
    def rest(self) -> list[Any]:
        """Items that have no result yet: what a retry has to do."""
        return self.items[len(self.results) :] if self.results else self.items

    def begin(self, cpu_s: float) -> None:
        """An attempt begins, on a lane that has used so much CPU time."""
        self.flag, self.error, self.cpu_begun_s = Flag(), None, cpu_s

    def take(self, ran: Ran) -> None:
        """What an attempt came to."""
        self.results = self.results + ran.results if self.results else ran.results
        self.error = ran.error
        self.seconds += ran.seconds
