"""`daemon.json`, by which clients find the daemon: written at its start, and kept there.

Others tidy up in the home. Without that file nobody would find a daemon that has the home's lock,
and so no other could be started either.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from zenos import __version__
from zenos.core import durable, limits
from zenos.core.addresses import to_ask
from zenos.core.errors import StorageError
from zenos.core.home import Home
from zenos.workers import nodes

log = logging.getLogger(__name__)


@asynccontextmanager
async def daemon_file(home: Home, lock: int, host: str, port: int) -> AsyncIterator[str]:
    """Have it there for so long; gives how clients ask. lock: the home's, by its descriptor."""
    url = write_daemon_file(home, host, port)
    keeping = asyncio.create_task(keep_daemon_file(home, lock, host, port))
    try:
        yield url
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        if _is_ours(home, lock):
            home.daemon.unlink(missing_ok=True)


def _is_ours(home: Home, lock: int) -> bool:
    """Whether the home that is there by now is the one that we have."""
    try:
        return os.path.samestat(os.fstat(lock), home.lock.stat())
    except OSError:
        return False


def write_daemon_file(home: Home, host: str, port: int) -> str:
    """Say where clients find the daemon, of which `host` is the address bound; how they ask it."""
    try:
        durable.write_file(home.daemon, _content(host, port))
    except OSError as error:
        raise StorageError(f"cannot write {home.daemon}: {error.strerror}") from error
    return _url(host, port)


async def keep_daemon_file(
    home: Home, lock: int, host: str, port: int, look_s: float = limits.SOCKET_LOOK_S
) -> None:
    """Look every `look_s` seconds whether it says that, and write it anew if not.

    lock: the home's, by its descriptor. Where it isn't there any more another home is, perhaps with
    another daemon. Until cancelled.
    """
    ours, said = _content(host, port), ""
    while True:
        await asyncio.sleep(look_s)
        if not _is_ours(home, lock):
            continue
        try:
            if home.daemon.read_bytes() == ours:
                continue
        except OSError:
            pass  # it is gone
        try:
            durable.write_file(home.daemon, ours)
        except OSError as error:
            why = error.strerror or type(error).__name__
            if why != said:  # once, not every few seconds
                log.error("%s cannot be written anew: %s", home.daemon, why)  # noqa: TRY400
            said = why
        else:
            log.warning("%s was gone or damaged: written anew", home.daemon)
            said = ""


def _url(host: str, port: int) -> str:
    asked = to_ask(host)
    return f"http://{f'[{asked}]' if ':' in asked else asked}:{port}"


def _content(host: str, port: int) -> bytes:
    record = {
        "pid": os.getpid(),
        "start_time": nodes.start_time(os.getpid()),
        "host": host,
        "port": port,
        "url": _url(host, port),
        "version": __version__,
    }
    return msgspec.json.encode(record)
