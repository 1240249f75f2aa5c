"""What lanes write down of calls that begin: in one file for all, each by appending.

A full disk may take part of a record, and what other lanes append then follows right behind it. So
a record says by its check where it is one: whatever lies between records is passed over.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final

_SERIAL: Final = struct.Struct(">Q")
_CHECK: Final = struct.Struct(">I")
RECORD_BYTES: Final = _SERIAL.size + _CHECK.size


def record_of(serial: int) -> bytes:
    """As it is written."""
    body = _SERIAL.pack(serial)
    return body + _CHECK.pack(zlib.crc32(body))


def note(fd: int, serial: int) -> None:
    """Write down that a call begins. OSError when the file doesn't take that: it must not then."""
    record = record_of(serial)
    # The rest of one would not follow its beginning where another lane has appended meanwhile.
    if os.write(fd, record) != len(record) and os.write(fd, record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def serials_in(data: bytes) -> Iterator[int]:
    """Those of all records that are whole, each as often as it is there."""
    at = 0
    while at + RECORD_BYTES <= len(data):
        if _is_record(data, at):
            yield _SERIAL.unpack_from(data, at)[0]
            at += RECORD_BYTES
        else:
            at += 1


def serials_in_first(data: bytes) -> Iterator[int]:
    """The same of segments of version 1: their records have no check. But what runs of their calls
    on a host of today has one, and that stands behind them."""
    end = next((at for at in range(len(data)) if _is_record(data, at)), len(data))
    for (serial,) in _SERIAL.iter_unpack(data[: end - end % _SERIAL.size]):
        yield serial
    yield from serials_in(data[end:])


def _is_record(data: bytes, at: int) -> bool:
    if at + RECORD_BYTES > len(data):
        return False
    check = _CHECK.unpack_from(data, at + _SERIAL.size)[0]
    return bool(check == zlib.crc32(data[at : at + _SERIAL.size]))
