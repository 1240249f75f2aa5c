"""Numbers as people give them, checked before anything is made of them."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

from zenos.core.errors import InvalidError
from zenos.core.wording import shown


def whole(value: Any, what: str, least: int, most: int = sys.maxsize) -> int:
    """A whole number in that range; InvalidError for anything else. what: as it is called."""
    try:
        given = operator.index(value)
    except TypeError:
        given = None
    if given is None or isinstance(value, bool) or given < least or given > most:
        bounds = f"{least} or more" if most == sys.maxsize else f"from {least} to {most:,}"
        raise InvalidError(f"cannot use {what}={shown(value)}: give a whole number, {bounds}")
    return given


def number(value: Any, what: str, *, above: bool = False, most: float = math.inf) -> float:
    """A number that is 0 or more, or `above` 0; InvalidError for anything else. what: as above."""
    try:
        given = float(value)
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    fits = 0 < given <= most if above else 0 <= given <= most  # NaN is neither
    if isinstance(value, str | bytes | bool) or not fits:
        bounds = "above 0" if above else "0 or more"
        limit = "" if most == math.inf else f", at most {most:,.0f}"
        raise InvalidError(f"cannot use {what}={shown(value)}: give a number, {bounds}{limit}")
    return given


def text(value: Any, what: str) -> str:
    """A text; InvalidError for anything else."""
    if not isinstance(value, str):
        raise InvalidError(f"cannot use {what}={shown(value)}: give a text")
    return value
