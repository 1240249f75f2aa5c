"""Data that threads share: versioned snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, NoReturn, TypeVar

from zenos.core.errors import DeadlineError, InvalidError

T = TypeVar("T")


class Snapshot(NamedTuple, Generic[T]):
    """A value and its version, which counts from 1."""

    version: int
    value: T


class Shared(Generic[T]):
    """A value that some threads publish and others read.

    A reader has one version whole: it is published by putting one reference into the place of
    another, and who has published a value must not change it. Versions never go back: what a reader
    sees is at least as new as all that it, or whoever told it to look, has seen. The last version
    always arrives: waiting for a newer one than the last seen misses none that is the newest.
    For the OS threads of one process.
    """

    def __init__(self, value: T) -> None:
        self._newest = Snapshot(1, value)
        self._changed = threading.Condition()
        self._writer = threading.Lock()

    def get(self) -> Snapshot[T]:
        """The newest version. Never waits."""
        return self._newest

    def publish(self, value: T) -> int:
        """Make this value the newest; its version."""
        with self._writer:
            return self._publish(value)

    def update(self, change: Callable[[T], T]) -> Snapshot[T]:
        """Publish what `change` makes of the newest value; no other is published between.

        When it raises nothing is published. It must not publish itself.
        """
        with self._writer:
            value = change(self._newest.value)
            return Snapshot(self._publish(value), value)

    def wait(self, newer_than: int, timeout: float | None = None) -> Snapshot[T]:
        """The newest version, once it is newer than that. DeadlineError after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._newest.version <= newer_than:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise DeadlineError(
                        f"cannot have a version newer than {newer_than}: none was published in "
                        f"{timeout:g} s"
                    )
                self._changed.wait(left)
            return self._newest

    def _publish(self, value: T) -> int:
        with self._changed:
            self._newest = Snapshot(self._newest.version + 1, value)
            self._changed.notify_all()
            return self._newest.version

    def __reduce__(self) -> NoReturn:
        raise InvalidError(
            "cannot share data with a lane's process this way: give it a version's value as an "
            "argument (functools.partial sends it once per lane), or use a pool of kind='thread'"
        )
