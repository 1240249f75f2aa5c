"""Word by word comes to what the library makes of the whole text."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from zenos.runtime.train import words
from zenos.runtime.train.words import Words, words_of

TEXT = ["def f(x):\n    return [x + 1 for _ in range(10)]\n\n", "it's what they'll say, isn't it?"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT * 3, trainer)
    made.encode_special_tokens = True
    return made


TOKENIZER = byte_level()
PIECES = [
    "'s",
    "'ll",
    "'",
    " ",
    "  ",
    "\n",
    "\t",
    "\x0b",
    "\x1c",
    "\x00",
    "\x7f",
    "it",
    "10",
    "<|end|>",
]
ASCII = st.one_of(
    st.text(st.characters(max_codepoint=127), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
)


@given(st.lists(ASCII, max_size=5))
def test_word_by_word_is_what_the_library_says(texts: list[str]) -> None:
    table = words_of(TOKENIZER)
    assert table is not None
    for text in texts:
        found = array("I", table.encode(text)).tolist()
        assert found == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_MAX", 2)
    table = Words(TOKENIZER)
    long = "x" * (words.WORD_CHARS_MAX + 1)
    for text in (long, "a b c d a"):
        found = array("I", table.encode(text)).tolist()
        assert found == TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(table.table) == 2
    assert table.table.keys() <= {"a", " b", " c", " d", " a"}


def prefixed(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def split(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def lowered(made: Tokenizer) -> None:
    made.normalizer = normalizers.Lowercase()


def added(made: Tokenizer) -> None:
    made.add_tokens([AddedToken("f(x)", special=False)])


def special(made: Tokenizer) -> None:
    made.encode_special_tokens = False


@pytest.mark.parametrize("change", [prefixed, split, lowered, added, special])
def test_where_more_than_the_word_counts_there_is_no_table(
    change: Callable[[Tokenizer], None],
) -> None:
    made = byte_level()
    change(made)
    assert words_of(made) is None
