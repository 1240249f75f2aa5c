"""Names of tasks, models, deployments and topics: checked before they become paths or keys."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

import msgspec

from zenos.core import limits
from zenos.core.errors import InvalidError, RefusedError

_NAME: Final = re.compile(r"^\w[\w.\-]*$")
_TASK_ID: Final = re.compile(r"^t[0-9]+$")
_ARRAY_ID: Final = re.compile(r"^array-[0-9]+$")
# Users' tokens begin so: one is known for what it is where it is refused, or shouldn't be.
TOKEN_PREFIX: Final = "zenos_"  # noqa: S105 - no password
INTERNAL: Final = "zenos"  # the first part of topics that are for zenos' own parts
_VERSION: Final = re.compile(r"^[1-9][0-9]{0,8}$")


def check_name(name: str, what: str = "name") -> str:
    """`name` in NFC, if it may be used; InvalidError otherwise.

    Letters and digits of any script, `_`, `-` and `.`, beginning with a letter, a digit or `_`; at
    most 64 characters. So no `/`, no `..` alone, no NUL, no control character, no emoji.
    """
    if not isinstance(name, str):
        raise InvalidError(f"cannot use {type(name).__name__} as {what}: give a text")
    if not name or name.isspace():
        raise InvalidError(f"cannot use an empty {what}: give it 1 to 64 letters or digits")
    if len(name) > limits.NAME_CHARS_MAX:
        raise InvalidError(
            f"cannot use a {what} of {len(name)} characters: "
            f"at most {limits.NAME_CHARS_MAX} are allowed"
        )
    normal = unicodedata.normalize("NFC", name)
    if len(normal) > limits.NAME_CHARS_MAX or not _NAME.match(normal) or normal.endswith("\n"):
        raise InvalidError(
            f"cannot use the {what} {name!r}: "
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
    if _TASK_ID.match(normal) or _ARRAY_ID.match(normal):
        raise InvalidError(f"cannot use the {what} {normal!r}: task ids look like that")
    return normal


def check_encoding(name: str) -> str:
    """An encoding of text that this Python knows. Raises InvalidError."""
    try:
        "".encode(name)  # refuses unknown ones, and codecs that are no text
    except (LookupError, ValueError):
        raise InvalidError(
            f"cannot use the encoding {name[:64]!r}: unknown; e.g. utf-8, gb18030"
        ) from None
    return name


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises InvalidError for labels that may not be used: each part is a name."""
    if len(labels) > limits.LABELS_MAX:
        raise InvalidError(f"cannot use {len(labels)} labels: at most {limits.LABELS_MAX}")
    for key, value in labels.items():
        check_name(key, "label")
        if value:
            check_name(value, "value of a label")


def check_topic(name: str) -> str:
    """A topic's name in NFC: names joined by `/`, at most 4. Raises InvalidError."""
    if not isinstance(name, str):
        raise InvalidError(f"cannot use a {type(name).__name__} as topic: give a text")
    return _check_topic(name)


@functools.lru_cache(4096)
def _check_topic(name: str) -> str:
    """Asked for with each message, of the same few names. What raises isn't kept."""
    parts = name.split("/")
    if len(parts) > 4:
        raise InvalidError(f"cannot use a topic of {len(parts)} parts: at most 4")
    if len(parts) > 1 and "" in parts:
        raise InvalidError(
            f"cannot use the topic {name[: limits.NAME_CHARS_MAX]!r}: one of its parts is empty"
        )
    return "/".join(check_name(part, "topic") for part in parts)


def is_internal(topic: str) -> bool:
    """Whether a topic is for zenos' own parts alone. See docs/security.md."""
    return topic == INTERNAL or topic.startswith(f"{INTERNAL}/")


def check_public_topic(name: str) -> str:
    """`check_topic` of one that people may use; RefusedError for those of zenos' own parts."""
    topic = check_topic(name)
    if is_internal(topic):
        raise RefusedError(
            f"cannot use the topic {topic}: those below {INTERNAL}/ are for zenos' own parts; "
            "choose another name"
        )
    return topic


# In the run directory of a host of calls, while others wait for its room.
WANTED: Final = "wanted"


def calls_topic(task: str) -> str:
    """Where a host of calls (see zenos/calls) is asked for a connection."""
    return f"{INTERNAL}/calls/{task}"


class ModelRef(msgspec.Struct, frozen=True):
    """`name`, `name:3` or `name:alias`, as people write it."""

    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises InvalidError when a part may not be used."""
        name, colon, tag = text.partition(":") if isinstance(text, str) else (text, "", "")
        return cls(check_name(name, "model name"), check_name(tag, "tag") if colon else None)

    @property
    def version(self) -> int | None:
        """The version where the tag is one; None for an alias or the latest."""
        return int(self.tag) if self.tag and _VERSION.match(self.tag) else None

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name
