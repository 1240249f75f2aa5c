"""Views: the reader's side of shared memory."""

from __future__ import annotations

import os
import stat
from typing import Final, Self

from zenos.bus import segment
from zenos.bus.handle import Handle
from zenos.bus.parcel import Parcel
from zenos.core.errors import ConflictError, HandleError, UnavailableError

SEALS: Final = segment.FIXED_SIZE | segment.NO_NEW_WRITER


class View:
    """The arrays of a parcel, mapped read-only. Their memory is not reused before it is let go:
    by `release`, by leaving `with`, or with the last reference; and where memoryviews, arrays or
    tensors were made of it, with the last of those.

    In a fork it is a view like this one, and holds the memory until the fork lets go, too.
    """

    def __init__(self, parcel: Parcel) -> None:
        """Map it; the parcel stays open. HandleError unless the handles describe the memory that
        came with them: its size, its seals, its generation, its lifeline."""
        fd, lifeline = parcel.descriptors
        first = parcel.handles[0]
        room = segment.check(fd, first.segment, seals=SEALS) - segment.HEADER_BYTES
        for handle in parcel.handles:
            handle.check(room)
        try:
            found = os.fstat(lifeline)
        except OSError:
            raise HandleError("cannot use this handle: no lifeline came with it") from None
        if not stat.S_ISFIFO(found.st_mode):
            raise HandleError("cannot use this handle: no lifeline came with it")
        used = max(handle.offset + handle.bytes for handle in parcel.handles)
        mapping = segment.Mapping(fd, segment.HEADER_BYTES + used)
        segment.check_header(mapping.memory, first.generation, found.st_ino)
        try:
            mapping.at_end(os.close, os.dup(lifeline))
        except OSError as error:
            raise UnavailableError(
                f"cannot keep a view of shared memory: {error.strerror}; "
                "raise the limit with 'ulimit -n'"
            ) from error
        self.handles: tuple[Handle, ...] = parcel.handles
        self._mapping: segment.Mapping | None = mapping

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def memory(self, index: int = 0) -> memoryview:
        """The bytes of one array, read-only. Whoever writes there all the same (by its address)
        ends with SIGSEGV. ConflictError after `release`."""
        return self._part(self._mapped().memory, index)

    def private_memory(self, index: int = 0) -> memoryview:
        """The bytes of one array, writable. What is written is seen by this process alone, and
        costs it memory for each page that is touched.

        The others' data stays as it is; the views of this object change with it.
        ConflictError after `release`.
        """
        return self._part(self._mapped().make_private(), index)

    def release(self) -> None:
        """Let go, as far as this object is concerned."""
        self._mapping = None

    def _mapped(self) -> segment.Mapping:
        if self._mapping is None:
            raise ConflictError("cannot use a view that was released")
        return self._mapping

    def _part(self, memory: memoryview, index: int) -> memoryview:
        handle = self.handles[index]
        start = segment.HEADER_BYTES + handle.offset
        return memory[start : start + handle.bytes]
