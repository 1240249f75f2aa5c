"""How a host of calls, or a lane of it, came to its end, in words."""

from __future__ import annotations

from zenos.core import shim
from zenos.core.home import Home
from zenos.core.resources import show_size


def used_up(limit: int | None) -> str:
    """The memory of a host was not enough. limit: what it has, in bytes; None: nobody knows."""
    size = f" of {show_size(limit)}" if limit is not None else ""
    return f", as the memory{size} that its host has was used up; ask for more with memory="


def owner(task: str, generation: int) -> str:
    """What a host leaves in its journal: whose run it is."""
    return f"{task} {generation}"


def why_died(home: Home, before: str) -> str:
    """Why the host before died; nothing where its shim doesn't tell. before: what `owner` said."""
    task, _, generation = before.partition(" ")
    if not task or "/" in task or not (generation.isascii() and generation.isdecimal()):
        return ""
    record = shim.read_record(str(home.runs / task / generation), "exit")
    if record is None or not record.get("oom"):
        return ""
    limit = record.get("limit")
    return used_up(limit if isinstance(limit, int) else None)
