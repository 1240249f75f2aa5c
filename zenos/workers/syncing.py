"""Checkpoints of trainings that have given way are synced once the rush is over.

A training doesn't wait for the disk when it leaves (see zenos/runtime/train/checkpoint.py), since
somebody waits for its room. At once it would not be better here: all that the daemon remembers of
whoever gets the room would wait behind those gigabytes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from zenos.core import durable
from zenos.core.home import Home

log = logging.getLogger(__name__)
LATER_S: Final = 5.0


class LateSyncs:
    """What has to be synced, each after LATER_S. Belongs to the daemon's event loop."""

    def __init__(self, home: Home, later_s: float = LATER_S) -> None:
        self._home = home
        self._later_s = later_s
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._under_way: set[asyncio.Future[None]] = set()

    def saved(self, task: str) -> None:
        """A training has left a checkpoint that nobody has synced."""
        if task in self._due:
            self._due[task].cancel()
        self._due[task] = self._loop.call_later(self._later_s, self._begin, task)

    def _begin(self, task: str) -> None:
        self._due.pop(task).cancel()
        syncing = self._loop.run_in_executor(None, self._sync, task)
        self._under_way.add(syncing)
        syncing.add_done_callback(self._under_way.discard)

    def _sync(self, task: str) -> None:
        newest = self._home.newest_checkpoint(task)
        try:
            if newest is not None:
                durable.sync_tree(newest)
        except FileNotFoundError:
            log.debug("the training %s has removed its checkpoint meanwhile", task)
        except OSError as error:
            # It stays readable for now; if it gets lost, the training goes on from the one before.
            log.warning("cannot sync %s: %s", newest, error.strerror or error)

    async def close(self) -> None:
        """Sync what is left, at once."""
        for task in list(self._due):
            self._begin(task)
        await asyncio.gather(*self._under_way)
