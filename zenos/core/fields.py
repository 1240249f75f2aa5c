"""What a field of a specification means and which numbers it takes, said once, where it stands.

The published schemas, the flags of the command line and the reference pages are made from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.wording import FieldError, shown


def about(text: str, low: float | None = None, high: float | None = None) -> msgspec.Meta:
    """What a field means and, for a number, its bounds, both included.

    The bounds aren't msgspec's own `ge` and `le`, which refuse in words of their own.
    """
    bounds = {} if low is None else {"minimum": low, "maximum": high}
    return msgspec.Meta(description=text, extra_json_schema=bounds)


def within(text: str = "", **schema: Any) -> msgspec.Meta:
    """What a field means, and for the published schema what else is said of it, such as minLength.

    It is checked where the message can say more.
    """
    return msgspec.Meta(description=text or None, extra_json_schema=schema)


def named(text: str = "", least: int = 0) -> msgspec.Meta:
    """The same of a name, which has so many characters at least."""
    return within(text, minLength=least, maxLength=limits.NAME_CHARS_MAX)


def seconds(text: str) -> msgspec.Meta:
    """The same of a time that something takes."""
    return within(text, exclusiveMinimum=0, maximum=limits.EXPECTED_S_MAX)


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
    """Raises FieldError for the first field that is out of its bounds, as `prefix` + its name."""
    for name, low, high in _bounds(type(spec)):
        value = getattr(spec, name)
        # NaN fails the comparison too; an integer may be too large to become a float.
        if value is not None and not low <= value <= high:
            raise FieldError(
                f"cannot use {prefix}{name} {shown(value)}: it must be from {plain(low)} to "
                f"{plain(high)}",
                f"{prefix}{name}",
            )


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """What is found invalid inside, and names no field itself, is the fault of this one."""
    try:
        yield
    except InvalidError as error:
        if error.param is not None or type(error) is not InvalidError:
            raise
        raise FieldError(error.message, param) from None
