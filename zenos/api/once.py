"""Requests that are sent again under the same Idempotency-Key are carried out once.

Submitting and deploying have this in the kernel, and what makes a model in the registry, since each
of them is answered with what was made. All others go through here: what was done is remembered
under its key with a word for its answer (which task it was, how many messages).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
from fastapi import Request

from zenos.api.common import principal_of, system_of
from zenos.core.task import Once


class Asked(NamedTuple):
    """A request. once: what is to be remembered of it; before: what was, if it is sent again."""

    once: Once | None
    before: str | None


async def recall(request: Request, key: str | None, body: msgspec.Struct | None = None) -> Asked:
    """Whether the request was carried out before; ConflictError for another one's key."""
    if key is None:
        return Asked(None, None)
    said = msgspec.json.encode(body, order="deterministic")
    what = f"{request.method} {request.url.path}\n".encode("utf-8", "replace") + said
    once = Once(key=key, asked=hashlib.sha256(what).hexdigest())
    return Asked(once, await system_of(request).recall(principal_of(request), once))


@asynccontextmanager
async def asked(
    request: Request, key: str | None, body: msgspec.Struct | None = None
) -> AsyncIterator[Asked]:
    """The same; the next one with that key waits until this one has been carried out."""
    held: WeakValueDictionary[tuple[str, str | None], asyncio.Lock] = request.app.state.once
    name = (principal_of(request).user, key)
    lock = held.get(name) if key is not None else None
    if lock is None:
        lock = asyncio.Lock()
        if key is not None:
            held[name] = lock
    async with lock:
        yield await recall(request, key, body)
