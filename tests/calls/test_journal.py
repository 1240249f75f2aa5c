"""The journal of a host: what is found after an end of any kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zenos.calls import begun, journal, wire
from zenos.calls.journal import Journal, Left
from zenos.calls.lanes import Work
from zenos.core import durable, limits, processes
from zenos.core.errors import ConflictError

FUNCTION = wire.Function(b"f", "work", b"pickle")
ME = b"me"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "key")
    made.read()
    yield made
    made.close()


def keep(journal: Journal, *ids: int, size: int = 10) -> list[Work]:
    calls = [wire.Call(id_, b"f", bytes(size), wire.DURABLE) for id_ in ids]
    return journal.keep(ME, calls, {b"f": FUNCTION})


def again(journal: Journal) -> Left:
    """What the next host finds when this one is killed."""
    journal._close_segment()
    return _read(journal.directory)


def _read(directory: Path) -> Left:
    found = Journal.__new__(Journal)
    found.directory, found.next_serial, found.segment = directory, 1, 0
    found._open, found._paths, found._left, found._unsynced = {}, [], [], False
    left = found.read()
    for fd in found.to_sync():
        os.close(fd)
    return left


def test_what_was_kept_and_has_not_ended_is_found(opened: Journal) -> None:
    opened.use(["/a", "/b"])
    first, second, third = keep(opened, 1, 2, 3)
    opened.end(second)
    opened.flush()
    (opened.directory / "00000001.begun").write_bytes(begun.record_of(third.serial) * 2)
    left = again(opened)
    assert left.paths == ["/a", "/b"]
    assert [(w.call.id, w.attempts) for w in left.unfinished] == [(1, 0), (3, 2)]
    assert left.unfinished[0].function.body == b"pickle"
    assert left.ended == {(ME, 2)}
    assert left.other_boot == set()
    for work in (first, third):
        opened.end(work)


def test_a_torn_record_was_never_accepted(opened: Journal) -> None:
    works = keep(opened, 1) + keep(opened, 2)
    path = opened.directory / "00000001.calls"
    whole = path.read_bytes()
    for size in range(len(whole) - 1, len(whole) - 30, -1):
        path.write_bytes(whole[:size])
        assert [w.call.id for w in again(opened).unfinished] == [1]
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert [w.call.id for w in again(opened).unfinished] == [1]
    path.write_bytes(whole)
    for work in works:
        opened.end(work)


def test_another_boot_is_told(opened: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    (work,) = keep(opened, 1)
    monkeypatch.setattr(processes, "boot_id", lambda: "another")
    assert again(opened).other_boot == {work.serial}
    opened.end(work)


def test_segments_go_once_nobody_needs_them(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALLS_SEGMENT_BYTES", 100)
    works = [keep(opened, id_, size=200)[0] for id_ in range(4)]

    def names() -> list[str]:
        return sorted(path.name for path in opened.directory.glob("*.calls"))

    assert len(names()) == 4
    for work in (works[1], works[2]):
        opened.end(work)
    opened.flush()
    assert len(names()) == 4, "the first one is open: what later ones say of it is needed"
    assert [w.call.id for w in again(opened).unfinished] == [0, 3]
    opened.end(works[0])
    opened.flush()
    assert [w.call.id for w in _read(opened.directory).unfinished] == [3]
    assert len(names()) <= 2
    opened.end(works[3])
    opened.flush()
    assert _read(opened.directory).unfinished == []


def test_two_hosts_never_have_one_journal(opened: Journal) -> None:
    with pytest.raises(ConflictError, match="another host"):
        Journal(opened.directory)


def test_serials_go_on_where_the_last_host_was(tmp_path: Path) -> None:
    first = Journal(tmp_path / "key")
    first.read()
    (kept,) = keep(first, 1)
    first.close()
    second = Journal(tmp_path / "key")
    left = second.read()
    (next_,) = keep(second, 2)
    assert next_.serial > kept.serial
    assert next_.segment > kept.segment
    for work in [*left.unfinished, next_]:
        second.end(work)
    second.flush()
    second.close()
    assert not (tmp_path / "key").exists()


def test_what_is_to_be_synced_is_all_that_was_kept_since(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> list[str]:
        found = opened.to_sync()
        names = [Path(f"/proc/self/fd/{fd}").readlink().name for fd in found]
        for fd in found:
            os.close(fd)
        return names

    monkeypatch.setattr(limits, "CALLS_SEGMENT_BYTES", 100)
    assert files() == []
    works = keep(opened, 1, size=200) + keep(opened, 2, size=200)  # a segment each
    assert files() == ["00000001.calls", "00000002.calls"]
    assert files() == []
    works += keep(opened, 3, size=200)
    assert files() == ["00000003.calls"]
    for work in works:
        opened.end(work)
    opened.flush()
    assert files() == []  # all has ended: nothing is left to be kept


def test_what_an_earlier_host_has_left_is_to_be_synced(tmp_path: Path) -> None:
    """It may have died before that; nobody is told that a call is accepted while it isn't."""
    first = Journal(tmp_path / "key")
    first.read()
    (work,) = keep(first, 1)
    first.close()
    second = Journal(tmp_path / "key")
    second.read()
    (fd,) = second.to_sync()
    assert Path(f"/proc/self/fd/{fd}").readlink().name == "00000001.calls"
    os.close(fd)
    second.end(work)
    second.flush()
    second.close()


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk doesn't take one write of that kind."""
    takes = getattr(durable, name)

    def fail(*_: object) -> None:
        monkeypatch.setattr(durable, name, takes)
        raise OSError(errno.EIO, "the disk has failed")

    monkeypatch.setattr(durable, name, fail)


def test_an_end_that_could_not_be_written_is_written_with_the_next(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = keep(opened, 1, 2, 3)
    opened.end(first)
    failing_once(monkeypatch, "append")
    with pytest.raises(OSError, match="the disk has failed"):
        opened.flush()
    opened.end(second)
    opened.flush()
    assert [w.call.id for w in again(opened).unfinished] == [3]
    opened.end(third)


def test_a_segment_that_could_not_be_begun_is_not_used(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, "sync_directory")
    with pytest.raises(OSError, match="the disk has failed"):
        keep(opened, 1)
    (work,) = keep(opened, 1)
    assert [w.call.id for w in again(opened).unfinished] == [1]
    opened.end(work)


@pytest.mark.parametrize("torn", range(begun.RECORD_BYTES))
def test_what_has_begun_is_found_around_a_torn_record(opened: Journal, torn: int) -> None:
    """The disk was full for a moment, or a lane's process died as it wrote."""
    works = keep(opened, *range(1, 5))
    first, second, third, fourth = (begun.record_of(work.serial) for work in works)
    path = opened.directory / "00000001.begun"
    path.write_bytes(first + fourth[:torn] + second + third + fourth[:torn])
    assert [w.attempts for w in again(opened).unfinished] == [1, 1, 1, 0]
    for work in works:
        opened.end(work)


def test_what_has_begun_is_found_in_a_journal_of_version_1(
    opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "VERSION", 1)
    works = keep(opened, 1, 2)
    (opened.directory / "00000001.begun").write_bytes(works[1].serial.to_bytes(8, "big") + b"\0\0")
    monkeypatch.undo()
    assert [w.attempts for w in again(opened).unfinished] == [0, 1]
    for work in works:
        opened.end(work)


@pytest.mark.parametrize("torn", [0, 3])
def test_what_begins_of_a_journal_of_version_1_after_an_upgrade_is_found(
    opened: Journal, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    """The lanes of today's host write it down in their way, in the file that there is."""
    monkeypatch.setattr(journal, "VERSION", 1)
    works = keep(opened, *range(1, 6))
    monkeypatch.undo()
    path = opened.directory / "00000001.begun"
    path.write_bytes(works[0].serial.to_bytes(8, "big") + bytes(torn))
    assert [w.attempts for w in again(opened).unfinished] == [1, 0, 0, 0, 0]
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for work in works[:4]:
        begun.note(fd, work.serial)
    os.close(fd)
    assert [w.attempts for w in again(opened).unfinished] == [2, 1, 1, 1, 0]
    for work in works:
        opened.end(work)
