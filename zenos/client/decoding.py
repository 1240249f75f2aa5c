"""What the other side has sent, as a value; whatever it was, the only errors are zenos' own."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from zenos.core.errors import UnavailableError

T = TypeVar("T")


def decode(content: bytes | str, into: type[T], what: str = "answer") -> T:
    """JSON as a value of that type; raises UnavailableError, which says what was wrong with it."""
    try:
        return msgspec.json.decode(content, type=into)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnavailableError(
            f"cannot understand the daemon's {what} ({error}): "
            "are client and daemon of the same version?"
        ) from None
