"""Shards: documents cut by their content, tokenized on lanes, kept and found again."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import until
from zenos.core import limits
from zenos.core.errors import InvalidError
from zenos.core.specs import DataSpec
from zenos.runtime.train import packing, shards, tokenizer
from zenos.runtime.train.corpus import Corpus, Document, Survey

from .helpers import write_corpus

PACK = """
import sys
from pathlib import Path
from zenos.core import limits
from zenos.core.specs import DataSpec
from zenos.runtime.train import packing, tokenizer
from zenos.runtime.train.corpus import Corpus

limits.SHARD_BYTES, limits.SHARD_BYTES_MIN, limits.SHARD_BYTES_MAX = 4096, 1024, 16384
corpus = Corpus(DataSpec(paths=[sys.argv[1]], eval_fraction=0.2))
survey = corpus.survey()
vocabulary = tokenizer.train(corpus, survey, 320, Path(sys.argv[2]))
given = 0

def waits(done):
    global given
    given += 1
    if given > 24:
        sys.stdin.read()  # for ever: the shards before are finished meanwhile

corpus.on_bytes = waits
packing.pack(corpus, survey, vocabulary, Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that a small corpus has many of, on two lanes."""
    monkeypatch.setattr(limits, "SHARD_BYTES", 4096)
    monkeypatch.setattr(limits, "SHARD_BYTES_MIN", 1024)
    monkeypatch.setattr(limits, "SHARD_BYTES_MAX", 16384)
    monkeypatch.setenv("ZENOS_CPU", "2")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[shards.Shard]:
    """The shards that were tokenized, not found."""
    seen: list[shards.Shard] = []
    real = shards._Encoder._encode

    def encode(self: shards._Encoder, shard: shards.Shard) -> dict[str, bytes]:
        seen.append(shard)
        return real(self, shard)

    monkeypatch.setattr(shards._Encoder, "_encode", encode)
    return seen


def document(text: str) -> Document:
    raw = text.encode()
    return Document(text, len(raw), hashlib.sha256(raw).digest())


def survey_of(threshold: int = 0) -> Survey:
    return Survey(digest="", documents=0, bytes=0, threshold=threshold)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "c", files=40, words=300)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepare(root: Path, cache: Path) -> tuple[Corpus, Survey, tokenizer.Vocabulary]:
    corpus = Corpus(DataSpec(paths=[str(root)], eval_fraction=0.2))
    survey = corpus.survey()
    return corpus, survey, tokenizer.train(corpus, survey, 320, cache)


def in_one_pass(corpus: Corpus, survey: Survey, vocabulary: tokenizer.Vocabulary) -> list[bytes]:
    """What the pack is to hold: every document by itself, in order."""
    tokens: tuple[list[int], list[int]] = ([], [])
    for each in corpus.documents():
        ids = vocabulary.encode([each.text])[0]
        tokens[survey.holds_out(each)].extend([*ids, vocabulary.end_id or 0])
    return [np.asarray(part, np.uint16).tobytes() for part in tokens]


def content(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in shards.FILES]


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), max_size=80),
    st.integers(0, 2**64),
    st.integers(1, 300),
)
def test_shards_are_the_documents_whole_in_order_and_bounded(
    texts: list[str], threshold: int, size: int
) -> None:
    documents, survey = [document(text) for text in texts], survey_of(threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SHARD_BYTES", size)
        patch.setattr(limits, "SHARD_BYTES_MIN", size // 4)
        patch.setattr(limits, "SHARD_BYTES_MAX", 4 * size)
        found = list(shards.cut(documents, survey))
    assert [text for shard in found for text in shard.texts] == texts
    flags = [held for shard in found for held in shard.held_out]
    assert flags == [survey.holds_out(each) for each in documents]
    for shard in found:
        sizes = [len(text.encode()) for text in shard.texts]
        assert sum(sizes[:-1]) < 4 * size
    for shard in found[:-1]:
        assert sum(len(text.encode()) for text in shard.texts) >= size // 4


@given(st.integers(0, 399), st.text(st.characters(codec="utf-8"), min_size=1, max_size=200))
def test_after_a_change_shards_soon_end_where_they_did(at: int, text: str) -> None:
    documents = [document(f"{number} " * 40) for number in range(400)]
    before = list(shards.cut(documents, survey_of()))
    documents[at] = document(text)
    after = list(shards.cut(documents, survey_of()))
    known = [shard.texts for shard in before]
    assert sum(shard.texts not in known for shard in after) <= len(after) // 2
    assert len(after) > 8


def test_documents_are_read_no_further_than_a_shard() -> None:
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        for taken in itertools.count(1):
            yield document(f"{taken} " * 100)

    assert next(shards.cut(endless(), survey_of())).texts
    assert taken <= limits.SHARD_BYTES_MAX // 200 + 1


def test_a_pack_is_what_one_pass_gives(root: Path, cache: Path) -> None:
    corpus, survey, vocabulary = prepare(root, cache)
    directory = packing.pack(corpus, survey, vocabulary, cache)
    assert len(list((cache / "shards").iterdir())) > 4
    assert content(directory) == in_one_pass(corpus, survey, vocabulary)


def test_shards_are_tokenized_on_lanes_at_once_and_few_are_in_memory(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, survey, vocabulary = prepare(root, cache)
    whole = list(shards.cut(corpus.documents(), survey))
    together, by, taken = threading.Barrier(2), set(), 0
    real = shards._Encoder._encode

    def encode(self: shards._Encoder, shard: shards.Shard) -> dict[str, bytes]:
        by.add(threading.current_thread().name)
        if shard in whole[:2]:
            together.wait(60)  # passed by two at once, or by none
        return real(self, shard)

    def read() -> Iterator[shards.Shard]:
        nonlocal taken
        for shard in whole:
            taken += 1
            yield shard

    monkeypatch.setattr(shards._Encoder, "_encode", encode)
    assert len(whole) > 10
    found = shards.encode(read(), vocabulary, np.dtype(np.uint16), cache)
    for done, _ in enumerate(found, 1):
        assert taken <= done + 2 * limits.SHARDS_PER_LANE
    assert by == {"tokenizing-lane-1", "tokenizing-lane-2"}


def test_only_the_shard_of_a_changed_file_is_tokenized(
    root: Path, cache: Path, encoded: list[shards.Shard]
) -> None:
    corpus, survey, vocabulary = prepare(root, cache)
    packing.pack(corpus, survey, vocabulary, cache)
    assert len(encoded) > 10
    encoded.clear()
    (root / "20.txt").write_text("another text altogether")
    changed = Corpus(DataSpec(paths=[str(root)], eval_fraction=0.2))
    directory = packing.pack(changed, changed.survey(), vocabulary, cache)
    (again,) = encoded
    assert "another text altogether" in again.texts
    assert content(directory) == in_one_pass(changed, changed.survey(), vocabulary)


def test_a_damaged_shard_is_tokenized_again(
    root: Path, cache: Path, encoded: list[shards.Shard]
) -> None:
    corpus, survey, vocabulary = prepare(root, cache)
    directory = packing.pack(corpus, survey, vocabulary, cache)
    expected = content(directory)
    (directory / "train.bin").write_bytes(b"")  # so the pack is made again
    damaged = sorted((cache / "shards").iterdir())[0]
    (damaged / "train.bin").write_bytes(b"xy")
    encoded.clear()
    assert content(packing.pack(corpus, survey, vocabulary, cache)) == expected
    assert len(encoded) == 1


def test_a_killed_run_goes_on_with_the_shards_that_it_had_not_finished(
    root: Path, cache: Path, encoded: list[shards.Shard]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PACK, str(root), str(cache)], stdin=subprocess.PIPE
    ) as child:
        try:
            until(lambda: finished(cache) >= 3, timeout_s=120)
        finally:
            child.kill()
    had = finished(cache)
    corpus, survey, vocabulary = prepare(root, cache)
    directory = packing.pack(corpus, survey, vocabulary, cache)
    whole = len(list(shards.cut(corpus.documents(), survey)))
    assert len(encoded) == whole - had
    assert content(directory) == in_one_pass(corpus, survey, vocabulary)


def finished(cache: Path) -> int:
    return len(list((cache / "shards").glob("[!.]*")))


def test_an_error_in_reading_ends_the_pack_and_leaves_no_part_of_it(
    root: Path, cache: Path
) -> None:
    corpus, survey, vocabulary = prepare(root, cache)

    def fail(done: int) -> None:
        if done > survey.bytes // 2:
            raise InvalidError("cannot read on")

    corpus.on_bytes = fail
    with pytest.raises(InvalidError, match="cannot read on"):
        packing.pack(corpus, survey, vocabulary, cache)
    assert list((cache / "packs").iterdir()) == []
