"""Pictures on disk: a whole one, or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from zenos.core import pictures
from zenos.core.errors import StorageError


class FullDisk:
    """A figure for which there is no room."""

    def savefig(self, fname: Path, *, dpi: float) -> None:
        fname.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_picture_without_room_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"):
        pictures.save(FullDisk(), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


class Drawn:
    """A figure that is written."""

    def savefig(self, fname: Path, *, dpi: float) -> None:
        fname.write_bytes(b"a picture")


def test_a_picture_that_is_there_stays_as_it_was_where_another_finds_no_room(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"the old one")
    with pytest.raises(StorageError, match="No space left"):
        pictures.save(FullDisk(), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
    pictures.save(Drawn(), path)
    assert path.read_bytes() == b"a picture"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_picture_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, path = tmp_path / "p.png", tmp_path / "elsewhere" / "real.png"
    link.symlink_to(path)
    pictures.save(Drawn(), link)
    assert link.is_symlink()
    assert path.read_bytes() == b"a picture"


def test_a_path_below_a_file_or_of_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(StorageError, match=r"cannot write \S*file/p.png: Not a directory"):
        pictures.save(Drawn(), tmp_path / "file" / "p.png")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(StorageError, match=r"cannot write \S*d.png: Is a directory"):
        pictures.save(Drawn(), tmp_path / "d.png")
    assert (tmp_path / "file").read_bytes() == b"text"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.png", "file"]
