"""`zenos.map`: one function over many items, in chunks, on the lanes of a host."""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from zenos.calls import values, wire
from zenos.calls.calling import check_function, links, retries_of
from zenos.calls.finding import Wanted
from zenos.calls.future import CallFuture, may_wait
from zenos.calls.link import Link
from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.threads.lanes import RemoteTraceback
from zenos.threads.mapping import Mapped, Progress

T = TypeVar("T")
R = TypeVar("R")


class Chunk(Generic[T]):
    """Some items on their way. seconds, sent_bytes: once they have come back."""

    def __init__(self, items: list[T], sent_bytes: int, future: CallFuture[Any]) -> None:
        self.items = items
        self.sent_bytes = sent_bytes
        self.future = future

    @property
    def seconds(self) -> float:
        """How long they ran."""
        return self.future.seconds


class MapResults(Mapped[R]):
    """The results of a map, to iterate over. Closing it, as a `with` does, cancels the rest."""

    def __init__(
        self,
        link: Link,
        function: wire.Function,
        items: Iterable[Any],
        lanes: int,
        retries: int | None,
        chunk: int | None,
        window: int | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(items, chunk, window, progress)
        self._link = link
        self._function = function
        self._lanes = lanes
        self._retries = retries
        self._waiting: deque[Chunk[Any]] = deque()
        self._ended: queue.SimpleQueue[Chunk[Any]] = queue.SimpleQueue()
        self._given: Iterator[R] = iter(())
        self._lists = self._results()
        self._stream = itertools.chain.from_iterable(self._lists)
        try:
            self._fill()
        except BaseException:
            self._cancel()  # what was begun before it failed is nobody's
            raise

    def __iter__(self) -> Iterator[R]:
        return self._stream

    def __next__(self) -> R:
        return next(self._stream)

    def close(self) -> None:
        """Cancel what has not ended."""
        self._lists.close()
        self._cancel()
        deque(self._given, maxlen=0)  # nor is what is left of a chunk handed on

    def _results(self) -> Generator[Iterator[R]]:
        """A chunk at a time: to hand on each result here takes longer than small functions."""
        try:
            while self._waiting:
                first = self._waiting[0]
                while not first.future.done():
                    may_wait()
                    self._note(self._next_ended())
                while not self._ended.empty():
                    self._note(self._ended.get())
                self._waiting.popleft()
                self._fill()
                results, error = first.future.result()
                self._given = iter(results)
                yield self._given
                if error:
                    raised, text = values.load(error)
                    raised.__cause__ = RemoteTraceback(text)
                    raise raised
            if self._input_error is not None:
                raise self._input_error
        finally:
            self._cancel()

    def _next_ended(self) -> Chunk[Any]:
        """Wait for one."""
        self._link.lead(self._has_ended)
        if self._has_ended():
            return self._ended.get()
        with self._link.following(self._has_ended):
            return self._ended.get()

    def _has_ended(self) -> bool:
        return not self._ended.empty()

    def _note(self, chunk: Chunk[Any]) -> None:
        """A chunk has ended: what that says of the next ones."""
        if chunk.future.cancelled() or chunk.future.exception() is not None:
            return
        self._count(chunk, len(chunk.future.result()[0]))
        self._fill()

    def _fill(self) -> None:
        """Send chunks while there is room for them."""
        while items := self._take(self._lanes, len(self._waiting)):
            self._waiting.append(self._send(items))

    def _send(self, items: list[Any]) -> Chunk[Any]:
        try:
            body = values.items_of(items)
        except InvalidError:
            raise
        except Exception as error:
            raise InvalidError(
                f"cannot send items of {self._function.name}: {error}; give what can be pickled"
            ) from error
        flags = wire.MANY | (wire.IDEMPOTENT if self._retries is not None else 0)
        future = self._link.submit(
            self._function, body, flags, self._retries or 0, 0.0, items=len(items)
        )
        chunk: Chunk[Any] = Chunk(items, len(body), future)
        future.on_end(lambda _: self._ended.put(chunk))
        return chunk

    def _cancel(self) -> None:
        self._exhausted = True
        waiting, self._waiting = self._waiting, deque()
        for chunk in waiting:
            chunk.future.cancel()


def map(  # noqa: A001 - it is what the built-in one is
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    cpu: float = 1,
    gpu: float = 0,
    memory: str | int | None = None,
    lanes: int | None = None,
    priority: int | str | None = None,
    chunk: int | None = None,
    window: int | None = None,
    progress: Progress | None = None,
    idempotent: bool = False,
    retries: int | None = None,
    keep_alive_s: float = limits.CALLS_KEEP_ALIVE_S,
) -> MapResults[R]:
    """Call a function with each item, on the lanes of one task; results in the order of the items.

    cpu, gpu, memory, lanes, priority, keep_alive_s, idempotent, retries: as of `call`. Items go in
    chunks of `chunk`, else of about 50 ms of work, learned on the way. At most `window` chunks
    (four per lane) are taken from `items` and not yet given out: a generator is read only as far.

    An item that fails raises its error in its place, with the traceback from the lane, and the rest
    is cancelled; so is what isn't needed any more when results are closed early. Nothing is kept on
    the disk: with this program its map ends. progress: called with the number of items done, and of
    all where that is known.
    """
    again = retries_of(retries, idempotent=idempotent)
    check_function(function)
    wanted = Wanted(cpu, gpu, memory, lanes, priority, keep_alive_s)
    return MapResults(
        links.to(wanted),
        links.functions.of(function),
        items,
        wanted.lanes_or_default,
        again if idempotent else None,
        chunk,
        window,
        progress,
    )
