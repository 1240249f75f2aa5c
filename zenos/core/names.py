"""Names of tasks, models, deployments and topics: checked before they become paths or keys."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError

_NAME: Final = re.compile(r"^\w[\w.\-]*$")
_TASK_ID: Final = re.compile(r"^t[0-9]+$")
_VERSION: Final = re.compile(r"^[1-9][0-9]{0,8}$")


def check_name(name: str, what: str = "name") -> str:
    """`name` in NFC, if it may be used; InvalidError otherwise.

    Letters and digits of any script, `_`, `-` and `.`, beginning with a letter, a digit or `_`; at
    most 64 characters. So no `/`, no `..` alone, no NUL, no control character, no emoji.
    """
    if not isinstance(name, str) or not name or name.isspace():
        raise InvalidError(f"cannot use an empty {what}: give it 1 to 64 letters or digits")
    if len(name) > limits.NAME_CHARS_MAX:
        raise InvalidError(
            f"cannot use a {what} of {len(name)} characters: "
            f"at most {limits.NAME_CHARS_MAX} are allowed"
        )
    normal = unicodedata.normalize("NFC", name)
    if len(normal) > limits.NAME_CHARS_MAX or not _NAME.match(normal) or normal.endswith("\n"):
        raise InvalidError(
            f"cannot use the {what} {name!a}: "
            "use letters, digits, '_', '-' and '.', beginning with a letter, a digit or '_'"
        )
    if len(normal.encode()) > limits.NAME_BYTES_MAX:
        raise InvalidError(
            f"cannot use a {what} of {len(normal.encode())} bytes: "
            f"at most {limits.NAME_BYTES_MAX} are allowed"
        )
    return normal


def check_new_name(name: str, what: str) -> str:
    """A name for something new: nor may it look like a task's id, which would be taken for it."""
    normal = check_name(name, what)
    if _TASK_ID.match(normal):
        raise InvalidError(f"cannot use the {what} {normal!r}: task ids look like that")
    return normal


def check_topic(name: str) -> str:
    """A topic's name in NFC: names joined by `/`, at most 4. Raises InvalidError."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if len(parts) > 4:
        raise InvalidError(f"cannot use a topic of {len(parts)} parts: at most 4")
    return "/".join(check_name(part, "topic") for part in parts)


class ModelRef(msgspec.Struct, frozen=True):
    """`name`, `name:3` or `name:alias`, as people write it."""

    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises InvalidError when a part may not be used."""
        name, colon, tag = text.partition(":")
        return cls(check_name(name, "model name"), check_name(tag, "tag") if colon else None)

    @property
    def version(self) -> int | None:
        """The version where the tag is one; None for an alias or the latest."""
        return int(self.tag) if self.tag and _VERSION.match(self.tag) else None

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name
