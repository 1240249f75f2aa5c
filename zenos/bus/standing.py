"""The bus's socket stays where workers look for it, whoever tidies up there.

It lies in a runtime directory, which others clean: the end of a session, a timer over /tmp, a
person. Connections go on without it; but a worker that has lost its own would never come back.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from zenos.bus.broker import Broker
from zenos.core import limits
from zenos.core.errors import StorageError
from zenos.core.home import Home

log = logging.getLogger(__name__)


async def keep_listening(broker: Broker, home: Home, look_s: float = limits.SOCKET_LOOK_S) -> None:
    """Look every `look_s` seconds whether the socket is still there, and listen again if not.

    At the same place, or, where the directory around it is gone, at another, which is written down
    in the home. The broker listens at `home.bus`. Until cancelled.
    """
    ours, said = _identity(home.bus), ""
    while True:
        await asyncio.sleep(look_s)
        path = home.bus
        if ours is not None and _identity(path) == ours:
            continue
        try:
            home.write_sockets()
            await broker.listen_again(home.bus)
        except (OSError, StorageError) as error:
            if str(error) != said:  # once, not every few seconds
                log.error("the bus cannot listen again: %s", error)  # noqa: TRY400
            ours, said = None, str(error)
        else:
            log.warning("the bus's socket %s was gone: listening again at %s", path, home.bus)
            ours, said = _identity(home.bus), ""


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None when nothing is there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
