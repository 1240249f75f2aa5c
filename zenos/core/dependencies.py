"""What `after:` of a task says: `t12`, a name, or `any:t12` for an end of whatever kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.names import check_name

ANY: Final = "any:"
_ELEMENT: Final = re.compile(r"^(.+)\[([0-9]{1,9})\]$", re.DOTALL)


class After(NamedTuple):
    """Whom a task waits for, by id or name; any_end: a failure will do as well as a success."""

    task: str
    any_end: bool = False

    def __str__(self) -> str:
        return f"{ANY if self.any_end else ''}{self.task}"


def parse_after(text: str) -> After:
    """Raises InvalidError for what is neither an id nor a name."""
    bare = text.removeprefix(ANY)
    return After(check_task_name(bare), any_end=bare != text)


def check_after(after: Sequence[str]) -> None:
    """Raises InvalidError for an entry that may not be used, and for too many of them."""
    if len(after) > limits.AFTER_MAX:
        raise InvalidError(
            f"cannot wait for {len(after)} tasks: at most {limits.AFTER_MAX}; put a task between"
        )
    for entry in after:
        parse_after(entry)


def check_task_name(text: str) -> str:
    """An id, a name, or a task of an array as `NAME[3]`; in NFC. Raises InvalidError."""
    found = _ELEMENT.match(text) if isinstance(text, str) else None
    if found is None:
        return check_name(text, "task")
    return f"{check_name(found[1], 'task')}[{int(found[2])}]"
