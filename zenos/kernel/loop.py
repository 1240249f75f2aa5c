"""The loop: the kernel decides, the store remembers, the effects act. In that order, always."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from zenos.core import failpoints
from zenos.core.actions import Action, Changes
from zenos.core.clock import Clock
from zenos.core.errors import StorageError
from zenos.core.seldom import Seldom
from zenos.kernel.control import Inbox
from zenos.kernel.step import Kernel

log = logging.getLogger(__name__)
COMMIT_RETRY_S = 0.5
LOG_EVERY_S = 60.0  # between two lines about what goes on failing


class Remember(Protocol):
    """The store, as the loop sees it."""

    async def commit(self, changes: Changes) -> None:
        """Write one transaction, whole, or raise StorageError."""
        ...


async def run(
    kernel: Kernel,
    store: Remember,
    inbox: Inbox,
    clock: Clock,
    committed: Callable[[Changes], None],
    perform: Callable[[Sequence[Action]], None],
) -> None:
    """Run until the inbox is closed. `committed` hears what is remembered; `perform` enqueues."""
    wake = clock.now()
    while not inbox.closed:
        events = await inbox.drain(wake - clock.now())  # what happened
        changes, actions, wake = kernel.step(events, clock.now())  # decide
        failpoints.passing("loop.decided")
        if changes and not await _commit(store, changes, inbox):  # remember
            return
        failpoints.passing("loop.committed")
        committed(changes)
        perform(actions)  # act
        failpoints.passing("loop.performed")


async def _commit(store: Remember, changes: Changes, inbox: Inbox) -> bool:
    """Commit the batch, again and again until it is remembered; callers get 503 meanwhile.

    False when the daemon goes down before: nothing of it has happened.
    """
    told, now = Seldom(LOG_EVERY_S), asyncio.get_running_loop().time
    while True:
        try:
            await store.commit(changes)
        except StorageError as error:
            if told.times(now()):
                log.error("%s; trying again", error)  # noqa: TRY400 - the message says it all
            inbox.storage_error = error
            if inbox.closed:
                return False
            await asyncio.sleep(COMMIT_RETRY_S)
        else:
            if inbox.storage_error is not None:
                log.warning("the store works again")
            inbox.storage_error = None
            return True
