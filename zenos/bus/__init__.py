"""Messages between the daemon, its workers and users' programs: `zenos.bus.connect()`."""

from __future__ import annotations

import importlib
from typing import Any

# Where each name of the public interface stands; imported when it is asked for, since the daemon
# and its workers pass through here and need none of it.
_WHERE = {
    "ArrayBuffer": "bodies",
    "AsyncBus": "aio",
    "Bus": "sync",
    "Codec": "codec",
    "Encoded": "bodies",
    "connect": "sync",
    "connect_async": "aio",
    "register": "codec",
}
__all__ = [
    "ArrayBuffer",
    "AsyncBus",
    "Bus",
    "Codec",
    "Encoded",
    "connect",
    "connect_async",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"zenos.bus.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
