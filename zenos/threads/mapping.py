"""Mapping a function over items: chunks, a window, results in order or as they come."""

from __future__ import annotations

import functools
import itertools
import queue
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.threads.checks import whole
from zenos.threads.future import may_wait
from zenos.threads.job import DEFAULTS, Job, Options
from zenos.threads.machine import Outcome

if TYPE_CHECKING:
    from zenos.threads.runner import Runner

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int | None], object]


class Fold(Generic[T, R]):
    """Combines a run of items from left to right, each through `each` first."""

    def __init__(self, combine: Callable[[R, R], R], each: Callable[[T], R] | None) -> None:
        self._combine = combine
        self._each = each

    def __call__(self, items: Iterable[Any]) -> R:
        return functools.reduce(
            self._combine, map(self._each, items) if self._each is not None else items
        )


class Piece(Protocol):
    """A chunk that has ended."""

    @property
    def items(self) -> list[Any]:
        """All of them."""
        ...

    @property
    def seconds(self) -> float:
        """How long they ran."""
        ...

    @property
    def sent_bytes(self) -> int:
        """How much was sent for them."""
        ...


class Chunks(Generic[T]):
    """Cuts items into chunks of about CHUNK_S of work, as far as that has been learned.

    1. A size that was asked for is kept to.
    2. Else the first chunks have one item; a chunk is at most sixteen times as large as the largest
       before it that has ended, so that one look at short items commits to little.
    3. No chunk holds more than CHUNK_ITEMS_MAX items, or than CHUNK_BYTES_MAX by what has been
       sent so far.
    4. Where the number of items is known, no chunk has more than its share of half of the rest: so
       the last ones are small, and the lanes end together. But none is made smaller than
       CHUNK_S_MIN of work by that.
    """

    def __init__(self, items: Iterable[T], size: int | None) -> None:
        self.total = len(items) if isinstance(items, Sized) else None
        self.taken = 0
        self._items = iter(items)
        self._size = size
        self._largest = 0
        self._items_seen = self._bytes_seen = 0
        self._seconds_seen = 0.0

    def take(self, lanes: int) -> list[T]:
        """The next chunk; empty at the end."""
        chunk = list(itertools.islice(self._items, self.next_size(lanes)))
        self.taken += len(chunk)
        return chunk

    def next_size(self, lanes: int) -> int:
        """How many items the next chunk has."""
        if self._size is not None:  # 1
            return self._size
        if self._items_seen == 0:  # 2
            return 1
        each_s = max(self._seconds_seen / self._items_seen, 1e-9)
        size = min(limits.CHUNK_S / each_s, 16 * self._largest, limits.CHUNK_ITEMS_MAX)
        each_bytes = self._bytes_seen / self._items_seen
        if each_bytes > 0:  # 3
            size = min(size, limits.CHUNK_BYTES_MAX / each_bytes)
        if self.total is not None:  # 4
            share = (self.total - self.taken) / (2 * lanes)
            size = min(size, max(share, limits.CHUNK_S_MIN / each_s))
        return max(1, int(size))

    def learn(self, job: Piece) -> None:
        """A chunk has ended. Recent ones count more."""
        count = len(job.items)
        if self._items_seen > 4 * count:
            self._items_seen //= 2
            self._bytes_seen //= 2
            self._seconds_seen /= 2
        self._items_seen += count
        self._seconds_seen += job.seconds
        self._bytes_seen += job.sent_bytes
        self._largest = max(self._largest, count)


class Mapped(Iterator[R]):
    """What maps have in common, wherever their chunks run: reading the input, and counting.

    done: how many items have ended; total: how many there are, where it is known.
    """

    def __init__(
        self,
        items: Iterable[Any],
        chunk: int | None,
        window: int | None,
        progress: Progress | None,
    ) -> None:
        for name, value in (("chunk", chunk), ("window", window)):
            if value is not None:
                whole(value, name, 1)
        try:
            self._chunks: Chunks[Any] = Chunks(items, chunk)
        except TypeError as error:
            raise InvalidError(f"cannot map over {type(items).__name__}: {error}") from error
        self._window = window
        self._progress = progress
        self._exhausted = False
        self._input_error: Exception | None = None
        self.done = 0

    @property
    def total(self) -> int | None:
        """The number of items, where it is known."""
        return self._chunks.taken if self._exhausted else self._chunks.total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what has not ended."""
        raise NotImplementedError

    def _take(self, lanes: int, waiting: int) -> list[Any]:
        """The next chunk, while there is room for one beside those that wait; else nothing.

        An error of the input is kept: it is raised once all before it has been given out.
        """
        if self._exhausted or waiting >= (self._window or limits.CHUNKS_PER_LANE * lanes):
            return []
        try:
            items = self._chunks.take(lanes)
        except Exception as error:  # noqa: BLE001
            self._input_error, items = error, []
        self._exhausted = not items
        return items

    def _count(self, piece: Piece, done: int) -> None:
        """A chunk has ended, and so many of its items."""
        self._chunks.learn(piece)
        self.done += done
        if self._progress is not None:
            self._progress(self.done, self.total)


class Results(Mapped[R]):
    """The results of a map, to iterate over. Closing it, as a `with` does, cancels the rest."""

    def __init__(
        self,
        runner: Runner,
        function: Callable[[T], R],
        items: Iterable[T],
        options: Options | None,
        *,
        chunk: int | None = None,
        window: int | None = None,
        progress: Progress | None = None,
        ordered: bool = True,
    ) -> None:
        self._runner = runner
        self._options = (options or DEFAULTS).check()
        if chunk is None and self._options.timeout_s is not None:
            chunk = 1
        super().__init__(items, chunk, window, progress)
        self._ordered = ordered
        self._function = runner.function(function, single=False)
        self._group = runner.number()
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._outcomes: dict[int, Outcome] = {}
        self._ended: queue.SimpleQueue[tuple[Job, Outcome]] = queue.SimpleQueue()
        try:
            self._fill()
        except BaseException:
            self._cancel()  # what was begun before it failed is nobody's
            raise
        self._lists = self._results()
        self._stream = itertools.chain.from_iterable(self._lists)

    def __iter__(self) -> Iterator[R]:
        return self._stream

    def __next__(self) -> R:
        return next(self._stream)

    def close(self) -> None:
        """Cancel what has not ended."""
        self._lists.close()
        self._cancel()

    def _results(self) -> Generator[list[R]]:
        """The results of a chunk at a time."""
        try:
            while self._jobs:
                job = self._next()
                outcome = self._outcomes.pop(job.number)
                self._fill()
                yield job.results
                error = self._runner.error_of(job, outcome)
                if error is not None:
                    raise error
            if self._input_error is not None:
                raise self._input_error
        finally:
            self._cancel()

    def _next(self) -> Job:
        """The job whose results are next, ended; until it has, room that others leave is filled."""
        while True:
            if self._ordered:
                number = next(iter(self._jobs))
                if number in self._outcomes:
                    return self._jobs.pop(number)
            elif self._outcomes:
                return self._jobs.pop(next(iter(self._outcomes)))
            may_wait(self._runner)
            self._note(*self._ended.get())
            while not self._ended.empty():
                self._note(*self._ended.get())
            self._fill()

    def _note(self, job: Job, outcome: Outcome) -> None:
        self._outcomes[job.number] = outcome
        self._count(job, len(job.results))

    def _fill(self) -> None:
        """Submit chunks while there is room for them."""
        while items := self._take(self._runner.lanes, len(self._jobs)):
            job = Job(self._runner.number(), self._function, items, self._options, self._end)
            self._runner.prepare(job)
            self._runner.start(job, group=self._group)
            self._jobs[job.number] = job

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._ended.put((job, outcome))

    def _cancel(self) -> None:
        self._exhausted = True
        left = [number for number in self._jobs if number not in self._outcomes]
        self._jobs.clear()
        if left:
            self._runner.cancel(*left)
