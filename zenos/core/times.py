"""Points in time as people write them: `18:00`, `2026-12-01 18:00`, `+2h`. Held as Unix seconds.

What names no zone is meant where it is read: so the client reads it, and the daemon gets UTC.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Final

from zenos.core.wording import FieldError

_AHEAD: Final = re.compile(r"^\+\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|m|min|h|d)$")
_CLOCK: Final = re.compile(r"^([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?$")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_time(value: float | str, what: str, now: float, param: str | None = None) -> float:
    """Unix seconds. `18:00` is the next one by the clock here; ISO 8601 with or without a zone.

    Raises FieldError. In the gap of a clock that is set forward the time after it counts.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = value.strip() if isinstance(value, str) and len(value) <= 64 else ""
    if ahead := _AHEAD.match(text):
        return now + float(ahead[1]) * _SECONDS[ahead[2]]
    try:
        if clock := _CLOCK.match(text):
            hours, minutes, seconds = (int(part or 0) for part in clock.groups())
            return _next(dt.time(hours, minutes, seconds), now)
        found = dt.datetime.fromisoformat(text).timestamp()
        if math.isfinite(found):
            return found
    except (ValueError, OverflowError, OSError):
        pass
    raise FieldError(
        f"cannot read {what} {str(value)[:40]!r}: write 18:00, 2026-12-01T18:00 or +2h", param
    )


def _next(clock: dt.time, now: float) -> float:
    here = dt.datetime.fromtimestamp(now)
    found = dt.datetime.combine(here.date(), clock).timestamp()
    if found > now:
        return found
    return dt.datetime.combine(here.date() + dt.timedelta(days=1), clock).timestamp()
