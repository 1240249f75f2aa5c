"""zenos: an operating system for language models."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "bus", "call", "connect", "connect_async", "map", "task", "threads"]


def __getattr__(name: str) -> Any:
    # Imported when asked for, by name (see __init__.pyi for the types): every part of zenos passes
    # through here, and only those that talk to a daemon need the client.
    if name in ("connect", "connect_async"):
        return getattr(importlib.import_module("zenos.client"), name)
    if name in ("call", "map"):
        return getattr(importlib.import_module("zenos.calls"), name)
    if name in ("bus", "task", "threads"):
        return importlib.import_module(f"zenos.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
