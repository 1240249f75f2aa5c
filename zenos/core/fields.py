"""What a field of a specification means and which numbers it takes, said once, where it stands.

The published schemas, the flags of the command line and the reference pages are made from it.
"""

from __future__ import annotations

import functools
from typing import get_type_hints

import msgspec

from zenos.core.errors import InvalidError


def about(text: str, low: float | None = None, high: float | None = None) -> msgspec.Meta:
    """What a field means and, for a number, its bounds, both included.

    The bounds aren't msgspec's own `ge` and `le`, which refuse in words of their own.
    """
    bounds = {} if low is None else {"minimum": low, "maximum": high}
    return msgspec.Meta(description=text, extra_json_schema=bounds)


@functools.cache
def _bounds(type_: type[msgspec.Struct]) -> list[tuple[str, float, float]]:
    found = []
    for name, hint in get_type_hints(type_, include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            extra = meta.extra_json_schema or {}
            if "minimum" in extra:
                found.append((name, extra["minimum"], extra["maximum"]))
    return found


def plain(number: float) -> str:
    """A bound as people write it: 1000000000 and 0.001, never 1e+09."""
    return str(int(number)) if number == int(number) else f"{number:.10f}".rstrip("0")


def check_bounds(spec: msgspec.Struct, prefix: str = "") -> None:
    """Raises InvalidError for the first field that is out of its bounds, as `prefix` + its name."""
    for name, low, high in _bounds(type(spec)):
        value = getattr(spec, name)
        # NaN fails the comparison too; an integer may be too large to become a float.
        if value is not None and not low <= value <= high:
            shown = repr(value)[:40]
            raise InvalidError(
                f"cannot use {prefix}{name} {shown}: it must be from {plain(low)} to {plain(high)}"
            )
