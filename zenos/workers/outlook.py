"""Looking ahead for the API: in a process of its own, one at a time, so that the loop goes on."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import msgspec

from zenos.core import limits
from zenos.core.errors import BusyError, DeadlineError, ZenosError
from zenos.core.outlook import Picture, Plan, Why
from zenos.core.task import State
from zenos.core.wire import WAITS_FOR_SPACE, Progress
from zenos.kernel.picture import slim

WAITING_MAX: Final = 16  # questions at once
_NO_SPACE: Final = (
    "it has done its steps and waits for space on the disk of the home: free some there, and it is "
    "published"
)
_ARGV: Final = (sys.executable, "-P", "-m", "zenos.simulate.ahead")


class Outlook:
    """Asks `zenos.simulate.ahead`. Raises BusyError, DeadlineError, ZenosError."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def why(self, picture: Picture, task: str, progress: Progress | None = None) -> Why:
        """Why a task of that picture, which has not ended, is where it is.

        progress: what its worker has said last; the kernel knows nothing of that.
        """
        said = await self._ask({"picture": await asyncio.to_thread(slim, picture), "task": task})
        found = msgspec.msgpack.decode(said, type=Why)
        waits = progress is not None and progress.stage == WAITS_FOR_SPACE
        if waits and found.state is State.RUNNING:
            found = msgspec.structs.replace(found, reason=f"{found.reason}; {_NO_SPACE}")
        return found

    async def plan(self, picture: Picture, ahead_s: float) -> Plan:
        """The schedule ahead, so many seconds far."""
        small = await asyncio.to_thread(slim, picture)
        said = await self._ask({"picture": small, "ahead_s": ahead_s})
        return msgspec.msgpack.decode(said, type=Plan)

    async def _ask(self, question: dict[str, Any]) -> bytes:
        if self._waiting >= WAITING_MAX:
            raise BusyError("cannot look ahead: too many ask for it; try again", retry_after_s=2)
        self._waiting += 1
        try:
            async with self._turn:
                return await self._run(await asyncio.to_thread(msgspec.msgpack.encode, question))
        finally:
            self._waiting -= 1

    async def _run(self, question: bytes) -> bytes:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*_ARGV, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(limits.FORECAST_TIMEOUT_S):
                out, error = await child.communicate(question)
        except TimeoutError:
            raise DeadlineError("cannot look ahead: it took too long; try again") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            last = error.decode(errors="replace").strip().rpartition("\n")[2]
            raise ZenosError(f"cannot look ahead: {last[:200] or 'its process was ended'}")
        return out
