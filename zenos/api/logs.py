"""A task's log as an answer: from a logical offset on, over rotations and over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from zenos.api.ports import System
from zenos.core import limits
from zenos.core.logs import Reader

PART_BYTES: Final = 64 * limits.KIB
LOOK_S: Final = 0.2
# Where the answer begins: later than asked for where what was before is gone.
OFFSET_HEADER: Final = "Zenos-Log-Offset"


class LogAnswer:
    """The parts of one answer. It ends before a gap, too: whoever goes on hears where that ends.

    generation: the run that it is of, and no other; None: the newest, and what follows it.
    """

    def __init__(
        self,
        system: System,
        task: str,
        closing: asyncio.Event,
        *,
        follow: bool,
        offset: int,
        generation: int | None = None,
    ) -> None:
        self._system = system
        self._task = task
        self._closing = closing
        self._follow = follow
        self._generation = generation
        self._path: Path | None = None
        self._reader: Reader | None = None
        self.offset = offset

    async def begin(self, path: Path | None) -> None:
        """Open what is there, so that `offset` is where the answer begins."""
        if path is not None:
            self._path = path
            self._reader = await asyncio.to_thread(Reader, str(path), self.offset)
            self.offset = self._reader.offset

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The log's bytes; of no run alone, each restarted worker's follow those before it."""
        while True:
            # Looked at before reading: what is written before the end is read for certain.
            task = self._system.tasks().get(self._task)
            ended = task is None or task.is_ended or self._closing.is_set() or not self._follow
            newest = self._path
            if self._generation is not None:
                ended = ended or (task is not None and task.generation > self._generation)
            elif task is not None:
                newest = self._system.log_path(self._task)
            reader = self._reader
            if reader is not None:
                if self._follow:
                    await asyncio.to_thread(reader.look)
                # To its end, also where a later worker has one of its own by now.
                while part := await asyncio.to_thread(reader.read, PART_BYTES):
                    yield part
                if reader.has_gap:
                    return
            if self._follow and newest != self._path:
                first = self.offset if self._path is None else 0
                await self.aclose()
                self.offset = first
                await self.begin(newest)
                if self.offset != first:
                    return
                continue
            if ended:
                return
            await asyncio.sleep(LOOK_S)

    async def aclose(self) -> None:
        """Close what is open."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
