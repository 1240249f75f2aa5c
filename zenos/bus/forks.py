"""What a fork has of its parent's connections: nothing that it could use."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Forgetting(Protocol):
    """A connection."""

    def forget(self) -> None:
        """In a fork: it is the parent's."""
        ...


_all: Final[weakref.WeakSet[Forgetting]] = weakref.WeakSet()


def forget_in_child(one: Forgetting) -> None:
    """Have it called in every fork, for as long as it is there."""
    _all.add(one)


def _forget() -> None:
    for one in list(_all):
        one.forget()


os.register_at_fork(after_in_child=_forget)
