"""Functions on warm lanes: `zenos.call` and `zenos.map`. See
docs/how-to/call-functions.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from zenos.calls.calling import call
    from zenos.calls.future import CallFuture
    from zenos.calls.mapping import MapResults, map  # noqa: A004 - as the built-in one

__all__ = ["CallFuture", "MapResults", "call", "map"]

# A lane's process needs none of them.
_HOMES: Final = {
    "CallFuture": "future",
    "MapResults": "mapping",
    "call": "calling",
    "map": "mapping",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
