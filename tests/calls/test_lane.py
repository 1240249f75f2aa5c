"""What a lane's process does with a call. In this process, without any host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from zenos.calls import begun, values, wire
from zenos.calls.lane import Lane
from zenos.core.errors import StorageError
from zenos.threads.current import BOARD_BYTES, Board


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    fd = os.memfd_create("board")
    os.ftruncate(fd, BOARD_BYTES)
    board = Board(fd)
    os.close(fd)
    link, host = socket.socketpair()
    with link, host:
        made = Lane(link, board, os.getppid())
        made._functions = {b"f": Path.touch}
        made._journal = tmp_path / "journal"
        yield made
        if made._begun >= 0:
            os.close(made._begun)
    board.close()


def test_a_call_whose_beginning_cannot_be_written_down_does_not_run(
    lane: Lane, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    run = wire.Run(7, b"f", values.arguments_of((ran,), {}), wire.DURABLE, 3)
    result = lane._run(run, b"")
    assert (result.id, result.outcome) == (7, wire.REFUSED)
    code, message = msgspec.msgpack.decode(result.payload)
    assert code == StorageError.code
    assert "it does not run" in message
    assert not ran.exists()
    lane._journal.mkdir()
    assert lane._run(run, b"").outcome == wire.DONE
    assert ran.exists()
    assert (lane._journal / "00000003.begun").read_bytes() == begun.record_of(7)


@pytest.mark.parametrize("short", [1, 2])
def test_a_call_whose_beginning_is_written_in_part_is_written_down_whole_or_does_not_run(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    ran, left = tmp_path / "ran", short
    write = os.write

    def write_some(fd: int, data: bytes) -> int:
        nonlocal left
        left -= 1
        return write(fd, data[:5] if left >= 0 else data)

    lane._journal.mkdir()
    monkeypatch.setattr(os, "write", write_some)
    run = wire.Run(7, b"f", values.arguments_of((ran,), {}), wire.DURABLE, 3)
    result = lane._run(run, b"")
    monkeypatch.undo()
    found = list(begun.serials_in((lane._journal / "00000003.begun").read_bytes()))
    if short == 1:
        assert result.outcome == wire.DONE
        assert found == [7]
    else:
        assert msgspec.msgpack.decode(result.payload)[0] == StorageError.code
        assert found == []
        assert not ran.exists()


def test_a_file_that_could_not_be_opened_once_is_opened_for_the_next_call(
    lane: Lane, tmp_path: Path
) -> None:
    """Nor is a descriptor used that is somebody else's by now."""
    ran, other = tmp_path / "ran", tmp_path / "other"
    lane._journal.mkdir()

    def run(serial: int, segment: int) -> wire.Result:
        arguments = values.arguments_of((ran,), {})
        return lane._run(wire.Run(serial, b"f", arguments, wire.DURABLE, segment), b"")

    assert run(1, 3).outcome == wire.DONE
    (lane._journal / "00000004.begun").mkdir()  # what can't be opened
    assert run(2, 4).outcome == wire.REFUSED
    with other.open("wb") as theirs:
        assert run(3, 3).outcome == wire.DONE
        (lane._journal / "00000004.begun").rmdir()
        assert run(4, 4).outcome == wire.DONE
        assert not os.get_inheritable(theirs.fileno())  # it is open
    assert other.read_bytes() == b""
    assert (lane._journal / "00000003.begun").read_bytes() == b"".join(map(begun.record_of, (1, 3)))
    assert (lane._journal / "00000004.begun").read_bytes() == begun.record_of(4)
