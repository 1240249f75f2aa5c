"""A bounded log, read while it is written: nothing twice, and nothing missed but what is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_shim import running
from zenos.core.logs import Reader
from zenos.core.output import Output
from zenos.core.seldom import Seldom

LIMIT = 100


@contextmanager
def output_in(directory: Path, bytes_max: int = LIMIT) -> Iterator[Output]:
    output = Output(str(directory), bytes_max)
    try:
        yield output
    finally:
        output.leave()
        os.close(output.end)
        os.close(output._log)


def say(output: Output, data: bytes) -> None:
    os.write(output.writer, data)
    output.take()


def numbered(begin: int, end: int) -> bytes:
    """What stands at these places of an output in which each place has a content of its own."""
    return bytes((place * 7 + place // 256) % 251 for place in range(begin, end))


def rest(reader: Reader) -> bytes:
    return b"".join(iter(lambda: reader.read(17), b""))


@given(st.lists(st.tuples(st.integers(1, LIMIT), st.booleans()), max_size=40))
def test_whoever_follows_gets_each_byte_once_and_knows_what_is_gone(
    steps: list[tuple[int, bool]],
) -> None:
    with TemporaryDirectory() as name, output_in(Path(name)) as output:
        path, said, seen = f"{name}/log", 0, 0
        reader = Reader(path, 0)
        for size, reads in [*steps, (1, True)]:
            say(output, numbered(said, said + size))
            said += size
            while reads:
                reader.look()
                assert rest(reader) == numbered(seen, reader.offset)
                seen = reader.offset
                if not reader.has_gap:
                    break
                reader.close()
                reader = Reader(path, seen)
                assert reader.offset > seen
                seen = reader.offset
        reader.close()
        assert seen == said
        # Whoever comes later gets the end of it, and hears where that begins.
        with closing(Reader(path, 0)) as late:
            begin = late.offset
            assert rest(late) == numbered(begin, said)
        kept = sum(file.stat().st_size for file in Path(name).iterdir() if file.suffix != ".begins")
        assert said - begin == kept


def test_what_was_there_is_read_whole_although_it_is_removed_meanwhile(tmp_path: Path) -> None:
    with output_in(tmp_path) as output:
        say(output, numbered(0, 80))
        say(output, numbered(80, 160))
        with closing(Reader(str(tmp_path / "log"), 10)) as reader:
            for begin in range(160, 480, 80):
                say(output, numbered(begin, begin + 80))
            assert rest(reader) == numbered(10, 160)
            assert not reader.has_gap
            assert reader.look()
            assert rest(reader) == b""
            assert reader.has_gap


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_rotation_that_ends_in_the_middle_leaves_every_offset_right(
    dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with output_in(tmp_path) as output:
        for begin in (0, 80, 160):
            say(output, numbered(begin, begin + 80))
        with monkeypatch.context() as patch:
            done, rename = [], os.rename

            def dying(old: str, new: str) -> None:
                done.append(new)
                if len(done) == dies_at:
                    raise KeyboardInterrupt
                rename(old, new)

            patch.setattr(os, "rename", dying)
            with pytest.raises(KeyboardInterrupt):
                say(output, numbered(240, 320))
        with closing(Reader(str(tmp_path / "log"), 170)) as reader:
            assert rest(reader) == numbered(170, 240)


def test_a_log_of_before_there_were_offsets_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "log.1").write_bytes(numbered(0, 30))
    (tmp_path / "log").write_bytes(numbered(30, 40))
    with closing(Reader(str(tmp_path / "log"), 5)) as reader:
        assert rest(reader) == numbered(5, 40)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    (tmp_path / "log.1").symlink_to("/etc/hostname")
    with closing(Reader(str(tmp_path / "log"), 0)) as reader:
        assert reader.read(10) == b""
        assert not reader.look()


TALK = """
import os
for number in range(1 << 12):
    os.write(1, b"%08d%s\\n" % (number, b"x" * (number % 97)))
"""


def test_a_talkative_program_is_followed_to_its_end(tmp_path: Path) -> None:
    whole = subprocess.run([sys.executable, "-c", TALK], capture_output=True, check=True).stdout
    path, seen, got = str(tmp_path / "1" / "log"), 0, 0
    with running(tmp_path / "1", sys.executable, "-c", TALK, log_bytes_max=4096) as process:
        reader = Reader(path, 0)
        while True:
            over = process.poll() is not None
            reader.look()
            part = rest(reader)
            assert part == whole[seen : seen + len(part)]
            seen, got = seen + len(part), got + len(part)
            if reader.has_gap:
                reader.close()
                reader = Reader(path, seen)
                seen = reader.offset
            elif over:
                break
        reader.close()
    assert seen == len(whole)
    assert got > 4096


def test_what_goes_on_often_is_told_seldom_and_how_often_it_was() -> None:
    of = Seldom(10.0)
    assert [of.times(now) for now in (0.0, 0.1, 9.9, 10.0, 10.1, 30.0)] == [1, 0, 0, 3, 0, 2]
