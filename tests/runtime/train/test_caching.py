"""The cache's budget: the least recently used goes, never what is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import until
from tests.runtime.train.helpers import make_context, make_task, spec, write_corpus
from zenos.core import durable, limits
from zenos.core.errors import StorageError
from zenos.runtime.train import caching
from zenos.runtime.train import main as training
from zenos.runtime.train.checkpoint import Checkpoints, Plan

SIZE = 1 << 20
OLD = time.time() - 10 * 86400


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    """What this process has used counts as used no more."""
    yield
    for path in list(caching._held):
        caching._let_go(path)


def entry(cache: Path, name: str, age_s: float, place: str = "packs") -> Path:
    """An entry of a MiB that nobody uses, last used so long ago."""

    def build(directory: Path) -> None:
        durable.write_file(directory / "train.bin", os.urandom(SIZE))

    path = caching.directory(cache / place / name, build)
    caching._let_go(path)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/*")}


def test_what_was_used_the_longest_ago_is_removed(tmp_path: Path) -> None:
    for name, age_s in (("a", 300), ("b", 200), ("c", 100)):
        entry(tmp_path, name, age_s)
    entry(tmp_path, "d", 250, "tokenizers")
    assert caching.find(tmp_path / "packs" / "a") is not None  # used now
    caching._let_go(tmp_path / "packs" / "a")
    assert caching.make_room(tmp_path, 5 * SIZE, ()) == 0
    assert caching.make_room(tmp_path, 3 * SIZE, ()) > 2 * SIZE
    assert left(tmp_path) == {"a", "c"}


def test_what_is_named_or_used_stays_however_large(tmp_path: Path) -> None:
    named, used = entry(tmp_path, "named", 300), entry(tmp_path, "used", 200)
    entry(tmp_path, "other", 100)
    code = (
        "import pathlib, sys; from zenos.runtime.train import caching\n"
        "assert caching.find(pathlib.Path(sys.argv[1])); print('holds', flush=True); input()"
    )
    argv = [sys.executable, "-c", code, str(used)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        os.utime(used, (OLD, OLD))
        caching.make_room(tmp_path, 0, [named.name])
        assert left(tmp_path) == {"named", "used"}
        process.kill()
    caching.make_room(tmp_path, 0, [])
    assert left(tmp_path) == set()


def test_what_is_found_again_is_made_again_when_it_was_removed(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 0)
    caching.make_room(tmp_path, 0, [])
    assert caching.find(path) is None
    assert caching.directory(path, lambda fresh: (fresh / "x").touch()) == path
    caching.make_room(tmp_path, 0, [])
    assert path.exists()  # we use it


def test_what_another_puts_there_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, really, firsts = tmp_path / "packs" / "a", caching.find, list[int]()

    def found_late(where: Path) -> Path | None:
        """Right after nothing was found, another process has made it."""
        found = really(where)
        monkeypatch.undo()
        firsts.append(entry(tmp_path, "a", 0).stat().st_ino)
        return found

    monkeypatch.setattr(caching, "find", found_late)
    caching.directory(path, lambda fresh: (fresh / "train.bin").touch())
    assert [path.stat().st_ino] == firsts
    assert (path / "train.bin").stat().st_size == SIZE
    assert left(tmp_path) == {"a"}


def test_what_is_removed_before_it_is_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, removed, built = caching._hold, list[int](), list[Path]()

    def hold(path: Path) -> None:
        if path.exists() and not removed:
            removed.append(caching.make_room(tmp_path, 0, []))
        really(path)

    monkeypatch.setattr(caching, "_hold", hold)
    path = caching.directory(tmp_path / "packs" / "a", lambda fresh: built.append(fresh))
    assert (len(removed), len(built)) == (1, 2)
    assert caching.find(path) == path


def test_what_others_always_remove_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = caching._hold

    def hold(path: Path) -> None:
        caching.make_room(tmp_path, 0, [])
        really(path)

    monkeypatch.setattr(caching, "_hold", hold)
    with pytest.raises(StorageError, match=r"cannot keep the cache .*: others remove"):
        caching.directory(tmp_path / "packs" / "a", lambda fresh: (fresh / "x").touch())


def test_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    path = entry(tmp_path, "a", 0)
    (path / "train.bin").write_bytes(b"other")
    caching.directory(path, lambda fresh: (fresh / "train.bin").touch())
    assert (path / "train.bin").read_bytes() == b""
    assert left(tmp_path) == {"a"}


def test_what_cannot_be_built_is_tried_once(tmp_path: Path) -> None:
    tried = []

    def build(fresh: Path) -> None:
        tried.append(fresh)
        (fresh / "gone" / "x").touch()

    with pytest.raises(StorageError, match="cannot write the cache"):
        caching.directory(tmp_path / "packs" / "a", build)
    assert len(tried) == 1
    assert left(tmp_path) == set()


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead = tmp_path / "packs" / f"{durable.TEMPORARY_PREFIX}{process.pid}-0a-pack"
    living = tmp_path / "packs" / f"{durable.TEMPORARY_PREFIX}{os.getpid()}-0a-pack"
    for path in (dead, living):
        path.mkdir(parents=True)
    until(lambda: not Path("/proc", str(process.pid)).exists())
    caching.make_room(tmp_path, SIZE, [])
    assert left(tmp_path) == {living.name}


def test_compiled_code_counts_and_goes_once_it_is_old(tmp_path: Path) -> None:
    for name, age_s in (("fresh", 0.0), ("old", 2 * limits.CACHE_FRESH_S)):
        file = tmp_path / caching.COMPILED / name / "a.so"
        file.parent.mkdir(parents=True)
        file.write_bytes(os.urandom(SIZE))
        os.utime(file, (time.time() - age_s,) * 2)
    caching.make_room(tmp_path, 0, [])
    assert left(tmp_path) == {"fresh"}


def test_a_training_keeps_the_cache_within_its_budget(tmp_path: Path) -> None:
    context = make_context(tmp_path, make_task(spec(write_corpus(tmp_path / "text"), steps=2)))
    context.cache_bytes_max = 0
    for name in ("waiting", "nobody's"):
        entry(context.home.cache, name, 1000)
    waits = Plan(pack="waiting", tokenizer="none", data_digest="", steps=None)
    Checkpoints(context.home.checkpoint("t2")).write_plan(waits)
    training.main(context)
    packs = {path.name for path in (context.home.cache / "packs").iterdir()}
    assert "waiting" in packs
    assert "nobody's" not in packs
    assert len(packs) == 2  # and its own
