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
