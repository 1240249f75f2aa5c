"""The suite leaves nothing behind: no process, no segment of memory, no temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import mentioning, until


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sockets, and whatever is put into a temporary folder, go into one of this session's own."""
    base = tmp_path_factory.getbasetemp()  # pytest's own, which it cleans up by itself
    segments = Path("/dev/shm")
    before = set(segments.iterdir()) if segments.is_dir() else set()
    with tempfile.TemporaryDirectory(prefix="zt-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(base / "inductor"))
        yield
        until(lambda: not mentioning(str(base)))
        assert list(Path(folder).iterdir()) == []
    after = set(segments.iterdir()) if segments.is_dir() else set()
    assert after <= before
