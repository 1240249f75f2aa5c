"""Quotas in the kernel's units, and what they leave no room for, in words."""

from __future__ import annotations

from typing import Final, NamedTuple

from zenos.core.quotas import shown
from zenos.core.resources import Resources, show_share, show_size


class Bounds(NamedTuple):
    """A quota in the kernel's units: at once by resource, and GPU-seconds in a window."""

    tasks: int | None
    held: tuple[tuple[str, int], ...]
    gpu_s: float | None


class Lack(NamedTuple):
    """Which quota leaves no room for a request. what: a resource, or `gpu_hours`, in seconds."""

    account: str
    what: str
    had: float
    limit: float
    wanted: float


def never_within(name: str, bounds: Bounds, request: Resources) -> str:
    """Why a quota could not even hold a request alone, in words; empty when it could."""
    for what, limit in bounds.held:
        wanted = getattr(request, what)
        if wanted > limit:
            if not limit:
                return f"{shown(name)} may hold no {_NAMES[what]}"
            most, asked = amount_of(what, limit), amount_of(what, wanted)
            return f"{shown(name)} may hold {most} at once, and this wants {asked}; ask for less"
    if bounds.gpu_s == 0 and request.gpu:
        return f"{shown(name)} may have no GPU-hours"
    return ""


_NAMES: Final = {"cpu": "CPUs", "gpu": "GPUs", "memory": "memory"}


def amount_of(what: str, amount: float) -> str:
    """So much of a resource, for people."""
    if what == "memory":
        return f"{show_size(int(amount))} of memory"
    one = amount == 1000
    return f"{show_share(int(amount))} {_NAMES[what][:-1] if one else _NAMES[what]}"
