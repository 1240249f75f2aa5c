"""Tokenizes ASCII text word by word, each word by the library once: many times as fast.

Byte-level tokenizers cut a text into words by a pattern (GPT-2's) before anything else, and what
becomes of a word depends on the word alone. Text says the same words again and again, so a table of
their tokens answers nearly all of them. Where something else takes part (another pattern, a
normalizer, added tokens that are looked for in the text, characters beyond ASCII, of which
libraries differ in what they call a letter) the library does it all.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Any, Final

from tokenizers import Tokenizer

# GPT-2's pattern, as it reads where all is ASCII.
_WORD: Final = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+"
    r"|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
)
WORDS_MAX: Final = 2**18  # in the table: some 40 MB
WORD_CHARS_MAX: Final = 64  # longer ones don't come again


class Words:
    """A table of words with their token ids. May be used from several OS threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.table: dict[str, bytes] = {}

    def encode(self, text: str) -> bytes:
        """The token ids of an ASCII text, 32 bits each, without special tokens."""
        words = _WORD.findall(text)
        # In one call: each gives Python's lock away, and has to wait until it is free again.
        unknown = list(set(words).difference(self.table))
        if not unknown:
            return b"".join(map(self.table.__getitem__, words))
        found = self._tokenizer.encode_batch_fast(unknown, add_special_tokens=False)
        new = {w: array("I", e.ids).tobytes() for w, e in zip(unknown, found, strict=True)}
        for word, ids in new.items():
            if len(word) <= WORD_CHARS_MAX and len(self.table) < WORDS_MAX:
                self.table[word] = ids
        return b"".join([new[w] if w in new else self.table[w] for w in words])


def words_of(tokenizer: Tokenizer) -> Words | None:
    """A table for this tokenizer; None where a word's tokens hang on more than the word."""
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    cut = made["pre_tokenizer"] or {}
    plain = (
        made["normalizer"] is None
        and made["truncation"] is None
        and made["padding"] is None
        and made["model"]["type"] == "BPE"
        and not made["model"].get("dropout")
        and (cut.get("type"), cut.get("add_prefix_space")) == ("ByteLevel", False)
        and cut.get("use_regex", True)
        and all(token["special"] for token in made["added_tokens"])
        and tokenizer.encode_special_tokens
    )
    return Words(tokenizer) if plain else None
