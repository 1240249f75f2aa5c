"""What happens from a moment on, as an iterator: events of tasks, messages of a topic."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Live(Generic[T]):
    """An iterator over what happens from the call on, however late the first is asked for.

    Closing it, also by `with`, gives its connection back.
    """

    def __init__(self, source: Generator[T | None]) -> None:
        """source: gives None once the daemon has said that it listens; nothing happens before."""
        self._source = source
        next(source, None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while (one := next(self._source)) is None:
            pass
        return one

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is wanted."""
        self._source.close()


class AsyncLive(Generic[T]):
    """As `Live`, for asyncio, where a call that isn't awaited cannot have the daemon listen.

    `async with` and `await` listen from then on, a bare `async for` from its first step on.
    """

    def __init__(self, source: AsyncGenerator[T | None]) -> None:
        self._source = source
        self._begun = False

    def __await__(self) -> Generator[None, None, Self]:
        return (yield from self.__aenter__().__await__())

    async def __aenter__(self) -> Self:
        if not self._begun:
            self._begun = True
            await anext(self._source, None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        await self.__aenter__()
        while (one := await anext(self._source)) is None:
            pass
        return one

    async def aclose(self) -> None:
        """Nothing more is wanted."""
        self._begun = True
        await self._source.aclose()
