"""Tokenizer, packing, and the order of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from zenos.core.errors import InvalidError, StorageError
from zenos.core.specs import DataSpec
from zenos.runtime.train import caching, packing, tokenizer
from zenos.runtime.train.corpus import Corpus

from .helpers import write_corpus


def make(
    tmp_path: Path, vocab_size: int = 320, where: str = "c", more: str = ""
) -> tuple[Corpus, tokenizer.Vocabulary, Path]:
    root = write_corpus(tmp_path / where, files=8, words=300)
    (root / "x.txt").write_text("Ünïcödé 你好 🙂 <|endoftext|> inside" + more)
    corpus = Corpus(DataSpec(paths=[str(root)], eval_fraction=0.2))
    survey = corpus.survey()
    vocabulary = tokenizer.train(corpus, survey, vocab_size, tmp_path / "cache")
    directory = packing.pack(corpus, survey, vocabulary, tmp_path / "cache")
    return corpus, vocabulary, directory


def test_packed_tokens_are_the_corpus(tmp_path: Path) -> None:
    corpus, vocabulary, directory = make(tmp_path)
    packed = packing.Packed(directory)
    survey = corpus.survey()
    for held, tokens in ((False, packed.train), (True, packed.eval)):
        texts = [d.text for d in corpus.documents() if survey.holds_out(d) is held]
        ends = np.flatnonzero(tokens == vocabulary.end_id)
        assert len(ends) == len(texts)
        pieces = np.split(tokens, ends + 1)[:-1]
        assert [vocabulary.tokenizer.decode(list(p[:-1])) for p in pieces] == texts
        # Bits per byte hang on this: tokens stand for exactly the text's bytes.
        size = sum(len(t.encode()) for t in texts)
        assert vocabulary.byte_lengths()[tokens].sum() == size
    assert packed.meta.train_bytes + packed.meta.eval_bytes == survey.bytes
    assert packed.train.dtype == np.uint16


def test_everything_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, vocabulary, directory = make(tmp_path)
    monkeypatch.setattr(packing, "_Writer", None)
    monkeypatch.setattr(tokenizer.trainers, "BpeTrainer", None)
    _, again, same = make(tmp_path)
    assert same == directory
    assert again.directory == vocabulary.directory


def test_the_cache_is_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    _, vocabulary, directory = make(tmp_path)
    _, elsewhere, same = make(tmp_path, where="elsewhere")
    assert (elsewhere.directory, same) == (vocabulary.directory, directory)
    # The same files with a word more.
    _, longer, other = make(tmp_path, more=" and more")
    assert longer.directory != vocabulary.directory
    assert other != directory
    _, larger, another = make(tmp_path, vocab_size=330, where="elsewhere")
    assert larger.directory != vocabulary.directory
    assert another != directory


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    _, vocabulary, directory = make(tmp_path)
    before = (directory / "train.bin").read_bytes()
    (directory / "train.bin").write_bytes(bytes(len(before)))
    (vocabulary.directory / "seal.json").write_text("{")
    assert caching.find(directory) is None
    _, again, same = make(tmp_path)
    assert same == directory
    assert (directory / "train.bin").read_bytes() == before
    assert again.digest == vocabulary.digest


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "c", files=4, words=100)
    corpus = Corpus(DataSpec(paths=[str(root)]))
    survey = corpus.survey()
    vocabulary = tokenizer.train(corpus, survey, 300, tmp_path / "cache")
    (root / "00.txt").write_text("another text")
    with pytest.raises(InvalidError, match="changed while it was read"):
        packing.pack(corpus, survey, vocabulary, tmp_path / "cache")
    assert list((tmp_path / "cache" / "packs").iterdir()) == []


def test_the_vocabulary_has_the_bytes_and_the_special_tokens(tmp_path: Path) -> None:
    _, vocabulary, _ = make(tmp_path)
    ids = [vocabulary.end_id, vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id]
    assert sorted([*ids, vocabulary.mask_id]) == vocabulary.special_ids() == [0, 1, 2, 3, 4]
    assert vocabulary.size == 320
    text = "\x00\x7f any byte: \u0800 \U0010ffff"
    assert vocabulary.tokenizer.decode(vocabulary.encode([text])[0]) == text
    # A special token's text in a corpus is text.
    assert vocabulary.end_id not in vocabulary.encode(["<|endoftext|>"])[0]


def test_the_tokenizer_learns_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    """Else the loss on it would be better than on text that is really new."""
    root = tmp_path / "c"
    root.mkdir()
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (40, 12))
    for number, row in enumerate(letters):
        word = "".join(map(chr, row))
        (root / f"{number:02}.txt").write_text(" ".join([word] * 30))
    corpus = Corpus(DataSpec(paths=[str(root)], eval_fraction=0.3))
    survey = corpus.survey()
    vocabulary = tokenizer.train(corpus, survey, 1000, tmp_path / "cache")
    by_side: dict[bool, set[int]] = {False: set(), True: set()}
    for document in corpus.documents():
        word = document.text.partition(" ")[0]
        pieces = vocabulary.encode([f" {word}"])[0]
        by_side[survey.holds_out(document)].add(len(pieces))
    assert by_side[False] == {1}
    assert min(by_side[True]) > 1


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, vocabulary, _ = make(tmp_path)
    loaded = AutoTokenizer.from_pretrained(vocabulary.directory)
    assert loaded.eos_token_id == vocabulary.end_id
    assert loaded.pad_token_id == vocabulary.pad_id
    assert loaded.mask_token_id == vocabulary.mask_id
    text = "the cat sat on 你好"
    assert loaded.encode(text, add_special_tokens=False) == vocabulary.encode([text])[0]
    assert loaded.decode(loaded.encode(text)) == text


def test_too_small_a_vocabulary_and_a_broken_tokenizer_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(DataSpec(paths=[str(write_corpus(tmp_path / "c", files=2, words=20))]))
    with pytest.raises(InvalidError, match="at least 261"):
        tokenizer.train(corpus, corpus.survey(), 260, tmp_path / "cache")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StorageError, match="cannot read the tokenizer"):
        tokenizer.Vocabulary(tmp_path)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    result = packing.permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(result), np.arange(size))


def test_permute_depends_on_its_key_and_mixes() -> None:
    a = packing.permute(np.arange(1000), 1000, 1)
    b = packing.permute(np.arange(1000), 1000, 2)
    assert (a == b).mean() < 0.02
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.15


@given(st.integers(40, 700), st.integers(2, 17), st.integers(0, 2**63 - 1), st.data())
def test_each_epoch_has_each_window_once_and_order_needs_no_state(
    count: int, length: int, seed: int, data: st.DataObject
) -> None:
    tokens = np.arange(count)
    stride = data.draw(st.integers(max(1, length - 1), length))
    samples = packing.Samples(tokens, length=length, stride=stride, seed=seed)
    size = samples.per_epoch
    for epoch in range(3):
        taken = samples.take(epoch * size, size)
        assert taken.shape == (size, length)
        starts = taken[:, 0]
        assert len(set(starts)) == size
        assert len(set(starts % stride)) == 1
        assert taken.max() < count
        assert np.array_equal(taken, starts[:, None] + np.arange(length))
    # Any slice alone is what the whole has there.
    first = data.draw(st.integers(0, 3 * size))
    whole = samples.starts(0, 3 * size + 5)
    assert np.array_equal(samples.starts(first, 5), whole[first : first + 5])


def test_too_short_a_corpus_is_refused() -> None:
    with pytest.raises(InvalidError, match="has 5 tokens and a sequence takes 9"):
        packing.Samples(np.arange(5), length=9, stride=8, seed=0)
    assert packing.Samples(np.arange(9), length=9, stride=8, seed=0).per_epoch == 1


def test_held_out_windows_are_spread_evenly() -> None:
    tokens = np.arange(1001)
    windows = packing.held_out_windows(tokens, length=11, stride=10, count_max=10)
    assert windows[:, 0].tolist() == list(range(0, 1000, 100))
    every = packing.held_out_windows(tokens, length=11, stride=10, count_max=1000)
    assert len(every) == 100
    assert packing.held_out_windows(tokens[:5], length=11, stride=10, count_max=3).shape == (0, 11)


def test_ids_may_have_gaps_and_the_highest_counts(tmp_path: Path) -> None:
    made = Tokenizer(
        models.WordLevel({tokenizer.END: 0, "ab": 1, "abc": 9}, unk_token=tokenizer.END)
    )
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = tokenizer.Vocabulary(tmp_path)
    assert vocabulary.size == 10
    assert vocabulary.byte_lengths()[[1, 9]].tolist() == [2, 3]
