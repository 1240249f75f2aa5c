"""What long streams share between the sync and the async client: events and logs that go on."""

from __future__ import annotations

import codecs
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx

from zenos.client import calls
from zenos.client.calls import Call
from zenos.client.decoding import decode
from zenos.client.sse import ServerEvent, SseDecoder
from zenos.client.transport import STREAM_SILENCE_S, error_of
from zenos.client.types import TaskProgress, TaskView
from zenos.core.errors import (
    BusyError,
    DeadlineError,
    InvalidError,
    NoDaemonError,
    UnavailableError,
)
from zenos.core.task import Task, TaskEvent

LONGEST_S: Final = 1e300  # a whole number may be larger than any float
Heard = Callable[[httpx.Headers], None]
# Answers after which a stream is tried again.
PASSING = (UnavailableError, BusyError, NoDaemonError)


def unheard(headers: httpx.Headers) -> None:
    """For streams whose headers say nothing that matters."""


def of_events(headers: httpx.Headers) -> None:
    """For streams of events: raises UnavailableError where the answer is none."""
    media = headers.get("Content-Type", "")
    if media.partition(";")[0].strip().lower() != "text/event-stream":
        raise UnavailableError(
            f"cannot understand the daemon's answer: a stream of events, not {media[:40]!r}, "
            "was asked for; is it zenos?"
        )


def silence_s(deadline: float | None) -> float:
    """The longest wait for a piece of a stream: not past the deadline (of `time.monotonic()`)."""
    if deadline is None:
        return STREAM_SILENCE_S
    _check_seconds("deadline", deadline)
    return max(min(deadline - time.monotonic(), STREAM_SILENCE_S), 0.001)


def check(deadline: float | None) -> None:
    """Raises DeadlineError once the deadline has passed."""
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineError("cannot wait longer: the time given has passed")


def deadline_of(timeout_s: float | None) -> float | None:
    """The moment, on the monotonic clock, at which `timeout_s` will have passed."""
    if timeout_s is None:
        return None
    _check_seconds("timeout_s", timeout_s)
    return time.monotonic() + timeout_s


def _check_seconds(name: str, value: Any) -> None:
    """Raises InvalidError for what is no time; infinity is one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == math.inf or abs(value) < LONGEST_S):  # NaN is neither
        raise InvalidError(f"cannot use this {name}: give a number of seconds")


class EventFeed:
    """The events of one task, or of all, over as many connections as it takes."""

    def __init__(self, task: str | None, after: int | None) -> None:
        self._task = task
        self._last = after
        self._decoder = SseDecoder()

    def call(self) -> Call[bytes]:
        """The request that goes on after the last event that came."""
        self._decoder = SseDecoder()
        return calls.events(self._task, self._last)

    def feed(self, part: bytes) -> Iterator[TaskEvent | TaskProgress]:
        """The events that this part of the stream completes, each once."""
        for event in self._decoder.feed(part):
            item = _event(event)
            if isinstance(item, TaskEvent):
                if self._last is not None and item.seq <= self._last:
                    continue
                self._last = item.seq
            if item is not None:
                yield item
        # Before the first event: that from which on it listens, with which the stream opens.
        if self._last is None and (said := self._decoder.last_id).isdecimal() and len(said) < 20:
            self._last = int(said)


def _event(event: ServerEvent) -> TaskEvent | TaskProgress | None:
    match event.type:
        case "task":
            return decode(event.data, TaskEvent, "event")
        case "progress":
            return decode(event.data, TaskProgress, "event")
        case "error":
            raise error_of(500, httpx.Headers(), event.data.encode())
        case _:
            return None  # of a newer daemon


class LogFeed:
    """The text of a task's log over as many connections as it takes; no character is cut.

    What is followed is asked for run by run: each counts its bytes from 0, and one answer with
    those of several wouldn't say where one ends.
    """

    def __init__(
        self,
        view: TaskView,
        offset: int,
        *,
        follow: bool,
        generation: int | None = None,
        errors: str = "replace",
    ) -> None:
        self._task = view.task.id
        self._follow = follow
        self._generation = max(view.task.generation, 1) if follow else generation
        self.offset = offset
        self._gap = 0
        self._got = False
        self._cut = ""
        self._text = codecs.getincrementaldecoder("utf-8")(errors=errors)

    def call(self) -> Call[bytes]:
        """The request that goes on where the last one ended."""
        return calls.log(self._task, self.offset, follow=self._follow, generation=self._generation)

    def begin(self, headers: httpx.Headers) -> None:
        """The answer's headers: it begins later than asked for where what was before is gone."""
        said = headers.get("zenos-log-offset", "")
        begin = int(said) if said.isdecimal() and len(said) < 20 else self.offset
        self._gap, self._got = self._gap + max(begin - self.offset, 0), False
        self.offset = max(begin, self.offset)

    def feed(self, part: bytes) -> str:
        """The text in these bytes."""
        self.offset += len(part)
        self._got = True
        before, self._cut = self._cut, ""
        if self._gap:
            notice = f"[cannot show {self._gap} bytes of output: the log keeps its end]\n"
            # A character that was cut there is cut for good.
            before += self._text.decode(b"", final=True) + notice
            self._gap = 0
        return before + self._text.decode(part)

    def is_over(self, now: Task) -> bool:
        """Whether the answer that has ended was the last one.

        An answer ends before a gap, so a run's log is over only when nothing more comes; then that
        of the next run follows, if there is one.
        """
        if not self._follow:
            return True
        if self._got:
            return False
        if self._generation is not None and now.generation > self._generation:
            self._generation, self.offset = self._generation + 1, 0
            self._cut = self.finish()
            return False
        return now.is_ended

    def finish(self) -> str:
        """What stood cut at the end."""
        return self._cut + self._text.decode(b"", final=True)
