"""Files on lanes: the same blobs and the same errors, at once and beside each other."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from tests.models.files import litter, write_model
from zenos.core.errors import StorageError
from zenos.models import copying, registry
from zenos.models.registry import Registry


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of which every file has several."""
    monkeypatch.setattr(copying, "CHUNK_BYTES", 7)


def test_what_is_stored_does_not_hang_on_the_lanes(tmp_path: Path) -> None:
    files = write_model(tmp_path / "m", b"weights " * 100)
    stored = {}
    for lanes in (1, 4):
        made = Registry(tmp_path / str(lanes), lanes)
        version = made.publish("m", files)
        made.verify(version)
        stored[lanes] = version.files
        for name, path in files.items():
            content = path.read_bytes()
            info = version.files[name]
            assert (info.digest, info.size) == (hashlib.sha256(content).hexdigest(), len(content))
            assert (made.path(version) / name).read_bytes() == content
    assert stored[1] == stored[4]


def test_files_are_copied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)  # passed by two threads or by none
    copy = copying.copy

    def meet(*given: object, **named: object) -> tuple[str, int]:
        together.wait(60)
        return copy(*given, **named)  # type: ignore[arg-type]  # as it was given

    files = write_model(tmp_path / "m", b"weights")
    monkeypatch.setattr(copying, "copy", meet)
    files = dict(list(files.items())[:2])
    assert len(files) == 2
    Registry(tmp_path / "r", 2).publish("m", files)


def test_a_large_file_is_hashed_beside_the_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed_by = set()
    real = hashlib.sha256

    class Watched:
        def __init__(self) -> None:
            self._real = real()

        def update(self, data: bytes) -> None:
            hashed_by.add(threading.current_thread().name.partition("_")[0])
            self._real.update(data)

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    monkeypatch.setattr(copying.hashlib, "sha256", Watched)
    content = bytes(range(256)) * 3
    (tmp_path / "a").write_bytes(content)
    for beside, name in ((True, "hashing"), (False, "MainThread")):
        hashed_by.clear()
        with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
            found = copying.copy(source, target, beside=beside)
        assert found == (real(content).hexdigest(), len(content))
        assert (tmp_path / "b").read_bytes() == content
        assert hashed_by == {name}


def test_a_file_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Registry(tmp_path / "r", 4)
    first = made.publish("m", write_model(tmp_path / "m", b"weights"))
    before = litter(tmp_path / "r")
    copy, failed = copying.copy, threading.Event()

    def full(*given: object, **named: object) -> tuple[str, int]:
        if not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        return copy(*given, **named)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(registry.copying, "copy", full)
    with pytest.raises(StorageError, match="No space left"):
        made.publish("m", write_model(tmp_path / "n", b"other weights"))
    assert litter(tmp_path / "r") == before
    assert made.list() == [first]
