"""What a host of calls has accepted and not finished, on the disk.

A directory of segments, numbered. `N.calls` has records: a length, a CRC-32, and MessagePack. Who
accepts a call appends it and syncs; that is what `accepted` means. That a call has begun is
appended to `N.begun` by its lane, and that it has ended to the newest `N.calls` by the host, both
unsynced: they outlive every process, though not a loss of power. So after another boot of the
machine nobody knows what had begun, and a call that may not run twice does not run again.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from zenos.calls.begun import serials_in, serials_in_first
from zenos.calls.lanes import Work
from zenos.calls.syncing import sync
from zenos.calls.wire import Call, Function, Said, encoder
from zenos.core import durable, limits, processes
from zenos.core.errors import ConflictError

OWNER_BYTES_MAX: Final = 256
VERSION: Final = 2  # of 1 the beginnings of calls have no check
HEAD: Final = struct.Struct(">II")
_SEGMENT: Final = re.compile(r"^([0-9]{8})\.calls$")


class Opened(msgspec.Struct, array_like=True, tag="opened"):
    """The first record of a segment. version: see VERSION."""

    version: int
    boot: str
    paths: list[str]


class Kept(msgspec.Struct, array_like=True, tag="kept"):
    """Calls that were accepted together; their serials count from `first`. functions: those that
    the segment did not have before."""

    first: int
    caller: bytes
    functions: list[Function]
    calls: list[Call]


class Ended(msgspec.Struct, array_like=True, tag="ended"):
    """By serial."""

    serials: list[int]


Record = Opened | Kept | Ended
_decoder: Final = msgspec.msgpack.Decoder(Record)


class Left(msgspec.Struct):
    """What earlier hosts have left. unfinished: with `attempts` as often as each has begun.

    ended: (caller, id) of calls that have ended, as far as is still known. other_boot: serials that
    another boot of the machine has accepted. died: why the last host did, if anybody knows.
    """

    paths: list[str] = []
    unfinished: list[Any] = []
    ended: set[tuple[bytes, int]] = set()
    other_boot: set[int] = set()
    died: str = ""


class Journal:
    """The open journal. Belongs to one thread, but for the descriptors of `to_sync`.

    before: what the host that had it last said of itself, as `owner`; nothing where it left in
    good order, or nobody knows.
    """

    def __init__(self, directory: Path, owner: str = "") -> None:
        self.directory = directory
        self.next_serial = 1
        self.fd = -1
        self.segment = 0
        self._size = 0
        self._unsynced = False  # something was written to the present segment
        self._left: list[int] = []  # descriptors of earlier ones with the like
        self._functions: set[bytes] = set()  # of the present segment
        self._open: dict[int, int] = {}  # by segment, how many calls have not ended
        self._ended: list[int] = []
        self._paths: list[str] = []
        self._lock = _locked(directory)
        self.before = os.pread(self._lock, OWNER_BYTES_MAX, 0).decode("ascii", "replace")
        with suppress(OSError):  # the disk is full: then the next one has less to say
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, owner.encode("ascii"), 0)

    # -- what was left

    def read(self) -> Left:
        """What earlier hosts have left there; a torn end was never accepted. They may have died
        before it was synced: see to_sync."""
        left = Left()
        works: dict[int, Work] = {}
        begun: dict[int, int] = {}
        boot = processes.boot_id()
        for number in self._segments():
            functions: dict[bytes, Function] = {}
            here, version = True, VERSION
            self._open[number] = 0
            for record in _records(self._path(number)):
                if isinstance(record, Opened):
                    left.paths, here = record.paths, record.boot == boot
                    version = record.version
                elif isinstance(record, Kept):
                    functions.update((function.key, function) for function in record.functions)
                    for serial, call in enumerate(record.calls, record.first):
                        function = functions[call.key]
                        works[serial] = Work(serial, record.caller, call, function, number)
                        self._open[number] += 1
                        if not here:
                            left.other_boot.add(serial)
                    self.next_serial = record.first + len(record.calls)
                else:
                    for serial in record.serials:
                        work = works.pop(serial, None)
                        if work is not None:
                            self._open[work.segment] -= 1
                            left.ended.add((work.caller, work.call.id))
            for serial in _begun(self._path(number).with_suffix(".begun"), version):
                begun[serial] = begun.get(serial, 0) + 1
            self.segment = number
        for number in sorted({work.segment for work in works.values()}):
            self._left.append(os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC))
        for serial, work in works.items():
            work.attempts = begun.get(serial, 0)
        left.unfinished = list(works.values())
        self._paths = left.paths
        return left

    def use(self, paths: list[str]) -> None:
        """From now on lanes have this sys.path."""
        if paths != self._paths:
            self._paths = paths
            self._close_segment()

    # -- what is accepted

    def keep(
        self, caller: bytes, calls: list[Call], functions: Said | dict[bytes, Function]
    ) -> list[Work]:
        """Append calls: works, not synced yet. OSError when the disk doesn't take them."""
        if self.fd < 0 or self._size > limits.CALLS_SEGMENT_BYTES:
            self._begin_segment()
        first = self.next_serial
        new = {call.key: functions[call.key] for call in calls if call.key not in self._functions}
        self._append(Kept(first, caller, list(new.values()), calls))
        self._functions.update(new)
        self.next_serial += len(calls)
        self._open[self.segment] += len(calls)
        return [
            Work(serial, caller, call, functions[call.key], self.segment)
            for serial, call in enumerate(calls, first)
        ]

    def end(self, work: Work) -> None:
        """A call has ended; written with the next `flush`."""
        self._ended.append(work.serial)
        self._open[work.segment] -= 1

    def flush(self) -> None:
        """Write what has ended, and remove what nobody needs. OSError."""
        if self._ended:
            if self.fd < 0:
                self._begin_segment()
            self._append(Ended(self._ended))
            self._ended = []
        for number in sorted(self._open):
            # In order: a newer one says what of an older one has ended.
            if self._open[number]:
                return
            if number == self.segment:
                if self._size <= limits.CALLS_SEGMENT_BYTES:
                    return
                self._unsynced = False  # all in it has ended
                self._close_segment()
            self._remove(number)

    def to_sync(self) -> list[int]:
        """Descriptors of what must be synced for all that was kept to be durable; the caller's.

        OSError when there is none to be had: see sync_here.
        """
        if self._unsynced:
            self._left.append(os.dup(self.fd))
            self._unsynced = False
        found, self._left = self._left, []
        return found

    def sync_here(self) -> OSError | None:
        """Make all that was kept durable, without another descriptor; what keeps it from that."""
        found, self._left = self._left, []
        error = sync(found)
        if self._unsynced:
            try:
                durable.sync(self.fd)
                self._unsynced = False
            except OSError as failed:
                error = failed
        return error

    def leave_segment(self) -> None:
        """What is kept next goes into another one: it could not be synced."""
        self._close_segment()

    def close(self) -> None:
        """Leave; where nothing is unfinished, no trace."""
        if not any(self._open.values()):
            self._close_segment()
            for number in sorted(self._open):
                self._remove(number)
            (self.directory / "lock").unlink(missing_ok=True)
            self.directory.rmdir()
        else:
            self._close_segment()
        for fd in (*self.to_sync(), self._lock):
            os.close(fd)

    # -- segments

    def _segments(self) -> list[int]:
        found = [_SEGMENT.match(path.name) for path in self.directory.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.calls"

    def _begin_segment(self) -> None:
        self._close_segment()
        self.segment += 1
        self.fd = os.open(
            self._path(self.segment),
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o600,
        )
        self._size, self._functions = 0, set()
        self._open[self.segment] = 0
        try:
            durable.sync_directory(self.directory)
        except OSError:
            self._close_segment()  # nothing is kept where it may not be found
            raise
        self._append(Opened(VERSION, processes.boot_id(), self._paths))

    def _close_segment(self) -> None:
        if self.fd < 0:
            return
        if self._unsynced:
            self._left.append(self.fd)
            self._unsynced = False
        else:
            os.close(self.fd)
        self.fd = -1

    def _remove(self, number: int) -> None:
        path = self._path(number)
        path.unlink(missing_ok=True)
        path.with_suffix(".begun").unlink(missing_ok=True)
        self._open.pop(number, None)

    def _append(self, record: Record) -> None:
        body = encoder.encode(record)
        data = HEAD.pack(len(body), zlib.crc32(body)) + body
        self._unsynced = True
        try:
            durable.append(self.fd, data)
        except OSError:
            self._close_segment()  # what comes after a torn record would not be read
            raise
        self._size += len(data)


def _locked(directory: Path) -> int:
    """The directory's lock. ConflictError when another host has it."""
    path = directory / "lock"
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            raise ConflictError(f"cannot use {directory}: another host of calls has it") from None
        except FileNotFoundError:  # its last owner has just removed it
            pass
        os.close(fd)


def _records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    at = 0
    while at + HEAD.size <= len(data):
        length, check = HEAD.unpack_from(data, at)
        body = data[at + HEAD.size : at + HEAD.size + length]
        if len(body) < length or zlib.crc32(body) != check:
            return
        yield _decoder.decode(body)
        at += HEAD.size + length


def _begun(path: Path, version: int) -> Iterator[int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return iter(())
    return serials_in_first(data) if version == 1 else serials_in(data)
